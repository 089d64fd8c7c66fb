// Package testimages makes sample disks: partitioned ones with file systems
// full of files of awkward sizes, a CD, a disk that boots, thin disks, and a
// virtual machine of three disks. From the command line:
//
//	go run ./testimages/generate --out DIR
//	cd DIR && sha256sum -c .../testimages/SHA256SUMS
//
// They are made of nothing but a seed. The same seed gives the same bytes on
// every machine and every day; SHA256SUMS records those of seed 1. Each
// function makes one image at a path where nothing is yet, and those that make
// file systems return what they put there, so that a test knows what it has to
// find. [Generate] makes the whole set.
package testimages

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
)

// Volume is a file system on a sample disk.
type Volume struct {
	Partition  int    // from 1; 0 for a file system that fills the disk
	FileSystem string // ext4, fat32, fat16 or iso9660
	Offset     int64  // where it starts on the disk, in bytes
	Size       int64  // in bytes
	Folders    []string
	Files      []File
}

// File is a regular file of a volume.
type File struct {
	Path   string // with slashes, from the root of the volume: /folder/name
	Size   int64  // in bytes
	SHA256 string // of the content, in hexadecimal
}

// Generate makes the whole set in the folder dir, which it makes too if it
// must: gpt.img, mbr.img, cd.iso, boot.img, thin.img, odd.img and the virtual
// machine vm/web01.vmx. The files together have about 200 MiB; they take much
// less, since most of it is holes.
func Generate(dir string, seed int64) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	type maker func(path string, seed int64) error
	for _, image := range []struct {
		name string
		make maker
	}{
		{"gpt.img", withoutVolumes(GPT)},
		{"mbr.img", withoutVolumes(MBR)},
		{"cd.iso", withoutVolumes(ISO)},
		{"boot.img", Boot},
		{"thin.img", Thin},
		{"odd.img", Odd},
		{"vm", VM},
	} {
		if err := image.make(filepath.Join(dir, image.name), seed); err != nil {
			return fmt.Errorf("make %s: %w", image.name, err)
		}
	}
	return nil
}

func withoutVolumes(generate func(string, int64) ([]Volume, error)) func(string, int64) error {
	return func(path string, seed int64) error {
		_, err := generate(path, seed)
		return err
	}
}

// random is the stream of random bytes that belongs to a name under a seed:
// ChaCha8, which is the same in every version of Go.
func random(seed int64, name string) *rand.ChaCha8 {
	return rand.NewChaCha8(sha256.Sum256(fmt.Appendf(nil, "vmcrypt test image %d %s", seed, name)))
}

// content is size random bytes that belong to a name under a seed.
func content(seed int64, name string, size int64) []byte {
	b := make([]byte, size)
	random(seed, name).Read(b) // never fails
	return b
}

func describe(path string, content []byte) File {
	sum := sha256.Sum256(content)
	return File{Path: path, Size: int64(len(content)), SHA256: hex.EncodeToString(sum[:])}
}

// create makes a sparse file of size bytes where there is none, and has fill
// write to it. What failed is removed.
func create(path string, size int64, fill func(*os.File) error) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	err = f.Truncate(size)
	if err == nil {
		err = fill(f)
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		os.Remove(path)
	}
	return err
}

// Sums is the checksums of all files below dir, in the format of sha256sum and
// in the order of paths.
func Sums(dir string) ([]byte, error) {
	var sums []byte
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		f, err := os.Open(filepath.Join(dir, path))
		if err != nil {
			return err
		}
		defer f.Close()
		hash := sha256.New()
		if _, err := io.Copy(hash, f); err != nil {
			return err
		}
		sums = fmt.Appendf(sums, "%x  %s\n", hash.Sum(nil), path)
		return nil
	})
	return sums, err
}
