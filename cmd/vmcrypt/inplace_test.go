package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmcrypt/vmcrypt/agent"
	"github.com/vmcrypt/vmcrypt/blockcrypt"
	"github.com/vmcrypt/vmcrypt/dek"
	"github.com/vmcrypt/vmcrypt/image"
	"github.com/vmcrypt/vmcrypt/internal/config"
	"github.com/vmcrypt/vmcrypt/internal/secret"
	"github.com/vmcrypt/vmcrypt/internal/testtool"
	"github.com/vmcrypt/vmcrypt/kek"
	"github.com/vmcrypt/vmcrypt/kms"
	"github.com/vmcrypt/vmcrypt/testimages"
	"github.com/vmcrypt/vmcrypt/vmx"
)

// holedImage makes a disk of size bytes in which data and holes take turns, and
// some of the data are zeros.
func holedImage(t *testing.T, path string, size int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	random := rand.NewChaCha8([32]byte{1})
	const part = 64 << 10
	for at := int64(0); at < size; at += 2 * part {
		data := make([]byte, min(part, size-at))
		if _, err := random.Read(data[:len(data)/2]); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(data, at); err != nil {
			t.Fatal(err)
		}
	}
}

// environment is what the tests of this process get keys with.
func (h *home) environment() *environment {
	h.t.Helper()
	file := filepath.Join(h.dir, "config.yaml")
	cfg, err := config.Load(file)
	if err != nil {
		h.t.Fatal(err)
	}
	return &environment{config: cfg, home: kms.Home{Config: file, Dir: filepath.Join(h.dir, "kms")}}
}

// keyOf unwraps the DEK of an encrypted disk.
func (h *home) keyOf(rec *vmx.Record) *secret.Buffer {
	h.t.Helper()
	_, key := h.keysOf(rec)
	return key
}

// keysOf gives the KEK of an encrypted disk and its DEK.
func (h *home) keysOf(rec *vmx.Record) (wrapper *kek.Key, key *secret.Buffer) {
	h.t.Helper()
	to := rec.Recipients[0]
	cluster, err := h.environment().cluster(to.Alias)
	if err != nil {
		h.t.Fatal(err)
	}
	wrapper, err = cluster.Get(h.t.Context(), to.KEKID)
	if err != nil {
		h.t.Fatal(err)
	}
	key, err = dek.Unwrap(to.WrappedKey, wrapper.Material, dek.Binding{
		DiskUUID: rec.DiskUUID, Cipher: rec.Cipher, SectorSize: uint32(rec.SectorSize), Holes: rec.Holes, KEKID: to.KEKID,
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return wrapper, key
}

// isEncrypted checks that a disk of a target holds, byte for byte, what "encrypt
// --output" makes of plain with the same key, and the same holes.
func (h *home) isEncrypted(target, node, plain string) {
	h.t.Helper()
	t, err := agent.Open(target, "")
	if err != nil {
		h.t.Fatal(err)
	}
	d := t.Disks[slices.IndexFunc(t.Disks, func(d agent.Disk) bool { return d.Node == node })]
	if d.Record == nil || d.Record.State != vmx.StateEncrypted {
		h.t.Fatalf("disk %s of %s is not encrypted", node, target)
	}
	got, err := image.Inspect(d.Path, d.Format)
	if err != nil {
		h.t.Fatal(err)
	}
	want := filepath.Join(h.t.TempDir(), "want")
	h.encryptCopy(want, plain, d.Record)
	if sum(h.t, got.DataPath) != sum(h.t, want) {
		h.t.Fatalf("disk %s of %s is not what encrypt --output makes", node, target)
	}
	if a, b := holes(h.t, got.DataPath), holes(h.t, want); a != b {
		h.t.Errorf("disk %s of %s has %d bytes of holes, want %d", node, target, a, b)
	}
}

func (h *home) encryptCopy(to, plain string, rec *vmx.Record) {
	h.t.Helper()
	key := h.keyOf(rec)
	defer key.Destroy()
	cipher, err := blockcrypt.Engine{}.NewCipher(key.Bytes(), rec.SectorSize)
	if err != nil {
		h.t.Fatal(err)
	}
	transformed(h.t, to, plain, blockcrypt.Encryption(cipher, blockcrypt.HolePolicy(rec.Holes)))
}

// copyFile keeps holes where they are.
func copyFile(t *testing.T, to, from string) {
	t.Helper()
	transformed(t, to, from, image.Transform{})
}

func transformed(t *testing.T, to, from string, by image.Transform) {
	t.Helper()
	withoutForks(func() {
		src, err := image.Open(from, image.Raw, image.ReadOnly)
		if err != nil {
			t.Fatal(err)
		}
		defer src.Close()
		dst, err := image.Create(to, src.Size())
		if err != nil {
			t.Fatal(err)
		}
		defer dst.Close()
		if err := image.Copy(t.Context(), dst, src, by, nil); err != nil {
			t.Fatal(err)
		}
	})
}

// state is what status says of the only disk of a target.
func state(t *testing.T, target string) agent.DiskStatus {
	t.Helper()
	opened, err := agent.Open(target, "")
	if err != nil {
		t.Fatal(err)
	}
	s, err := opened.Status(nil)
	if err != nil {
		t.Fatal(err)
	}
	return s.Disks[0]
}

func TestInPlace(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	for _, test := range []struct {
		size  int64
		flags []string
	}{
		{1<<20 + 512, nil},
		{1 << 20, []string{"--sector-size", "4096"}},
		{1 << 20, []string{"--holes", "fill", "--zone", "8192"}},
		{1<<20 + 4096, []string{"--holes", "fill", "--sector-size", "4096", "--zone", "65536"}},
	} {
		t.Run(strings.Join(test.flags, " "), func(t *testing.T) {
			(&home{t, h.dir}).throughAll(test.size, test.flags...)
		})
	}
}

// throughAll encrypts, rekeys and decrypts an image in place.
func (h *home) throughAll(size int64, flags ...string) {
	h.t.Helper()
	dir := h.t.TempDir()
	plain, disk := filepath.Join(dir, "plain"), filepath.Join(dir, "disk.img")
	holedImage(h.t, plain, size)
	copyFile(h.t, disk, plain)
	h.ok(append([]string{"encrypt", disk}, flags...)...)
	h.isEncrypted(disk, "scsi0:0", plain)
	before := state(h.t, disk)
	encrypted := sum(h.t, disk)
	h.ok("rekey", disk, "--deep")
	h.isEncrypted(disk, "scsi0:0", plain)
	after := state(h.t, disk)
	if sum(h.t, disk) == encrypted || after.DiskUUID != before.DiskUUID || after.Recipients[0] == before.Recipients[0] {
		h.t.Errorf("rekeyed from %+v to %+v", before, after)
	}
	h.ok("decrypt", disk)
	if sum(h.t, disk) != sum(h.t, plain) {
		h.t.Error("the disk did not come back")
	}
	if got := fmt.Sprint(names(h.t, dir)); got != "[disk.img disk.img.vmx.vmcrypt-lock plain]" {
		h.t.Errorf("left behind: %s", got)
	}
	h.ok("encrypt", disk) // no mark is left that would say it were ciphertext
}

// TestInPlaceVM converts all disks of a VM, raw and VMDK, with one new key.
func TestInPlaceVM(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := testimages.VM(at("vm"), 1); err != nil {
		t.Fatal(err)
	}
	before := sums(t, at("vm"))
	if err := testimages.VM(at("plain"), 1); err != nil {
		t.Fatal(err)
	}
	target := at("vm/web01.vmx")
	h.ok("encrypt", target, "--disk", "scsi0:1")
	done := parseJSON[agent.Status](t, lastLine(h.ok("encrypt", target, "--json")))
	for _, d := range done.Disks {
		plain, err := image.Inspect(strings.Replace(d.File, at("vm"), at("plain"), 1), d.Format)
		if err != nil {
			t.Fatal(err)
		}
		h.isEncrypted(target, d.Node, plain.DataPath)
		if d.Node != "scsi0:1" && d.Recipients[0] == done.Disks[1].Recipients[0] {
			t.Errorf("disk %s was encrypted again, or under the key of another run", d.Node)
		}
	}
	if done.Disks[0].Recipients[0] != done.Disks[2].Recipients[0] {
		t.Error("the disks of one run do not share a key")
	}
	h.fails(exitFailure, []string{"already encrypted"}, "encrypt", target)
	h.ok("decrypt", target)
	h.fails(exitFailure, []string{"is plain"}, "decrypt", target)
	if err := os.Remove(target + ".vmcrypt-lock"); err != nil {
		t.Error(err)
	}
	if after := sums(t, at("vm")); after != before {
		t.Errorf("the VM came back as\n%snot as\n%s", after, before)
	}
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

// halfWay runs a conversion with small steps, and disturbs it amid one disk, which
// waits meanwhile with the first line of its progress: nobody reads until then.
func (h *home) halfWay(disturb func(cmd *exec.Cmd, out *os.File), args ...string) result {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), time.Minute)
	defer cancel()
	cmd := h.command(ctx, append(args, "--zone", "4096", "--json")...)
	var stderr bytes.Buffer
	out, in := fullPipe(h.t)
	cmd.Stdout, cmd.Stderr = in, &stderr
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	in.Close()
	waitUntilHeld(h.t, cmd.Process.Pid, args[1])
	disturb(cmd, out)
	time.Sleep(100 * time.Millisecond) // for a signal to get through
	lines, _ := io.ReadAll(out)
	_ = cmd.Wait()
	return result{strings.TrimLeft(string(lines), "\n"), stderr.String(), cmd.ProcessState.ExitCode()}
}

// fullPipe takes nothing more, until its empty lines are read.
func fullPipe(t *testing.T) (out, in *os.File) {
	t.Helper()
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	out, in = os.NewFile(uintptr(ends[0]), "out"), os.NewFile(uintptr(ends[1]), "in")
	t.Cleanup(func() { out.Close() })
	for {
		switch _, err := unix.Write(ends[1], []byte("\n")); err {
		case nil:
		case unix.EAGAIN:
			return out, in
		default:
			t.Fatal(err)
		}
	}
}

// waitUntilHeld waits until a process that converts a target takes no processor
// time any more, since nobody reads what it says.
func waitUntilHeld(t *testing.T, pid int, target string) {
	t.Helper()
	descriptor := target
	if !strings.HasSuffix(target, ".vmx") {
		descriptor += ".vmx"
	}
	still, before := 0, ""
	for range 3000 {
		time.Sleep(10 * time.Millisecond)
		now := processorTime(t, pid)
		if still++; now != before || !locked(t, descriptor+".vmcrypt-lock") || !amidConversion(target) {
			still, before = 0, now
		}
		if still == 15 {
			return
		}
	}
	t.Fatalf("nobody converts %s", target)
}

// processorTime of a process, see proc(5), in the kernel's words.
func processorTime(t *testing.T, pid int) string {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(after)
	return fields[11] + "+" + fields[12]
}

// locked looks without taking the lock itself, which would keep others out.
func locked(t *testing.T, path string) bool {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		return false
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Contains(locks, fmt.Appendf(nil, ":%d ", info.Sys().(*syscall.Stat_t).Ino))
}

func amidConversion(target string) bool {
	opened, err := agent.Open(target, "")
	return err == nil && opened.Unfinished()
}

// interrupted is interrupt that has to leave a disk in a state.
func (h *home) interrupted(want string, args ...string) {
	h.t.Helper()
	r := h.halfWay(func(cmd *exec.Cmd, _ *os.File) { _ = cmd.Process.Signal(os.Interrupt) }, args...)
	if r.code != exitUnfinished || !strings.Contains(r.stderr, "interrupted") || !strings.Contains(r.stderr, "--abort") {
		h.t.Fatalf("%v: exit code %d\n%s", args, r.code, r.stderr)
	}
	s := state(h.t, args[1])
	if s.State != want || s.Conversion == nil || s.Conversion.PositionBytes == nil {
		h.t.Fatalf("%v: %+v", args, s)
	}
}

// TestInPlaceInterrupted: the same command goes on, no other does, and --abort
// goes back.
func TestInPlaceInterrupted(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	dir := t.TempDir()
	plain, disk := filepath.Join(dir, "plain"), filepath.Join(dir, "disk.img")
	holedImage(t, plain, 2<<20)
	copyFile(t, disk, plain)
	isPlain := func() {
		t.Helper()
		if sum(t, disk) != sum(t, plain) || state(t, disk).State != agent.StatePlain {
			t.Fatal("the disk is not what it was")
		}
	}
	h.fails(exitFailure, []string{"nothing to abort"}, "encrypt", disk, "--abort")
	h.interrupted(agent.StateEncrypting, "encrypt", disk)
	h.fails(exitUnfinished, []string{"vmcrypt encrypt " + disk}, "decrypt", disk)
	h.fails(exitUnfinished, []string{"vmcrypt encrypt " + disk}, "rekey", disk, "--deep", "--abort")
	h.fails(exitUnfinished, []string{"vmcrypt encrypt " + disk}, "ls", disk)
	h.interrupted(agent.StateEncrypting, "encrypt", disk, "--abort")
	if s := state(t, disk); s.Conversion.Direction != agent.DirectionBackward {
		t.Errorf("aborted: %+v", s.Conversion)
	}
	h.interrupted(agent.StateEncrypting, "encrypt", disk) // and forward again
	h.ok("encrypt", disk, "--abort")
	isPlain()
	h.interrupted(agent.StateEncrypting, "encrypt", disk)
	h.ok("encrypt", disk)
	h.isEncrypted(disk, "scsi0:0", plain)

	h.interrupted(agent.StateRekeying, "rekey", disk, "--deep")
	h.fails(exitUnfinished, []string{"vmcrypt rekey --deep " + disk}, "encrypt", disk)
	h.ok("rekey", disk, "--deep", "--abort")
	h.isEncrypted(disk, "scsi0:0", plain)
	h.interrupted(agent.StateRekeying, "rekey", disk, "--deep")
	h.ok("rekey", disk, "--deep")
	h.isEncrypted(disk, "scsi0:0", plain)

	h.interrupted(agent.StateDecrypting, "decrypt", disk)
	h.ok("decrypt", disk, "--abort")
	h.isEncrypted(disk, "scsi0:0", plain)
	h.interrupted(agent.StateDecrypting, "decrypt", disk)
	h.ok("decrypt", disk)
	isPlain()
}

// TestInPlaceInterruptedVM: of several disks each is in a state of its own.
func TestInPlaceInterruptedVM(t *testing.T) {
	testtool.Long(t)
	t.Parallel()
	h := newHome(t)
	at := vm(t, threeDisks)
	for _, name := range []string{"a.img", "b.img", "c.img"} {
		holedImage(t, at("plain."+name), 2<<20)
		copyFile(t, at("vm/"+name), at("plain."+name))
	}
	target := at("vm/vm.vmx")
	h.interrupted(agent.StateEncrypting, "encrypt", target, "--disk", "scsi0:0", "--disk", "scsi0:1")
	h.fails(exitUnfinished, []string{"vmcrypt encrypt " + target + " --disk scsi0:0"}, "decrypt", target)
	h.ok("encrypt", target, "--disk", "scsi0:0")
	h.isEncrypted(target, "scsi0:0", at("plain.a.img"))
	h.fails(exitUnfinished, []string{"scsi0:1"}, "rekey", target, "--deep")
	h.ok("encrypt", target) // what was begun, and what was not
	for node, name := range map[string]string{"scsi0:0": "a.img", "scsi0:1": "b.img", "scsi0:2": "c.img"} {
		h.isEncrypted(target, node, at("plain."+name))
	}
	h.interrupted(agent.StateRekeying, "rekey", target, "--deep")
	r := parseJSON[agent.Status](t, lastLine(h.ok("rekey", target, "--deep", "--json")))
	if r.Disks[0].Recipients[0] != r.Disks[1].Recipients[0] || r.Disks[1].Recipients[0] != r.Disks[2].Recipients[0] {
		t.Error("the resumed rekey made another key")
	}
	h.ok("decrypt", target)
	for _, name := range []string{"a.img", "b.img", "c.img"} {
		if sum(t, at("vm/"+name)) != sum(t, at("plain."+name)) {
			t.Errorf("%s did not come back", name)
		}
	}
	if got := string(read(t, target)); got != threeDisks {
		t.Errorf("the descriptor became %q", got)
	}
}

// TestInPlaceJournal: it is private, and that of an encryption holds no plaintext.
func TestInPlaceJournal(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	disk := filepath.Join(t.TempDir(), "disk.img")
	holedImage(t, disk, 2<<20)
	plain := newBlockSet()
	eachPiece(t, disk, func(_ int64, b []byte) {
		for i := 0; i < len(b); i += 16 {
			if !bytes.Equal(b[i:i+16], make([]byte, 16)) {
				plain.add(b[i : i+16])
			}
		}
	})
	h.interrupted(agent.StateEncrypting, "encrypt", disk)
	journal := disk + ".vmcrypt-journal"
	if i := plain.find(read(t, journal)); i >= 0 {
		t.Errorf("plaintext in the journal, at %d", i)
	}
	info, err := os.Stat(journal)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if allocated := info.Sys().(*syscall.Stat_t).Blocks * 512; allocated < info.Size() {
		t.Errorf("%d bytes of the journal's %d have their space", allocated, info.Size())
	}
}

// TestInPlaceProgress: what was done before counts, whichever way it goes.
func TestInPlaceProgress(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	const size = 2 << 20
	disk := filepath.Join(t.TempDir(), "disk.img")
	holedImage(t, disk, size)
	goOn := func(done int64, args ...string) {
		t.Helper()
		first, last := progressOf(t, h.ok(append(args, "--json")...))
		if first.Done < done || first.Total != size || last.Done != size {
			t.Errorf("%v: from %+v to %+v, after %d", args, first, last, done)
		}
	}
	h.interrupted(agent.StateEncrypting, "encrypt", disk)
	goOn(*state(t, disk).Conversion.PositionBytes, "encrypt", disk)
	h.interrupted(agent.StateDecrypting, "decrypt", disk)
	const step = 4096 // may be on its way, and comes to its end before it is undone
	goOn(size-*state(t, disk).Conversion.PositionBytes-step, "decrypt", disk, "--abort")
}

// TestInPlaceIgnoredFlags: a flag that comes too late is not ignored in silence.
func TestInPlaceIgnoredFlags(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	disk := filepath.Join(t.TempDir(), "disk.img")
	holedImage(t, disk, 2<<20)
	goOn := func(warnings []string, args ...string) {
		t.Helper()
		r := h.run(args...)
		if r.code != exitDone {
			t.Fatalf("exit code %d, %s", r.code, r.stderr)
		}
		for _, w := range warnings {
			if !strings.Contains(r.stderr, w) {
				t.Errorf("no word of %q: %s", w, r.stderr)
			}
		}
		if n := strings.Count(r.stderr, "changes nothing"); n != len(warnings) {
			t.Errorf("%d warnings, want %d: %s", n, len(warnings), r.stderr)
		}
	}
	h.interrupted(agent.StateEncrypting, "encrypt", disk)
	kek := state(t, disk).Recipients[0].KEKID
	goOn(nil,
		"encrypt", disk, "--holes", "preserve", "--sector-size", "512", "--kek", kek, "--kms", "local", "--abort")
	h.interrupted(agent.StateEncrypting, "encrypt", disk)
	goOn([]string{"--holes fill", "--sector-size 4096", "--kms x", "--kek y"},
		"encrypt", disk, "--holes", "fill", "--sector-size=4096", "--kms", "x", "--kek", "y")
	if s := state(t, disk); s.Holes != "preserve" || s.SectorSize != 512 {
		t.Errorf("%+v", s)
	}
	h.interrupted(agent.StateRekeying, "rekey", disk, "--deep")
	goOn([]string{"--kek " + kek}, "rekey", "--deep", disk, "--kek", kek)
}

// TestInPlaceHints: the commands of a hint find the disk as the one that was
// interrupted did, and say which way each of them goes.
func TestInPlaceHints(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	disk := filepath.Join(t.TempDir(), "disk.vmdk")
	holedImage(t, disk, 2<<20)
	before := sum(t, disk)
	config := filepath.Join(h.dir, "config.yaml")
	encrypt := []string{"encrypt", disk, "--format", "raw", "--config=" + config}
	interrupted := func(hint string, args ...string) {
		t.Helper()
		r := h.halfWay(func(cmd *exec.Cmd, _ *os.File) { _ = cmd.Process.Signal(os.Interrupt) }, args...)
		said := parseJSON[struct{ Hint string }](t, r.stderr)
		if want := strings.ReplaceAll(hint, "COMMAND", "vmcrypt encrypt "+disk+" --format raw --config "+config); said.Hint != want {
			t.Errorf("%v: %q, want %q", args, said.Hint, want)
		}
	}
	interrupted("to finish it: COMMAND; to undo it: COMMAND --abort", encrypt...)
	interrupted("to go on going back: COMMAND --abort; to go forward again: COMMAND", append(encrypt, "--abort")...)
	h.ok(append(encrypt, "--abort")...)
	if sum(t, disk) != before {
		t.Error("the disk is not what it was")
	}
}

type progressLine struct {
	Type  string `json:"type"`
	Done  int64  `json:"doneBytes"`
	Total int64  `json:"totalBytes"`
}

func progressOf(t *testing.T, lines string) (first, last progressLine) {
	t.Helper()
	for text := range strings.Lines(lines) {
		line := parseJSON[progressLine](t, text)
		if line.Type != "progress" {
			continue
		}
		if first.Type == "" {
			first = line
		}
		if last.Done > line.Done {
			t.Errorf("%+v comes after %+v", line, last)
		}
		last = line
	}
	return first, last
}

// TestInPlaceNobodyReads: it stops, and not in silence.
func TestInPlaceNobodyReads(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	disk := filepath.Join(t.TempDir(), "disk.img")
	holedImage(t, disk, 2<<20)
	r := h.halfWay(func(_ *exec.Cmd, out *os.File) { out.Close() }, "encrypt", disk)
	if r.code != exitUnfinished || !strings.Contains(r.stderr, "vmcrypt encrypt "+disk) {
		t.Errorf("exit code %d, %s", r.code, r.stderr)
	}
	h.ok("encrypt", disk, "--abort")
}

// TestInPlaceEditedMeanwhile: what people write into the descriptor during a
// conversion stays there, unless it is the disk's record.
func TestInPlaceEditedMeanwhile(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	at := vm(t, "scsi0:0.fileName = \"a.img\"\n")
	holedImage(t, at("plain"), 2<<20)
	copyFile(t, at("vm/a.img"), at("plain"))
	target := at("vm/vm.vmx")
	edit := func(change func([]byte) []byte) func(*exec.Cmd, *os.File) {
		return func(*exec.Cmd, *os.File) { write(t, target, change(read(t, target))) }
	}
	const line = "memsize = \"4096\"\n"
	if r := h.halfWay(edit(func(b []byte) []byte { return append(b, line...) }), "encrypt", target); r.code != exitDone {
		t.Fatalf("exit code %d, %s", r.code, r.stderr)
	}
	h.isEncrypted(target, "scsi0:0", at("plain"))
	if !bytes.HasSuffix(read(t, target), []byte(line)) {
		t.Error("the new line is gone")
	}
	good := read(t, target)
	r := h.halfWay(edit(func([]byte) []byte { return good }), "rekey", target, "--deep")
	if r.code != exitUnfinished || !strings.Contains(r.stderr, "somebody else changed") {
		t.Errorf("exit code %d, %s", r.code, r.stderr)
	}
	h.fails(exitTampered, []string{"journal"}, "decrypt", target)
}

// TestInPlaceTampered: whatever does not fit ends the command before it has
// written anything.
func TestInPlaceTampered(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk.img")
	journal, descriptor := disk+".vmcrypt-journal", disk+".vmx"
	holedImage(t, disk, 4<<20)
	h.interrupted(agent.StateEncrypting, "encrypt", disk)
	goodJournal, goodDescriptor := read(t, journal), read(t, descriptor)
	refused := func(words []string, args ...string) {
		t.Helper()
		before := [3]string{sum(t, disk), fmt.Sprint(names(t, dir)), string(read(t, descriptor))}
		h.fails(exitTampered, words, args...)
		if after := [3]string{sum(t, disk), fmt.Sprint(names(t, dir)), string(read(t, descriptor))}; after != before {
			t.Errorf("%v changed something", args)
		}
		if err := os.RemoveAll(journal); err != nil {
			t.Fatal(err)
		}
		write(t, journal, goodJournal)
		write(t, descriptor, goodDescriptor)
	}
	edit := func(old, to string) {
		write(t, descriptor, []byte(strings.Replace(string(goodDescriptor), old, to, 1)))
	}

	bad := slices.Clone(goodJournal)
	bad[50] ^= 1 // in the header
	write(t, journal, bad)
	refused([]string{journal}, "encrypt", disk)
	if err := os.Remove(journal); err != nil {
		t.Fatal(err)
	}
	refused([]string{"missing"}, "encrypt", disk)
	if err := os.Remove(journal); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(disk, journal); err != nil {
		t.Fatal(err)
	}
	refused([]string{"symbolic link"}, "encrypt", disk)
	edit(`state = "encrypting"`, `state = "decrypting"`)
	refused([]string{"tampered"}, "decrypt", disk)
	for _, phase := range []string{"preparing", "converted", "reverted"} {
		edit(`phase = "converting"`, `phase = "`+phase+`"`)
		refused([]string{"tampered"}, "encrypt", disk)
		edit(`phase = "converting"`, `phase = "`+phase+`"`)
		refused([]string{"tampered"}, "encrypt", disk, "--abort")
	}
	if err := os.Remove(descriptor); err != nil {
		t.Fatal(err)
	}
	h.fails(exitTampered, []string{disk}, "encrypt", disk)
	write(t, descriptor, goodDescriptor)
	h.ok("encrypt", disk)
}

// TestInPlaceFlippedBits flips bits of each value of the record of a disk that is
// rekeyed: a few of them or, in long tests, one of each byte and all of those that
// tell of the conversion. Nothing is written then. It runs in this process, since
// there are so many.
func TestInPlaceFlippedBits(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	dir := t.TempDir()
	disk, plain := filepath.Join(dir, "disk.img"), filepath.Join(dir, "plain")
	holedImage(t, plain, 1<<20)
	copyFile(t, disk, plain)
	h.ok("encrypt", disk)
	h.interrupted(agent.StateRekeying, "rekey", disk, "--deep")
	good := read(t, disk+".vmx")
	found := vmcryptValue.FindAllSubmatchIndex(good, -1)
	if len(found) != 16 {
		t.Fatalf("%d values, want 16", len(found))
	}
	before := [3]string{sum(t, disk), sum(t, disk+".vmcrypt-journal"), fmt.Sprint(names(t, dir))}
	for _, m := range found {
		key := string(good[m[2]:m[3]])
		for at := m[4]; at < m[5]; at++ {
			for _, bit := range bitsToFlip(key) {
				bad := slices.Clone(good)
				bad[at] ^= 1 << bit
				write(t, disk+".vmx", bad)
				if code := h.rekeyHere(disk); !allowed(key, code) {
					t.Errorf("%q became %q: exit code %d", good[m[2]:m[5]], bad[m[2]:m[5]], code)
				}
			}
		}
	}
	if after := [3]string{sum(t, disk), sum(t, disk+".vmcrypt-journal"), fmt.Sprint(names(t, dir))}; after != before {
		t.Error("something was written")
	}
	write(t, disk+".vmx", good)
	h.ok("rekey", disk, "--deep")
	h.isEncrypted(disk, "scsi0:0", plain)
}

// bitsToFlip of a byte in the value of a key.
func bitsToFlip(key string) []int {
	long := os.Getenv("VMCRYPT_TEST_LONG") == "1"
	switch {
	case long && (key == "state" || key == "mac" || strings.HasPrefix(key, "conversion.")):
		return []int{0, 1, 2, 3, 4, 5, 6, 7}
	case long || rand.IntN(8) == 0:
		return []int{rand.IntN(8)}
	}
	return nil
}

// rekeyHere rekeys an image in this process, and gives the exit code.
func (h *home) rekeyHere(path string) int {
	e := h.environment()
	var err error
	withoutForks(func() {
		var target *agent.Target
		if target, err = agent.Open(path, ""); err == nil {
			_, err = e.host().Rekey(h.t.Context(), target, agent.RekeyOptions{})
		}
	})
	if err == nil {
		return exitDone
	}
	return exitCode(err)
}

// TestInPlaceOldDescriptor: a descriptor from before the conversion does not make
// it begin anew, not even where the disk can't be marked.
func TestInPlaceOldDescriptor(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	disk := filepath.Join(t.TempDir(), "disk.img")
	holedImage(t, disk, 4<<20)
	h.interrupted(agent.StateEncrypting, "encrypt", disk)
	if err := os.Remove(disk + ".vmx"); err != nil {
		t.Fatal(err)
	}
	_ = syscall.Removexattr(disk, "user.vmcrypt.disk")
	for _, args := range [][]string{{"encrypt", disk}, {"encrypt", disk, "--output", disk + ".enc"}, {"status", disk}} {
		h.fails(exitTampered, []string{"journal"}, args...)
	}
}

// TestInPlaceOtherName: a disk that is converted by the descriptor of its VM, and
// then named itself. Nobody is led to remove what makes it readable.
func TestInPlaceOtherName(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	at := vm(t, "scsi0:0.fileName = \"a.img\"\n")
	holedImage(t, at("vm/a.img"), 2<<20)
	h.interrupted(agent.StateEncrypting, "encrypt", at("vm/vm.vmx"))
	for _, args := range [][]string{{"encrypt"}, {"encrypt", "--output", at("out")}, {"decrypt"}, {"status"}, {"ls"}} {
		r := h.run(append(args, at("vm/a.img"))...)
		if r.code != exitTampered || strings.Contains(r.stderr, "remove") {
			t.Errorf("%v: exit code %d, %s", args, r.code, r.stderr)
		}
		if args[0] != "decrypt" && args[0] != "ls" && !strings.Contains(r.stderr, "another descriptor") {
			t.Errorf("%v: %s", args, r.stderr)
		}
	}
	h.ok("encrypt", at("vm/vm.vmx"), "--abort")
}

// TestInPlaceStatus: what it says of a rekey's keys, and of a journal that does not
// tell how far it is.
func TestInPlaceStatus(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	disk := filepath.Join(t.TempDir(), "disk.img")
	holedImage(t, disk, 2<<20)
	h.ok("encrypt", disk)
	old := state(t, disk).Recipients[0].KEKID
	says := func(words ...string) {
		t.Helper()
		text := h.ok("status", disk)
		for _, word := range words {
			if !strings.Contains(text, word) {
				t.Errorf("no word of %q: %s", word, text)
			}
		}
	}
	h.interrupted(agent.StateRekeying, "rekey", disk, "--deep")
	says("done up to", "needs KEK "+old, "opened by KEK "+state(t, disk).Recipients[0].KEKID)
	if s := parseJSON[agent.Status](t, h.ok("status", disk, "--json")).Disks[0]; s.Previous[0].KEKID != old {
		t.Errorf("%+v", s)
	}
	journal := disk + ".vmcrypt-journal"
	good := read(t, journal)
	write(t, journal, good[:100])
	says("journal unreadable")
	remove(t, journal)
	says("journal missing")
	write(t, journal, good)
	h.ok("rekey", disk, "--deep")
	if s := h.ok("status", disk, "--json"); strings.Contains(s, "previous") {
		t.Error(s)
	}
}

// TestInPlaceRefused: what can't be converted in place is left as it is.
func TestInPlaceRefused(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	at := vm(t, threeDisks, "a.img", "b.img", "c.img")
	target := at("vm/vm.vmx")
	before := read(t, target)
	link := func(do func(string, string) error, from, to string) {
		t.Helper()
		if err := do(from, to); err != nil {
			t.Fatal(err)
		}
	}
	link(os.Link, at("vm/a.img"), at("other"))
	h.fails(exitFailure, []string{"hard links", "a.img", "--output"}, "encrypt", target)
	link(os.Symlink, at("vm/b.img"), at("link.img"))
	h.fails(exitFailure, []string{"symbolic link", at("vm/b.img")}, "encrypt", at("link.img"))
	if err := os.Rename(at("vm/c.img"), at("c.img")); err != nil {
		t.Fatal(err)
	}
	link(os.Symlink, at("c.img"), at("vm/c.img"))
	if err := os.Remove(at("other")); err != nil {
		t.Fatal(err)
	}
	h.fails(exitFailure, []string{"not in the VM's folder", "c.img"}, "encrypt", target)
	write(t, target, append(before, "checkpoint.vmState = \"vm.vmss\"\n"...))
	h.fails(exitFailure, []string{"suspended"}, "encrypt", target, "--disk", "scsi0:0")
	write(t, target, []byte("scsi0:0.fileName = \"a.img\"\nscsi0:1.fileName = \"./a.img\"\n"))
	h.fails(exitFailure, []string{"same file"}, "encrypt", target, "--disk", "scsi0:0")
	write(t, target, before)
	for _, name := range []string{"vm/a.img", "vm/b.img", "c.img"} {
		if s := state(t, at(name)); s.State != agent.StatePlain {
			t.Errorf("%s: %+v", name, s)
		}
	}
	h.ok("encrypt", target, "--disk", "scsi0:2")
	h.fails(exitUsage, []string{"--zone"}, "encrypt", target, "--zone", "5000")
}

// TestInPlaceLongExtent: what lies behind the end of the disk would stay plain.
func TestInPlaceLongExtent(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	dir := t.TempDir()
	disk := flatVMDK(t, dir, "w")
	extent := filepath.Join(dir, "w-flat.vmdk")
	before := read(t, extent)
	write(t, extent, append(slices.Clone(before), "more of it"...))
	h.fails(exitFailure, []string{"w-flat.vmdk has 10 bytes more", "--output"}, "encrypt", disk)
	write(t, extent, before)
	h.interrupted(agent.StateEncrypting, "encrypt", disk)
	write(t, extent, append(read(t, extent), "more of it"...))
	h.ok("encrypt", disk, "--abort")
	if got := string(read(t, extent)); got != string(before)+"more of it" {
		t.Error("the disk did not come back")
	}
}

// TestInPlaceLockOwner: root leaves no lock that keeps the disk's owner out.
func TestInPlaceLockOwner(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	h := newHome(t)
	at := vm(t, "scsi0:0.fileName = \"a.img\"\n", "a.img", "b.img")
	const image, descriptor = 12345, 12346
	for name, owner := range map[string]int{"vm/b.img": image, "vm/vm.vmx": descriptor} {
		if err := os.Chown(at(name), owner, owner); err != nil {
			t.Fatal(err)
		}
	}
	for target, owner := range map[string]uint32{"vm/b.img": image, "vm/vm.vmx": descriptor} {
		h.ok("encrypt", at(target))
		lock := strings.TrimSuffix(at(target), ".vmx") + ".vmx.vmcrypt-lock"
		info, err := os.Stat(lock)
		if err != nil {
			t.Fatal(err)
		}
		if stat := info.Sys().(*syscall.Stat_t); stat.Uid != owner || stat.Gid != owner {
			t.Errorf("%s belongs to %d:%d", lock, stat.Uid, stat.Gid)
		}
		// One that is there may be another's, put in its place.
		if err := os.Chown(lock, 0, 0); err != nil {
			t.Fatal(err)
		}
		h.ok("decrypt", at(target))
		if info, err = os.Stat(lock); err != nil || info.Sys().(*syscall.Stat_t).Uid != 0 {
			t.Errorf("%v, %v", info, err)
		}
	}
}

// TestInPlaceInUse: nobody else has the disk, and no other vmcrypt is at it.
func TestInPlaceInUse(t *testing.T) {
	h := newHome(t)
	disk := filepath.Join(t.TempDir(), "disk.img")
	smallImage(t, disk)
	f, err := image.Open(disk, image.Raw, image.ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	h.fails(exitInUse, []string{"disk.img", "in use"}, "encrypt", disk)
	f.Close()
	lock, err := os.OpenFile(disk+".vmx.vmcrypt-lock", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	taken := syscall.Flock_t{Type: syscall.F_WRLCK}
	if err := syscall.FcntlFlock(lock.Fd(), 37 /* F_OFD_SETLK */, &taken); err != nil {
		t.Fatal(err)
	}
	h.fails(exitInUse, []string{"vmcrypt-lock", "in use"}, "encrypt", disk)
}

// smallDisk mounts a file system with so many MiB of room, and gives what makes
// more.
func smallDisk(t *testing.T, kind string, mib int) (dir string, grow func(mib int)) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can mount a small file system")
	}
	dir = t.TempDir()
	mountSmall(t, kind, dir)
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	ballast, err := os.Create(filepath.Join(dir, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ballast.Close() })
	var stat syscall.Statfs_t
	if err := syscall.Statfs(dir, &stat); err != nil {
		t.Fatal(err)
	}
	size := int64(stat.Bavail)*stat.Bsize - int64(mib)<<20
	if err := syscall.Fallocate(int(ballast.Fd()), 0, 0, size); err != nil {
		t.Fatal(err)
	}
	return dir, func(more int) {
		t.Helper()
		size -= int64(more) << 20
		if err := ballast.Truncate(size); err != nil {
			t.Fatal(err)
		}
	}
}

// mountSmall mounts a new file system of 16 MiB. ext4 keeps what it had reserved
// when there is no room for the rest; tmpfs doesn't.
func mountSmall(t *testing.T, kind, dir string) {
	t.Helper()
	if kind == "tmpfs" {
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=16m"); err != nil {
			t.Skipf("mount a tmpfs: %v", err)
		}
		return
	}
	mke2fs, mount := testtool.Need(t, "mke2fs"), testtool.Need(t, "mount")
	file := filepath.Join(t.TempDir(), "fs")
	if out, err := exec.Command(mke2fs, "-q", "-t", kind, "-m", "0", file, "16M").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err := exec.Command(mount, "-o", "loop", file, dir).CombinedOutput(); err != nil {
		t.Skipf("mount %s: %v: %s", kind, err, out)
	}
}

// TestInPlaceNoSpace: where there is no room for the journal, or none to fill
// holes, the conversion stops so that it can go on.
func TestInPlaceNoSpace(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	for _, kind := range []string{"tmpfs", "ext4"} {
		t.Run(kind, func(t *testing.T) { (&home{t, h.dir}).noSpaceOn(kind) })
	}
}

func (h *home) noSpaceOn(kind string) {
	t := h.t
	plain := filepath.Join(t.TempDir(), "plain")
	holedImage(t, plain, 4<<20)
	dir, grow := smallDisk(t, kind, 4)
	disk := filepath.Join(dir, "disk.img")
	copyFile(t, disk, plain)
	stops := func(phase string, args ...string) {
		t.Helper()
		h.fails(exitUnfinished, []string{"no space left", "vmcrypt encrypt " + disk}, args...)
		if s := state(t, disk); s.State != agent.StateEncrypting || s.Conversion.Phase != phase {
			t.Errorf("%+v", s)
		}
	}
	stops(vmx.PhasePreparing, "encrypt", disk)
	if _, err := os.Lstat(disk + ".vmcrypt-journal"); err == nil {
		t.Error("a part of a journal takes the room that is left")
	}
	h.ok("encrypt", disk, "--abort")
	same(t, disk, plain)
	stops(vmx.PhasePreparing, "encrypt", disk, "--holes", "fill")
	stops(vmx.PhaseConverting, "encrypt", disk, "--zone", "65536")
	stops(vmx.PhaseConverting, "encrypt", disk)
	grow(1)
	h.ok("encrypt", disk)
	h.isEncrypted(disk, "scsi0:0", plain)
	h.ok("decrypt", disk, "--zone", "65536")
	same(t, disk, plain)
	stops(vmx.PhasePreparing, "encrypt", disk)
	h.ok("encrypt", disk, "--abort")
	same(t, disk, plain)
}

func same(t *testing.T, a, b string) {
	t.Helper()
	if sum(t, a) != sum(t, b) {
		t.Errorf("%s is not what %s is", a, b)
	}
}
