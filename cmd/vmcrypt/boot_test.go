package main

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmcrypt/vmcrypt/image"
	"github.com/vmcrypt/vmcrypt/internal/testtool"
	"github.com/vmcrypt/vmcrypt/testimages"
)

// guestVM encrypts a VM with one disk, given its plain image. It gives the descriptor
// and the file of the encrypted disk.
func (h *host) guestVM(plain string) (descriptor, disk string) {
	h.t.Helper()
	source := filepath.Join(filepath.Dir(plain), "guest.vmx")
	write(h.t, source, fmt.Appendf(nil, "displayName = \"guest\"\nscsi0:0.fileName = %q\n", filepath.Base(plain)))
	h.ok("encrypt", source, "--output", h.at("guest"))
	return h.at("guest/guest.vmx"), h.at("guest", filepath.Base(plain))
}

// decryptedDisk decrypts a VM and gives the file of a disk.
func (h *host) decryptedDisk(descriptor, disk string) string {
	h.t.Helper()
	out := filepath.Join(h.t.TempDir(), "decrypted")
	h.ok("decrypt", descriptor, "--output", out)
	return filepath.Join(out, filepath.Base(disk))
}

// bootTime is far more than a guest takes.
const bootTime = 3 * time.Minute

// machine is a virtual machine that QEMU emulates, or another program that runs for a
// while. The test talks to it over its serial port.
type machine struct {
	t       *testing.T
	cmd     *exec.Cmd
	console io.Writer
	ended   chan error

	mu     sync.Mutex
	serial bytes.Buffer
}

// boot starts a machine.
func boot(t *testing.T, args ...string) *machine {
	t.Helper()
	return start(t, exec.Command(testtool.Need(t, "qemu-system-x86_64"), append([]string{
		"-accel", "tcg", "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"}, args...)...))
}

// start starts a machine by a command, which has as long as bootTime.
func start(t *testing.T, cmd *exec.Cmd) *machine {
	t.Helper()
	m := &machine{t: t, cmd: cmd, ended: make(chan error, 1)}
	m.cmd.Stdout, m.cmd.Stderr = m, m
	var err error
	if m.console, err = m.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(bootTime, func() { m.cmd.Process.Kill() })
	ended := make(chan struct{})
	go func() {
		m.ended <- m.cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		timer.Stop()
		_ = m.cmd.Process.Kill() // it may have ended
		<-ended
		if t.Failed() {
			t.Logf("the machine's serial port:\n%s", m.said())
		}
	})
	return m
}

func (m *machine) Write(p []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.serial.Write(p)
}

// said is what came from the serial port so far.
func (m *machine) said() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.serial.String()
}

// await waits until the machine says something.
func (m *machine) await(text string) {
	m.t.Helper()
	for !strings.Contains(m.said(), text) {
		select {
		case err := <-m.ended:
			m.t.Fatalf("the machine ended before it said %q: %v", text, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// off waits until the machine turns itself off, and gives all that it said.
func (m *machine) off() string {
	m.t.Helper()
	if err := <-m.ended; err != nil {
		m.t.Fatalf("the machine did not turn itself off: %v", err)
	}
	return m.said()
}

// TestSampleDiskBoots has QEMU boot a disk that is encrypted, and write to it.
func TestSampleDiskBoots(t *testing.T) {
	t.Parallel()
	testtool.Need(t, "qemu-system-x86_64")
	h := startHost(t)
	plain := filepath.Join(t.TempDir(), "boot.img")
	if err := testimages.Boot(plain, 1); err != nil {
		t.Fatal(err)
	}
	descriptor, encrypted := h.guestVM(plain)
	m := boot(t, "-drive", "format=raw,file="+h.unlock(descriptor).Disks[0].URI)
	if said := m.off(); said != testimages.Banner+testimages.Written {
		t.Errorf("the machine said %q", said)
	}
	h.lock(descriptor)
	want := read(t, plain)
	copy(want[512:], testimages.Marker)
	if !bytes.Equal(read(t, h.decryptedDisk(descriptor, encrypted)), want) {
		t.Error("the disk has other content than it should")
	}
	if bytes.Contains(read(t, encrypted), []byte(testimages.Marker[:16])) {
		t.Error("what it wrote stands in the disk's file")
	}
}

// guestCommandLine is that of the guest's kernel.
const guestCommandLine = "console=ttyS0 quiet panic=-1 nokaslr mitigations=off cryptomgr.notests random.trust_cpu=on"

// What the Linux guest does with its disk. It waits once, so that the test can look.
const guestInit = `#!/busybox sh
/busybox mount -t devtmpfs dev /dev
exec </dev/ttyS0 >/dev/ttyS0 2>&1
for module in /modules/*; do /busybox insmod "$module" || exit; done
/busybox mount -t ext4 /dev/vda /disk || exit
/busybox mkdir -p /disk/srv/data
echo 'written by the guest' >/disk/srv/data/note
/busybox yes 'a line that stays' | /busybox head -c 3000000 >/disk/srv/data/stays
/busybox yes 'a line that goes' | /busybox head -c 20480000 >/disk/srv/goes
/busybox sync
echo 'files are written'
read -r go
/busybox rm /disk/srv/goes
/busybox sync
/busybox fstrim -v /disk || exit
/busybox umount /disk || exit
echo 'guest is done'
/busybox poweroff -f
`

// goneBytes is the size of the file that goes.
const goneBytes = 20_480_000

// TestGuestOnEncryptedDisk boots Debian's kernel with ext4 on an encrypted disk. Its
// files are there afterwards, its file system is sound, and what it trimmed takes no
// more space.
func TestGuestOnEncryptedDisk(t *testing.T) {
	t.Parallel()
	testtool.Long(t)
	for _, tool := range []string{"qemu-system-x86_64", "mke2fs", "e2fsck", "dumpe2fs", "cpio"} {
		testtool.Need(t, tool)
	}
	kernel, initrd := linuxGuest(t, guestInit)
	h := startHost(t)
	plain := filepath.Join(t.TempDir(), "disk.img")
	execute(t, exec.Command(testtool.Need(t, "mke2fs"), "-q", "-t", "ext4", "-b", "4096", plain, "96M"))
	descriptor, encrypted := h.guestVM(plain)
	m := boot(t, "-m", "256", "-kernel", kernel, "-initrd", initrd,
		"-append", guestCommandLine,
		"-drive", "format=raw,if=virtio,discard=unmap,file="+h.unlock(descriptor).Disks[0].URI)
	m.await("files are written")
	amid := dataIn(t, encrypted)
	if _, err := io.WriteString(m.console, "go\n"); err != nil {
		t.Fatal(err)
	}
	if said := m.off(); !strings.Contains(said, "guest is done") {
		t.Fatal("the guest is not done")
	}
	h.lock(descriptor)
	checkGuestFiles(t, h, descriptor, encrypted)
	if gone := amid - dataIn(t, encrypted); gone < goneBytes*9/10 { // others came, such as the journal's
		t.Errorf("the guest trimmed %d bytes at least, and the disk's file is only %d smaller", goneBytes, gone)
	}
	checkFreeBlocks(t, h.decryptedDisk(descriptor, encrypted), encrypted)
}

// linuxGuest gives a kernel and the file system with which the guest begins, and what it
// does.
func linuxGuest(t *testing.T, does string) (kernel, initrd string) {
	t.Helper()
	guest := guestFolder(t)
	root := t.TempDir()
	for _, folder := range []string{"dev", "disk", "modules", "sys"} {
		if err := os.Mkdir(filepath.Join(root, folder), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.CopyFS(filepath.Join(root, "modules"), os.DirFS(filepath.Join(guest, "modules"))); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"busybox": read(t, filepath.Join(guest, "busybox")), "init": []byte(does)} {
		if err := os.WriteFile(filepath.Join(root, name), content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var names bytes.Buffer
	err := filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		fmt.Fprintln(&names, "."+strings.TrimPrefix(path, root))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	cpio := exec.Command(testtool.Need(t, "cpio"), "-o", "-H", "newc", "--quiet")
	cpio.Dir, cpio.Stdin = root, &names
	initrd = filepath.Join(t.TempDir(), "initrd")
	write(t, initrd, execute(t, cpio))
	return filepath.Join(guest, "vmlinuz"), initrd
}

// guestFolder is where scripts/guest.sh puts the guest's kernel and programs.
func guestFolder(t *testing.T) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(cache, "vmcrypt", "guest")
	if _, err := os.Stat(folder); err == nil {
		return folder
	}
	if runtime.GOARCH == "amd64" && os.Getenv("VMCRYPT_TEST_REQUIRE_TOOLS") == "1" {
		t.Fatal("there is no guest to boot: run scripts/guest.sh")
	}
	t.Skip("there is no guest to boot: scripts/guest.sh fetches one, on amd64")
	return ""
}

// checkGuestFiles looks for the files through the encryption.
func checkGuestFiles(t *testing.T, h *host, descriptor, encrypted string) {
	t.Helper()
	if list := h.ok("ls", descriptor, "/srv"); !strings.Contains(list, "data") || strings.Contains(list, "goes") {
		t.Errorf("in /srv there is\n%s", list)
	}
	if note := h.ok("cat", descriptor, "/srv/data/note"); note != "written by the guest\n" {
		t.Errorf("the note is %q", note)
	}
	if stays := h.ok("cat", descriptor, "/srv/data/stays"); stays != strings.Repeat("a line that stays\n", 3_000_000/18+1)[:3_000_000] {
		t.Errorf("the file that stays has other content, %d bytes", len(stays))
	}
	for _, text := range []string{"a line that stays", "a line that goes", "written by the g"} {
		if bytes.Contains(read(t, encrypted), []byte(text)) {
			t.Errorf("%q stands in the disk's file", text)
		}
	}
}

// dataIn is how much space a file takes, in bytes.
func dataIn(t *testing.T, path string) int64 {
	t.Helper()
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		t.Fatal(err)
	}
	return stat.Blocks * 512
}

// checkFreeBlocks checks the decrypted file system, and that each of its free blocks
// is a hole in the disk's file.
func checkFreeBlocks(t *testing.T, decrypted, encrypted string) {
	t.Helper()
	execute(t, exec.Command(testtool.Need(t, "e2fsck"), "-fn", decrypted))
	extents := extentsOf(t, encrypted)
	total := int64(0)
	for _, free := range freeRanges(t, decrypted) {
		total += free.Length
		for _, e := range extents {
			if !e.Hole && e.Offset < free.Offset+free.Length && free.Offset < e.Offset+e.Length {
				t.Errorf("%d bytes at %d are free, and no hole", free.Length, free.Offset)
			}
		}
	}
	if total < goneBytes {
		t.Errorf("only %d bytes are free", total)
	}
}

// What dumpe2fs prints of a file system and of each of its block groups.
var (
	blockSize  = regexp.MustCompile(`(?m)^Block size: +(\d+)$`)
	freeBlocks = regexp.MustCompile(`(?m)^  Free blocks: (.*)$`)
	blockRange = regexp.MustCompile(`(\d+)(?:-(\d+))?`)
)

// freeRanges lists where an ext4 file system has no data.
func freeRanges(t *testing.T, path string) (free []image.Extent) {
	t.Helper()
	dump := string(execute(t, exec.Command(testtool.Need(t, "dumpe2fs"), path)))
	number := func(text string) int64 {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			t.Fatalf("%v in\n%s", err, dump)
		}
		return n
	}
	size := number(blockSize.FindStringSubmatch(dump)[1])
	for _, group := range freeBlocks.FindAllStringSubmatch(dump, -1) {
		for _, r := range blockRange.FindAllStringSubmatch(group[1], -1) {
			first := number(r[1])
			last := number(cmp.Or(r[2], r[1]))
			free = append(free, image.Extent{Offset: first * size, Length: (last - first + 1) * size})
		}
	}
	return free
}
