package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// vm makes a folder with a VM of raw disks, and what else is said, and returns a
// function that names a file beside that folder.
func vm(t *testing.T, descriptor string, disks ...string) (at func(string) string) {
	t.Helper()
	dir := t.TempDir()
	at = func(name string) string { return filepath.Join(dir, name) }
	if err := os.Mkdir(at("vm"), 0o755); err != nil {
		t.Fatal(err)
	}
	for i, name := range disks {
		write(t, at("vm/"+name), []byte(strings.Repeat(fmt.Sprintf("disk %03d of it ", i), 32*512/15+1)[:32*512]))
	}
	write(t, at("vm/vm.vmx"), []byte(descriptor))
	return at
}

const threeDisks = `scsi0:0.fileName = "a.img"
scsi0:1.fileName = "b.img"
scsi0:2.fileName = "c.img"
`

// TestUnchosenDisksAreChecked: what comes along as it is must be what the
// descriptor says, or the copy would make a swap look right.
func TestUnchosenDisksAreChecked(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	at := vm(t, threeDisks, "a.img", "b.img", "c.img")
	h.ok("encrypt", at("vm/vm.vmx"), "--output", at("enc"))
	swapFiles(t, at("enc/b.img"), at("enc/c.img"))
	h.fails(exitTampered, []string{"is disk"}, "status", at("enc/vm.vmx"))
	h.fails(exitTampered, []string{"is disk"}, "decrypt", at("enc/vm.vmx"), "--disk", "scsi0:0", "--output", at("dec"))
	swapFiles(t, at("enc/b.img"), at("enc/c.img"))

	lines := strings.SplitAfter(string(read(t, at("enc/vm.vmx"))), "\n")
	var kept strings.Builder
	for _, line := range lines {
		if !strings.HasPrefix(line, "scsi0:2.vmcrypt.") {
			kept.WriteString(line)
		}
	}
	write(t, at("enc/vm.vmx"), []byte(kept.String()))
	for _, args := range [][]string{{"status"}, {"decrypt", "--disk", "scsi0:0", "--output", at("dec")},
		{"encrypt", "--disk", "scsi0:2", "--output", at("dec")}} {
		h.fails(exitTampered, []string{"c.img", "marked as encrypted"}, append(args, at("enc/vm.vmx"))...)
	}
}

func swapFiles(t *testing.T, a, b string) {
	t.Helper()
	for _, step := range [][2]string{{a, a + ".x"}, {b, a}, {a + ".x", b}} {
		if err := os.Rename(step[0], step[1]); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAbsentDisks: a disk that is not present is neither left plain nor left out
// unnoticed.
func TestAbsentDisks(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	at := vm(t, threeDisks+"scsi0:1.present = \"FALSE\"\n", "a.img", "b.img", "c.img")
	unchanged(t, at("."), func() {
		h.fails(exitFailure, []string{"scsi0:1", "not present", "--disk"}, "encrypt", at("vm/vm.vmx"), "--output", at("enc"))
	})
	h.ok("encrypt", at("vm/vm.vmx"), "--output", at("enc"), "--disk", "scsi0:0", "--disk", "scsi0:2")
	if got := fmt.Sprint(names(t, at("enc"))); got != "[a.img c.img vm.vmx]" {
		t.Errorf("the output has %s", got)
	}
	if err := os.Remove(at("vm/b.img")); err != nil {
		t.Fatal(err)
	}
	h.ok("encrypt", at("vm/vm.vmx"), "--output", at("enc2")) // a leftover of the descriptor, no disk
}

// TestHiddenEncryptedDisk: who writes the descriptor can't make an encrypted disk
// go unnoticed.
func TestHiddenEncryptedDisk(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	at := vm(t, threeDisks, "a.img", "b.img", "c.img")
	h.ok("encrypt", at("vm/vm.vmx"), "--output", at("enc"))
	good := read(t, at("enc/vm.vmx"))
	for i, line := range []string{`scsi0:1.present = "FALSE"`, `scsi0:1.deviceType = "cdrom-image"`} {
		write(t, at("enc/vm.vmx"), append(good, line+"\n"...))
		out := at(fmt.Sprintf("dec%d", i))
		h.ok("decrypt", at("enc/vm.vmx"), "--output", out)
		if sum(t, filepath.Join(out, "b.img")) != sum(t, at("vm/b.img")) {
			t.Errorf("%s: the disk was not decrypted", line)
		}
	}
}

func TestCompanions(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	at := vm(t, threeDisks+`nvram = "sub/fw.nvram"
sata0:0.fileName = "cd.iso"
serial0.fileName = "console"
floppy0.fileName = "/etc/passwd"
`, "a.img", "b.img", "c.img", "vm.vmsd", "cd.iso", "vm.prod.img", "vm.prod.vmx", "vm.vmem", "vmware.log")
	if err := os.Mkdir(at("vm/sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, at("vm/sub/fw.nvram"), []byte("firmware"))
	if err := syscall.Mkfifo(at("vm/console"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.ok("encrypt", at("vm/vm.vmx"), "--output", at("enc"))
	if got := fmt.Sprint(names(t, at("enc"))); got != "[a.img b.img c.img cd.iso sub vm.vmsd vm.vmx]" {
		t.Errorf("the output has %s", got)
	}
	if string(read(t, at("enc/sub/fw.nvram"))) != "firmware" {
		t.Error("nvram was not taken along")
	}
	if err := os.Remove(at("vm/cd.iso")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", at("vm/cd.iso")); err != nil {
		t.Fatal(err)
	}
	h.fails(exitFailure, []string{"cd.iso"}, "encrypt", at("vm/vm.vmx"), "--output", at("enc2"))
}

// TestUnchosenDisksOfTheHost: a descriptor can't have files of the host copied.
func TestUnchosenDisksOfTheHost(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	at := vm(t, threeDisks, "a.img", "b.img", "c.img")
	if err := os.Rename(at("vm/c.img"), at("host-file")); err != nil {
		t.Fatal(err)
	}
	write(t, at("vm/vm.vmx"), []byte(strings.Replace(threeDisks, "c.img", at("host-file"), 1)))
	h.fails(exitFailure, []string{"scsi0:2", "host-file"}, "encrypt", at("vm/vm.vmx"), "--disk", "scsi0:0", "--output", at("enc"))
	write(t, at("vm/vm.vmx"), []byte(threeDisks))
	if err := os.Symlink(at("host-file"), at("vm/c.img")); err != nil {
		t.Fatal(err)
	}
	h.fails(exitFailure, []string{"scsi0:2", "c.img"}, "encrypt", at("vm/vm.vmx"), "--disk", "scsi0:0", "--output", at("enc"))
}

// TestFoldersThatAreLinks: a link in the way to a file leads out of the VM's
// folder too.
func TestFoldersThatAreLinks(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	at := vm(t, "scsi0:0.fileName = \"a.img\"\nscsi0:1.fileName = \"sub/root.key\"\n", "a.img")
	if err := os.Symlink(filepath.Join(h.dir, "kms"), at("vm/sub")); err != nil {
		t.Fatal(err)
	}
	h.fails(exitFailure, []string{"root.key"}, "encrypt", at("vm/vm.vmx"), "--disk", "scsi0:0", "--output", at("enc"))
	write(t, at("vm/vm.vmx"), []byte("scsi0:0.fileName = \"a.img\"\nnvram = \"sub/root.key\"\n"))
	h.fails(exitFailure, []string{"root.key"}, "encrypt", at("vm/vm.vmx"), "--output", at("enc"))
}

// TestCompanionInTheWay: no file of the VM is lost to another of the same name.
func TestCompanionInTheWay(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	at := vm(t, threeDisks, "a.img", "b.img", "c.img", "vm.nvram")
	if err := os.Rename(at("vm/c.img"), at("vm.nvram")); err != nil {
		t.Fatal(err)
	}
	write(t, at("vm/vm.vmx"), []byte(strings.Replace(threeDisks, "c.img", "../vm.nvram", 1)))
	h.fails(exitFailure, []string{"vm.nvram", "scsi0:2"}, "encrypt", at("vm/vm.vmx"), "--output", at("enc"))
}

// TestNamesDriveNoTerminal: a descriptor's names can neither colour nor forge
// what the administrator reads.
func TestNamesDriveNoTerminal(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	at := vm(t, "scsi0:0.fileName = \"no|1B[31m|0Avmcrypt: all is well.img\"\n")
	r := h.run("status", at("vm/vm.vmx"))
	if r.code != exitFailure || strings.Contains(r.stderr, "\x1b") || strings.Contains(r.stderr, "\nvmcrypt: all") {
		t.Errorf("exit code %d, %q", r.code, r.stderr)
	}
}

func TestFullStandardOutput(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer full.Close()
	at := vm(t, threeDisks, "a.img", "b.img", "c.img")
	cmd := h.command(t.Context(), "status", at("vm/vm.vmx"))
	cmd.Stdout = full
	if err := cmd.Run(); err == nil || cmd.ProcessState.ExitCode() != exitFailure {
		t.Errorf("%v, want exit code %d", err, exitFailure)
	}
}

func TestSuspendedVM(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	at := vm(t, threeDisks+"checkpoint.vmState = \"vm.vmss\"\n", "a.img", "b.img", "c.img")
	h.fails(exitFailure, []string{"suspended", "vm.vmss"}, "encrypt", at("vm/vm.vmx"), "--output", at("enc"))
}

func TestOneFileForTwoDisks(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	at := vm(t, "scsi0:0.fileName = \"a.img\"\nscsi0:1.fileName = \"./a.img\"\n", "a.img")
	h.fails(exitFailure, []string{"a.img", "scsi0:0", "scsi0:1"}, "encrypt", at("vm/vm.vmx"), "--output", at("enc"))
}

// TestPlaintextIsPrivate: what anyone may read encrypted, only its owner may read
// decrypted.
func TestPlaintextIsPrivate(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	at := vm(t, threeDisks, "a.img", "b.img", "c.img")
	for _, name := range []string{"a.img", "b.img", "c.img", "vm.vmx"} {
		if err := os.Chmod(at("vm/"+name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	h.ok("encrypt", at("vm/vm.vmx"), "--output", at("enc"))
	h.ok("decrypt", at("enc/vm.vmx"), "--output", at("dec"))
	h.ok("encrypt", at("vm/a.img"), "--output", at("a.enc"))
	h.ok("decrypt", at("a.enc"), "--output", at("a.dec"))
	for name, want := range map[string]os.FileMode{
		"enc": 0o755, "enc/a.img": 0o644, "a.enc": 0o644, "dec": 0o700, "dec/a.img": 0o600, "a.dec": 0o600,
	} {
		info, err := os.Stat(at(name))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want mode %04o", name, info.Mode(), err, want)
		}
	}
}

func TestOutputNames(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	at := vm(t, threeDisks, "a.img", "b.img", "c.img")
	unchanged(t, at("vm"), func() {
		h.fails(exitFailure, []string{"out.vmx"}, "encrypt", at("vm/a.img"), "--output", at("vm/out.vmx"))
		h.fails(exitFailure, []string{"out.vmdk"}, "encrypt", at("vm/a.img"), "--output", at("vm/out.vmdk"))
	})
}

// TestFlagWithoutValue: the flag must not swallow what is not its value.
func TestFlagWithoutValue(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	at := vm(t, threeDisks, "a.img", "b.img", "c.img")
	for _, flag := range []string{"--output", "-o", "--disk", "--kms", "--kek", "--sector-size", "--holes", "--format", "--config"} {
		h.fails(exitUsage, []string{flag}, "encrypt", at("vm/a.img"), flag)
		h.fails(exitUsage, []string{flag}, "encrypt", at("vm/a.img"), flag, "--json")
	}
}
