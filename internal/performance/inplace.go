package main

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// The contestants in place that are compared with others.
const (
	vmcryptInPlace   = "vmcrypt encrypt"
	vmcryptToNewFile = "vmcrypt encrypt --output"
	vmcryptDecrypt   = "vmcrypt decrypt"
	vmcryptRekey     = "vmcrypt rekey --deep"
)

// cryptsetupMode is a way to run cryptsetup reencrypt.
type cryptsetupMode struct {
	name string
	args []string
	grow int64 // what the disk needs more space for than its data, in bytes
}

// cryptsetupModes are those ways of which the best counts. With a detached
// header, cryptsetup has its journal there, as large as the header's area for
// keys allows. With --reduce-device-size it has none, but moves all data by half
// of that size.
func (w workshop) cryptsetupModes() []cryptsetupMode {
	detached := []string{"--header", w.in("work/header")}
	return []cryptsetupMode{
		{"--header FILE", detached, 0},
		{"--header FILE --luks2-keyslots-size 64M", append(detached, "--luks2-keyslots-size", "64M"), 0},
		{"--reduce-device-size 32M", []string{"--reduce-device-size", "32M"}, 32 << 20},
	}
}

// measureInPlace compares how long it takes to encrypt a disk where it lies.
func measureInPlace(ctx context.Context, rounds int) ([]table, error) {
	w, err := openWorkshop(ctx)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(w.folder)
	if err := errors.Join(w.makeThinDisk(), makeDisk(w.in("dense"), extentSize)); err != nil {
		return nil, err
	}
	thin, err := contest(ctx, rounds, w.thinInPlace())
	if err != nil {
		return nil, err
	}
	dense, cryptsetup, err := compare(ctx, rounds, w.denseInPlace(), w.denseByCryptsetup())
	if err != nil {
		return nil, err
	}
	order := []string{vmcryptInPlace, vmcryptToNewFile, vmcryptDecrypt, vmcryptRekey}
	return []table{
		resultTable("A thin disk, every other 8 MiB a hole", order, thin),
		resultTable("A disk without holes", []string{vmcryptInPlace, cryptsetup}, dense),
		{"Against the targets (medians of the ratios of each round):", []string{"encrypt in place", "is", "at most", "met"},
			verdictsInPlace(thin, dense, cryptsetup)},
	}, nil
}

// verdictsInPlace compares results with what they should be.
func verdictsInPlace(thin, dense map[string][]result, cryptsetup string) [][]string {
	us, usDense := thin[vmcryptInPlace], dense[vmcryptInPlace]
	return [][]string{
		atMost("wall time, thin, to a new file = 1", ratio(us, thin[vmcryptToNewFile], wall), 1.8),
		atMost("wall time, without holes, cryptsetup = 1", ratio(usDense, dense[cryptsetup], wall), 0.8),
		atMost("peak memory in MiB, thin", median(us, mib), 64),
		atMost("peak memory in MiB, without holes", median(usDense, mib), 64),
	}
}

func (w workshop) thinInPlace() []contestant {
	disk := w.in("work/disk")
	encrypt := []string{ourBinary, "encrypt", disk}
	return []contestant{
		{vmcryptInPlace, w.fresh("plain"), encrypt},
		{vmcryptToNewFile, w.fresh("plain"), append(encrypt, "--output", w.in("work/out"))},
		{vmcryptDecrypt, w.fresh("plain", encrypt), []string{ourBinary, "decrypt", disk}},
		{vmcryptRekey, w.fresh("plain", encrypt), []string{ourBinary, "rekey", disk, "--deep"}},
	}
}

func (w workshop) denseInPlace() []contestant {
	return []contestant{{vmcryptInPlace, w.fresh("dense"), []string{ourBinary, "encrypt", w.in("work/disk")}}}
}

func (w workshop) denseByCryptsetup() (all []contestant) {
	disk := w.in("work/disk")
	for _, mode := range w.cryptsetupModes() {
		grow := []string{"truncate", "--size", fmt.Sprintf("+%d", mode.grow), disk}
		all = append(all, contestant{"cryptsetup reencrypt " + mode.name, w.fresh("dense", grow), w.reencrypt(mode)})
	}
	return all
}

// reencrypt encrypts by cryptsetup, with as little work for the passphrase as it
// takes, and ends when the data is on the disk. Only root may lock for it; here,
// nobody else has the disk.
func (w workshop) reencrypt(mode cryptsetupMode) []string {
	command := []string{"sh", "-c", `"$@" "$0" && sync "$0"`, w.in("work/disk"),
		"cryptsetup", "reencrypt", "--encrypt", "--resilience", "journal", "--batch-mode", "--disable-locks",
		"--cipher", "aes-xts-plain64", "--key-size", "512", "--sector-size", "512",
		"--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", w.in("passphrase")}
	return append(command, mode.args...)
}

// fresh makes a contestant begin with a fresh copy of the source, of which
// nothing is in the page cache.
func (w workshop) fresh(source string, commands ...[]string) func(context.Context) error {
	ready := w.ready("work/disk", false)
	return func(ctx context.Context) error {
		if err := w.restore(ctx, source, commands); err != nil {
			return err
		}
		return ready(ctx)
	}
}

// restore gives the folder "work" with nothing in it but "disk", a copy of the
// source, and has the commands work on it. The copy shares no blocks with the
// source: what is written to those would have to go elsewhere.
func (w workshop) restore(ctx context.Context, source string, commands [][]string) error {
	if err := errors.Join(os.RemoveAll(w.in("work")), os.Mkdir(w.in("work"), 0o700)); err != nil {
		return err
	}
	copied := []string{"cp", "--sparse=always", "--reflink=never", w.in(source), w.in("work/disk")}
	for _, command := range append([][]string{copied}, commands...) {
		if _, err := run(ctx, command); err != nil {
			return err
		}
	}
	return nil
}
