package testimages_test

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/partition/gpt"
	"github.com/diskfs/go-diskfs/partition/mbr"

	"github.com/vmcrypt/vmcrypt/image"
	"github.com/vmcrypt/vmcrypt/internal/testtool"
	"github.com/vmcrypt/vmcrypt/testimages"
)

//go:embed SHA256SUMS
var recorded string

// The images are part of what vmcrypt promises its users: they do not change
// with the machine, the day or the version of a library.
func TestGenerateGivesTheRecordedBytes(t *testing.T) {
	dir := t.TempDir()
	if err := testimages.Generate(dir, 1); err != nil {
		t.Fatal(err)
	}
	sums, err := testimages.Sums(dir)
	if err != nil {
		t.Fatal(err)
	}
	if string(sums) != recorded {
		t.Errorf("got\n%s\nwant as in SHA256SUMS\n%s", sums, recorded)
	}
	if err := testimages.Generate(dir, 1); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over what exists: %v, want fs.ErrExist", err)
	}
	if again, _ := testimages.Sums(dir); !bytes.Equal(again, sums) {
		t.Error("what existed has changed")
	}
}

func TestSeedsGiveDifferentImages(t *testing.T) {
	dir := t.TempDir()
	if err := testimages.Generate(dir, 2); err != nil {
		t.Fatal(err)
	}
	sums, err := testimages.Sums(dir)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(recorded) {
		if strings.Contains(line, ".img") && strings.Contains(string(sums), line) {
			t.Errorf("the same under seeds 1 and 2: %s", line)
		}
	}
}

func TestFailedImageIsRemoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "missing", "gpt.img")
	if _, err := testimages.GPT(path, 1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("in a missing folder: %v", err)
	}
}

// cutOut copies a volume into a file of its own.
func cutOut(t *testing.T, disk string, v testimages.Volume) string {
	t.Helper()
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	part := filepath.Join(t.TempDir(), v.FileSystem)
	out, err := os.Create(part)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if _, err := io.Copy(out, io.NewSectionReader(f, v.Offset, v.Size)); err != nil {
		t.Fatal(err)
	}
	return part
}

func run(t *testing.T, tool string, args ...string) string {
	t.Helper()
	out, err := exec.Command(testtool.Need(t, tool), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", tool, args, err, out)
	}
	return string(out)
}

// compareTree checks that dir holds just the files and folders of the volume.
func compareTree(t *testing.T, dir string, v testimages.Volume) {
	t.Helper()
	var folders, files []string
	sums := map[string]testimages.File{}
	for _, f := range v.Files {
		sums[f.Path] = f
	}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		name := strings.TrimPrefix(path, dir)
		switch {
		case err != nil || name == "" || name == "/lost+found":
			return err
		case d.IsDir():
			folders = append(folders, name)
		default:
			files = append(files, name)
			compareFile(t, path, sums[name])
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := slices.Sorted(slices.Values(v.Folders)); !slices.Equal(slices.Sorted(slices.Values(folders)), want) {
		t.Errorf("%s has folders %q, want %q", v.FileSystem, folders, want)
	}
	if len(files) != len(v.Files) {
		t.Errorf("%s has %d files, want %d", v.FileSystem, len(files), len(v.Files))
	}
}

func compareFile(t *testing.T, path string, want testimages.File) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	if int64(len(data)) != want.Size || hex.EncodeToString(sum[:]) != want.SHA256 {
		t.Errorf("%s has %d bytes, want %d of other content", path, len(data), want.Size)
	}
}

func TestFileSystemsStandUpToTools(t *testing.T) {
	dir := t.TempDir()
	for name, make := range map[string]func(string, int64) ([]testimages.Volume, error){
		"gpt.img": testimages.GPT, "mbr.img": testimages.MBR, "cd.iso": testimages.ISO,
	} {
		disk := filepath.Join(dir, name)
		volumes, err := make(disk, 1)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range volumes {
			t.Run(v.FileSystem, func(t *testing.T) { checkVolume(t, cutOut(t, disk, v), v) })
		}
	}
}

func checkVolume(t *testing.T, part string, v testimages.Volume) {
	out := filepath.Join(t.TempDir(), "tree")
	if err := os.Mkdir(out, 0o755); err != nil {
		t.Fatal(err)
	}
	switch v.FileSystem {
	case "ext4":
		run(t, "e2fsck", "-fn", part)
		run(t, "debugfs", "-R", "rdump / "+out, part)
	case "fat16", "fat32":
		run(t, "fsck.fat", "-n", part)
		t.Setenv("LC_ALL", "C.UTF-8")
		run(t, "mcopy", "-s", "-i", part, "::/", out)
	case "iso9660":
		run(t, "xorriso", "-osirrox", "on", "-indev", part, "-extract", "/", out)
		allowRemoval(t, out)
	}
	compareTree(t, out, v)
}

// allowRemoval makes the folders of a CD writable, that t may clean up.
func allowRemoval(t *testing.T, dir string) {
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			err = os.Chmod(path, 0o755)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestPartitionTables(t *testing.T) {
	dir := t.TempDir()
	gptPath, mbrPath := filepath.Join(dir, "gpt.img"), filepath.Join(dir, "mbr.img")
	volumes, err := testimages.GPT(gptPath, 1)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(gptPath)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	table, err := gpt.Read(file.New(f, true), 512, 512)
	if err != nil {
		t.Fatal(err)
	}
	if err := table.Verify(file.New(f, true), 112<<20); err != nil {
		t.Error("the copies of the table:", err)
	}
	for i, v := range volumes {
		p := table.Partitions[i]
		if p.GetStart() != v.Offset || p.GetSize() != v.Size {
			t.Errorf("partition %d has %d bytes at %d, want %d at %d", i+1, p.GetSize(), p.GetStart(), v.Size, v.Offset)
		}
	}
	if volumes, err = testimages.MBR(mbrPath, 1); err != nil {
		t.Fatal(err)
	}
	checkMBR(t, mbrPath, volumes[0])
}

func checkMBR(t *testing.T, path string, v testimages.Volume) {
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	table, err := mbr.Read(file.New(f, true), 512, 512)
	if err != nil {
		t.Fatal(err)
	}
	if p := table.Partitions[0]; p.GetStart() != v.Offset || p.GetSize() != v.Size || p.Type != mbr.Fat16bLBA {
		t.Errorf("partition has %d bytes at %d of type %x", p.GetSize(), p.GetStart(), p.Type)
	}
}

func TestBootDiskBoots(t *testing.T) {
	qemu := testtool.Need(t, "qemu-system-x86_64")
	path := filepath.Join(t.TempDir(), "boot.img")
	if err := testimages.Boot(path, 1); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(qemu, "-accel", "tcg", "-nodefaults", "-display", "none", "-no-reboot",
		"-serial", "stdio", "-drive", "format=raw,file="+path)
	timer := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
	out, err := cmd.Output()
	timer.Stop()
	if err != nil || string(out) != testimages.Banner+testimages.Written {
		t.Fatalf("the machine printed %q, %v", out, err)
	}
	after, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	copy(before[512:], testimages.Marker)
	if !bytes.Equal(before, after) {
		t.Error("the disk is not as before plus the marker in its second sector")
	}
}

func TestThinDiskIsThin(t *testing.T) {
	path := filepath.Join(t.TempDir(), "thin.img")
	if err := testimages.Thin(path, 1); err != nil {
		t.Fatal(err)
	}
	disk, err := image.Open(path, image.Raw, image.ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	extents, err := disk.Extents(0, disk.Size())
	if err != nil {
		t.Fatal(err)
	}
	if len(extents) < 10 || extents[0].Hole || extents[len(extents)-1].Hole {
		t.Errorf("extents %v: want holes between data at both ends", extents)
	}
}

func TestOddDiskIsOdd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "odd.img")
	if err := testimages.Odd(path, 1); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(data)%512 != 0 || len(data)%4096 == 0 || bytes.Count(data[len(data)-512:], []byte{0}) > 50 {
		t.Errorf("%d bytes, that end in %x", len(data), data[len(data)-16:])
	}
}

// The disks of the virtual machine are those of the single functions, seen
// through their descriptors.
func TestVMHoldsItsDisks(t *testing.T) {
	vm := filepath.Join(t.TempDir(), "vm")
	if err := testimages.VM(vm, 1); err != nil {
		t.Fatal(err)
	}
	for _, disk := range []struct {
		name   string
		format image.Format
		make   func(path string, seed int64) error
	}{
		{"web01.vmdk", image.VMDK, func(path string, seed int64) error {
			_, err := testimages.MBR(path, seed)
			return err
		}},
		{"web01_1.vmdk", image.VMDK, testimages.Thin},
		{"web01-data.img", image.Raw, testimages.Odd},
	} {
		single := filepath.Join(t.TempDir(), disk.name)
		if err := disk.make(single, 2); err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(single)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(readDisk(t, filepath.Join(vm, disk.name), disk.format), want) {
			t.Errorf("%s does not hold its disk", disk.name)
		}
	}
}

func readDisk(t *testing.T, path string, format image.Format) []byte {
	t.Helper()
	disk, err := image.Open(path, format, image.ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	data := make([]byte, disk.Size())
	if _, err := disk.ReadAt(data, 0); err != nil {
		t.Fatal(err)
	}
	return data
}
