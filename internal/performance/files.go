package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	// diskSize is the size of the disks that are encrypted. Of a thin one, every
	// other extent is a hole.
	diskSize   = 4 << 30
	extentSize = 8 << 20
)

// The contestants that more is said of than their figures.
const (
	byVmcrypt  = "vmcrypt"
	withCipher = "its pipeline alone"
	withoutIt  = "its pipeline without the cipher"
	byCopying  = "cp --sparse=always, and fsync"
)

// ourBinary is what "make build" makes, from the module's folder.
const ourBinary = "bin/vmcrypt"

// qemuModes are the ways to run qemu-img convert, of which the best counts.
var qemuModes = [][]string{
	{"-W", "-m", "16", "-t", "none", "-T", "none"},
	{"-W", "-m", "16", "-t", "none", "-T", "writeback"},
	{"-W", "-m", "16", "-t", "writeback", "-T", "writeback"},
	{"-m", "16", "-t", "none", "-T", "none"},
}

// workshop is the folder with everything that the section works on. Disks are
// named after what they hold and who made them.
type workshop struct{ folder string }

func (w workshop) in(name string) string { return filepath.Join(w.folder, name) }

// measureFiles compares how long it takes to encrypt and decrypt a file.
func measureFiles(ctx context.Context, rounds int) ([]table, error) {
	w, err := openWorkshop(ctx)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(w.folder)
	if err := w.prepareSources(ctx); err != nil {
		return nil, err
	}
	var tables []table
	var targets [][]string
	for _, cached := range []bool{false, true} {
		results, qemu, err := compare(ctx, rounds, w.encrypting(cached), w.encryptingByQEMU(cached))
		if err != nil {
			return nil, err
		}
		order := []string{byVmcrypt, withCipher, withoutIt, qemu, byCopying}
		tables = append(tables, resultTable("Encrypt, "+inCache(cached), order, results))
		targets = append(targets, verdicts(inCache(cached), results, qemu)...)
	}
	for _, cached := range []bool{false, true} {
		results, qemu, err := compare(ctx, rounds, w.decrypting(cached), w.decryptingByQEMU(cached))
		if err != nil {
			return nil, err
		}
		tables = append(tables, resultTable("Decrypt, "+inCache(cached), []string{byVmcrypt, qemu}, results))
	}
	header := []string{"encrypt", "is", "at most", "met"}
	return append(tables, table{"Against the targets (medians of the ratios of each round):", header, targets}), nil
}

func inCache(cached bool) string {
	if cached {
		return "the source in the page cache"
	}
	return "the source not in the page cache"
}

// verdicts compares results with what they should be.
func verdicts(when string, results map[string][]result, qemu string) [][]string {
	us := results[byVmcrypt]
	var rows [][]string
	add := func(what string, is, limit float64) { rows = append(rows, atMost(what+", "+when, is, limit)) }
	add("wall time, qemu-img = 1", ratio(us, results[qemu], wall), 0.6)
	add("CPU time, qemu-img = 1", ratio(us, results[qemu], cpu), 0.45)
	add("wall time, cp and fsync = 1", ratio(us, results[byCopying], wall), 0.7)
	add("wall time of the pipeline, without the cipher = 1", ratio(results[withCipher], results[withoutIt], wall), 1.05)
	add("peak memory in MiB", median(us, mib), 64)
	return rows
}

// openWorkshop makes the key manager. A section takes up to
// 14 GiB of the folder for temporary files, which TMPDIR names.
func openWorkshop(ctx context.Context) (w workshop, err error) {
	if w.folder, err = os.MkdirTemp("", "vmcrypt-performance-"); err != nil {
		return w, err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(w.folder)
		}
	}()
	if err := os.Setenv("VMCRYPT_HOME", w.in("home")); err != nil {
		return w, err
	}
	if err := os.WriteFile(w.in("passphrase"), []byte("vmcrypt"), 0o600); err != nil {
		return w, err
	}
	_, err = run(ctx, []string{ourBinary, "init"})
	return w, err
}

// makeThinDisk makes one of which every other 8 MiB are a hole.
func (w workshop) makeThinDisk() error { return makeDisk(w.in("plain"), 2*extentSize) }

// prepareSources makes what is decrypted.
func (w workshop) prepareSources(ctx context.Context) error {
	if err := w.makeThinDisk(); err != nil {
		return err
	}
	for _, command := range [][]string{
		{ourBinary, "encrypt", w.in("plain"), "--output", w.in("encrypted")},
		w.createLUKS("blank"),
		w.copyBlank("luks"),
		append(w.qemuConvert(qemuModes[0]), w.toLUKS("plain", "luks")...),
	} {
		if _, err := run(ctx, command); err != nil {
			return err
		}
	}
	return nil
}

// makeDisk makes a disk that has an extent of random data every so many bytes,
// and holes between them.
func makeDisk(path string, every int64) error {
	log.Printf("making a disk of %d GiB: %s", diskSize>>30, path)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	extent := make([]byte, extentSize)
	for at := int64(0); at < diskSize; at += every {
		_, _ = rand.Read(extent) // never fails
		if _, err := f.WriteAt(extent, at); err != nil {
			return err
		}
	}
	return errors.Join(f.Truncate(diskSize), f.Sync())
}

func (w workshop) encrypting(cached bool) []contestant {
	ready := w.ready("plain", cached)
	plain, out := w.in("plain"), w.in("out")
	return []contestant{
		{byVmcrypt, ready, []string{ourBinary, "encrypt", plain, "--output", out}},
		{withCipher, ready, self("encrypt", plain, out)},
		{withoutIt, ready, self("copy", plain, out)},
		{byCopying, ready, []string{"sh", "-c", `cp --sparse=always "$0" "$1" && sync "$1"`, plain, out}},
	}
}

func (w workshop) decrypting(cached bool) []contestant {
	return []contestant{
		{byVmcrypt, w.ready("encrypted", cached), []string{ourBinary, "decrypt", w.in("encrypted"), "--output", w.in("out")}},
	}
}

func (w workshop) encryptingByQEMU(cached bool) (all []contestant) {
	ready := w.ready("plain", cached)
	for _, mode := range qemuModes {
		all = append(all, contestant{called("qemu-img convert", mode), func(ctx context.Context) error {
			if err := ready(ctx); err != nil {
				return err
			}
			_, err := run(ctx, w.copyBlank("out"))
			return err
		}, append(w.qemuConvert(mode), w.toLUKS("plain", "out")...)})
	}
	return all
}

func (w workshop) decryptingByQEMU(cached bool) (all []contestant) {
	for _, mode := range qemuModes {
		all = append(all, contestant{called("qemu-img convert", mode), w.ready("luks", cached), append(w.qemuConvert(mode),
			"--image-opts", "driver=luks,key-secret=pass,file.filename="+w.in("luks"), "-O", "raw", w.in("out"))})
	}
	return all
}

func (w workshop) secret() []string {
	return []string{"--object", "secret,id=pass,file=" + w.in("passphrase")}
}

// createLUKS tries several times: qemu-img measures how fast it is first, and
// gives up where the clock is too coarse for that.
func (w workshop) createLUKS(name string) []string {
	create := append(append([]string{"qemu-img", "create", "-q"}, w.secret()...),
		"-f", "luks", "-o", "key-secret=pass,iter-time=100", w.in(name), fmt.Sprint(diskSize))
	return append([]string{"sh", "-c", `"$@" || "$@" || "$@" || "$@"`, "sh"}, create...)
}

// copyBlank gives an empty LUKS disk: always the same, so that none has other
// work to do.
func (w workshop) copyBlank(name string) []string {
	return []string{"cp", "--sparse=always", w.in("blank"), w.in(name)}
}

func (w workshop) qemuConvert(mode []string) []string {
	return append(append([]string{"qemu-img", "convert"}, w.secret()...), mode...)
}

func (w workshop) toLUKS(from, to string) []string {
	return []string{"-n", "--target-is-zero", "-f", "raw", w.in(from),
		"--target-image-opts", "driver=luks,key-secret=pass,file.filename=" + w.in(to)}
}

// ready makes all runs begin alike: without an output, with nothing left to be
// written, with memory at hand, and the source in the page cache or not.
func (w workshop) ready(source string, cached bool) func(context.Context) error {
	return func(ctx context.Context) error {
		for _, name := range []string{"out", "out.vmx"} {
			if err := os.Remove(w.in(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		unix.Sync()
		if err := dropFromCache(w.in(source)); err != nil {
			return err
		}
		if _, err := run(ctx, self("touch", fmt.Sprint(diskSize), "")); err != nil {
			return err
		}
		if cached {
			return readAll(w.in(source))
		}
		return nil
	}
}

func dropFromCache(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}

func readAll(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(io.Discard, f)
	return err
}
