package main

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmcrypt/vmcrypt/agent"
	"github.com/vmcrypt/vmcrypt/image"
	"github.com/vmcrypt/vmcrypt/internal/testtool"
	"github.com/vmcrypt/vmcrypt/testimages"
)

// grubImages are real disks: a CD and a floppy that boot.
var grubImages = []string{
	"/usr/lib/grub-rescue/grub-rescue-cdrom.iso",
	"/usr/lib/grub-rescue/grub-rescue-floppy.img",
	"/usr/lib/grub-rescue/grub-rescue-usb.img",
}

func TestSampleImagesComeBack(t *testing.T) {
	testtool.Long(t)
	t.Parallel()
	h := newHome(t)
	dir := t.TempDir()
	if err := testimages.Generate(filepath.Join(dir, "samples"), 1); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"gpt.img", "mbr.img", "cd.iso", "boot.img", "thin.img", "odd.img"} {
		t.Run(name, func(t *testing.T) {
			h := &home{t, h.dir}
			h.roundTrip(filepath.Join(dir, "samples", name), "--sector-size", "512")
			h.roundTrip(filepath.Join(dir, "samples", name), "--holes", "fill")
		})
	}
}

func TestSectorsOf4096ComeBack(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "gpt.img")
	if _, err := testimages.GPT(path, 1); err != nil {
		t.Fatal(err)
	}
	h.roundTrip(path, "--sector-size", "4096")

	odd := filepath.Join(dir, "odd.img")
	if err := testimages.Odd(odd, 1); err != nil {
		t.Fatal(err)
	}
	unchanged(t, dir, func() {
		h.fails(exitFailure, []string{"odd.img", "--sector-size 512"},
			"encrypt", odd, "--output", filepath.Join(dir, "out"), "--sector-size", "4096")
	})
}

func TestRealImagesComeBack(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	for _, path := range grubImages {
		testtool.NeedFile(t, path, "grub-rescue-pc")
		t.Run(filepath.Base(path), func(t *testing.T) {
			(&home{t, h.dir}).roundTrip(wholeSectors(t, path))
		})
	}
}

// wholeSectors copies a file, and fills up its last sector as QEMU does.
func wholeSectors(t *testing.T, path string) string {
	data := read(t, path)
	data = append(data, make([]byte, (512-len(data)%512)%512)...)
	copied := filepath.Join(t.TempDir(), filepath.Base(path))
	write(t, copied, data)
	return copied
}

func TestLargeFilesystemComesBack(t *testing.T) {
	t.Parallel()
	testtool.Long(t)
	path := filepath.Join(t.TempDir(), "share.img")
	execute(t, exec.Command(testtool.Need(t, "mke2fs"), "-q", "-t", "ext4", "-d", "/usr/share", path, "2G"))
	newHome(t).roundTrip(path)
}

func execute(t *testing.T, cmd *exec.Cmd) []byte {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	return out
}

// roundTrip encrypts and decrypts an image, looks at the ciphertext between the
// two, and compares what came back.
func (h *home) roundTrip(path string, flags ...string) {
	h.t.Helper()
	dir := h.t.TempDir()
	encrypted, decrypted := filepath.Join(dir, "encrypted"), filepath.Join(dir, "decrypted")
	h.ok(append([]string{"encrypt", path, "--output", encrypted}, flags...)...)
	checkNothingShows(h.t, path, encrypted)
	h.ok("decrypt", encrypted, "--output", decrypted)
	if sum(h.t, path) != sum(h.t, decrypted) {
		h.t.Errorf("%s did not come back", path)
	}
	if os.Remove(encrypted) != nil || os.Remove(decrypted) != nil {
		h.t.Error("outputs missing")
	}
}

// checkNothingShows fails if 16 bytes of plaintext that begin at a multiple of 16
// stand anywhere in the ciphertext, holes left out. (Any run of 31 plaintext
// bytes has such a block.) Of large images it looks for the blocks of a part
// everywhere, and for the others at their own place.
func checkNothingShows(t *testing.T, plain, encrypted string) {
	t.Helper()
	known := newBlockSet()
	eachPiece(t, plain, func(_ int64, b []byte) { known.add(b) })
	f, err := os.Open(plain)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	same := make([]byte, 1<<20)
	eachPiece(t, encrypted, func(offset int64, b []byte) {
		if i := known.find(b); i >= 0 {
			t.Fatalf("16 bytes of %s stand in the ciphertext at %d", plain, offset+int64(i))
		}
		if _, err := f.ReadAt(same[:len(b)], offset); err != nil {
			t.Fatal(err)
		}
		for i := 0; i+16 <= len(b); i += 16 {
			if bytes.Equal(same[i:i+16], b[i:i+16]) {
				t.Fatalf("block at %d is not encrypted", offset+int64(i))
			}
		}
	})
}

// blockSet is a set of 16-byte blocks. A table of their first bytes keeps it from
// hashing at every offset that it is asked about.
type blockSet struct {
	blocks map[[16]byte]bool
	first  []bool
}

func newBlockSet() *blockSet {
	return &blockSet{blocks: make(map[[16]byte]bool), first: make([]bool, 1<<24)}
}

func (s *blockSet) add(b []byte) {
	for i := 0; i+16 <= len(b) && len(s.blocks) < 1<<18; i += 16 {
		s.blocks[[16]byte(b[i:])] = true
		s.first[binary.LittleEndian.Uint32(b[i:])>>8] = true
	}
}

// find returns the first offset in b where a block of the set stands, or -1.
func (s *blockSet) find(b []byte) int {
	for i := 0; i+16 <= len(b); i++ {
		if s.first[binary.LittleEndian.Uint32(b[i:])>>8] && s.blocks[[16]byte(b[i:])] {
			return i
		}
	}
	return -1
}

// extentsOf maps the data and holes of a file.
func extentsOf(t *testing.T, path string) (extents []image.Extent) {
	t.Helper()
	withoutForks(func() {
		f, err := image.Open(path, image.Raw, image.ReadOnly)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if extents, err = f.Extents(0, f.Size()); err != nil {
			t.Fatal(err)
		}
	})
	return extents
}

// eachPiece hands over the parts of a file that hold data, in pieces of up to
// 1 MiB.
func eachPiece(t *testing.T, path string, use func(offset int64, b []byte)) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for _, e := range extentsOf(t, path) {
		for at, end := e.Offset, e.Offset+e.Length; at < end && !e.Hole; {
			b := buf[:min(int64(len(buf)), end-at)]
			if _, err := f.ReadAt(b, at); err != nil {
				t.Fatal(err)
			}
			use(at, b)
			at += int64(len(b))
		}
	}
}

func TestThinDiskStaysThin(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := testimages.Thin(at("thin"), 1); err != nil {
		t.Fatal(err)
	}
	h.ok("encrypt", at("thin"), "--output", at("preserved"))
	h.ok("encrypt", at("thin"), "--output", at("filled"), "--holes", "fill")
	h.ok("decrypt", at("preserved"), "--output", at("back"))
	for _, name := range []string{"preserved", "back"} {
		if got, want := holes(t, at(name)), holes(t, at("thin")); got != want {
			t.Errorf("%s has %d bytes of holes, the source %d", name, got, want)
		}
	}
	if n := holes(t, at("filled")); n != 0 {
		t.Errorf("--holes=fill left %d bytes of holes", n)
	}
}

func holes(t *testing.T, path string) (n int64) {
	t.Helper()
	for _, e := range extentsOf(t, path) {
		if e.Hole {
			n += e.Length
		}
	}
	return n
}

func TestVMComesBack(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := testimages.VM(at("web01"), 1); err != nil {
		t.Fatal(err)
	}
	write(t, at("web01/other.txt"), []byte("not the VM's"))
	write(t, at("web01/vmware.log"), []byte("a log"))
	h.ok("encrypt", at("web01/web01.vmx"), "--output", at("encrypted"))
	s := parseJSON[agent.Status](t, h.ok("status", at("encrypted/web01.vmx"), "--json"))
	if len(s.Disks) != 3 {
		t.Fatalf("%d disks, want 3", len(s.Disks))
	}
	for _, d := range s.Disks {
		if d.State != agent.StateEncrypted || len(d.Recipients) != 1 || d.Recipients[0] != s.Disks[0].Recipients[0] {
			t.Errorf("disk %s: %+v", d.Node, d)
		}
	}
	h.ok("decrypt", "--output", at("back"), at("encrypted/web01.vmx"))
	os.Remove(at("web01/other.txt"))
	os.Remove(at("web01/vmware.log"))
	if a, b := sums(t, at("web01")), sums(t, at("back")); a != b {
		t.Errorf("the VM came back as\n%snot as\n%s", b, a)
	}
}

func sums(t *testing.T, dir string) string {
	t.Helper()
	s, err := testimages.Sums(dir)
	if err != nil {
		t.Fatal(err)
	}
	return string(s)
}

func TestOneDiskOfAVM(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := testimages.VM(at("web01"), 1); err != nil {
		t.Fatal(err)
	}
	h.ok("encrypt", at("web01/web01.vmx"), "--disk", "sata0:1", "--output", at("one"))
	var states []string
	for _, d := range parseJSON[agent.Status](t, h.ok("status", "--json", at("one/web01.vmx"))).Disks {
		states = append(states, d.Node+" "+d.State)
	}
	if got := strings.Join(states, ", "); got != "scsi0:0 plain, scsi0:1 plain, sata0:1 encrypted" {
		t.Error(got)
	}
	h.fails(exitFailure, []string{"sata0:1", "already encrypted"}, "encrypt", at("one/web01.vmx"), "--output", at("x"))
	h.ok("encrypt", at("one/web01.vmx"), "--output", at("all"), "--disk", "scsi0:0", "--disk", "scsi0:1")
	h.ok("decrypt", at("all/web01.vmx"), "--output", at("back"))
	if a, b := sums(t, at("web01")), sums(t, at("back")); a != b {
		t.Errorf("the VM came back as\n%snot as\n%s", b, a)
	}
	h.fails(exitUsage, []string{"scsi7:7"}, "decrypt", at("all/web01.vmx"), "--disk", "scsi7:7", "--output", at("y"))
}

func TestDiskFromAnotherFolder(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, d := range []string{"vm", "store"} {
		if err := os.Mkdir(at(d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	smallImage(t, at("store/data.img"))
	write(t, at("vm/a.vmx"), []byte("nvme0:0.present = \"TRUE\"\nnvme0:0.fileName = \"../store/data.img\""))
	h.ok("encrypt", at("vm/a.vmx"), "--output", at("encrypted"))
	h.ok("decrypt", at("encrypted/a.vmx"), "--output", at("back"))
	if sum(t, at("store/data.img")) != sum(t, at("back/data.img")) {
		t.Error("the disk did not come back")
	}
	if got := string(read(t, at("back/a.vmx"))); got != "nvme0:0.present = \"TRUE\"\nnvme0:0.fileName = \"data.img\"" {
		t.Errorf("descriptor %q", got)
	}
}

func TestBareVMDK(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	execute(t, exec.Command(testtool.Need(t, "qemu-img"), "create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", at("d.vmdk"), "1M"))
	execute(t, exec.Command(testtool.Need(t, "qemu-io"), "-f", "vmdk", "-c", "write -P 0x5a 4096 70000", at("d.vmdk")))
	h.ok("encrypt", at("d.vmdk"), "--output", at("e.vmdk"))
	h.ok("decrypt", at("e.vmdk"), "--output", at("f.vmdk"))
	execute(t, exec.Command(testtool.Need(t, "qemu-img"), "compare", "-f", "vmdk", "-F", "vmdk", at("d.vmdk"), at("f.vmdk")))
	h.fails(exitFailure, []string{"out.img"}, "encrypt", at("d.vmdk"), "--output", at("out.img"))
}
