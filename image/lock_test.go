package image

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmcrypt/vmcrypt/internal/testtool"
)

func TestLocksBetweenUs(t *testing.T) {
	for _, test := range []struct {
		first, second Mode
		conflict      bool
	}{
		{ReadOnly, ReadOnly, false},
		{ReadOnly, ReadWrite, true},
		{ReadWrite, ReadOnly, true},
		{ReadWrite, ReadWrite, true},
	} {
		path := mustCreateClosed(t)
		first := mustOpen(t, path, Raw, test.first)
		second, err := Open(path, Raw, test.second)
		if conflict := errors.Is(err, ErrInUse); conflict != test.conflict || err != nil && !conflict {
			t.Errorf("%d then %d: %v", test.first, test.second, err)
		}
		if second != nil {
			second.Close()
		}
		first.Close()
		mustOpen(t, path, Raw, test.second)
	}
}

// A refused open must leave no locks behind that refuse others.
func TestRefusedOpenLeavesNoLocks(t *testing.T) {
	path := mustCreateClosed(t)
	mustOpen(t, path, Raw, ReadOnly)
	if _, err := Open(path, Raw, ReadWrite); !errors.Is(err, ErrInUse) {
		t.Fatal(err)
	}
	mustOpen(t, path, Raw, ReadOnly)
}

func TestCreatedDiskIsLocked(t *testing.T) {
	disk := mustCreate(t, 512)
	if _, err := Open(disk.DataPath(), Raw, ReadOnly); !errors.Is(err, ErrInUse) {
		t.Errorf("got %v", err)
	}
}

func mustCreateClosed(t *testing.T) string {
	t.Helper()
	disk := mustCreate(t, 1<<20)
	mustWrite(t, disk, []byte("data"), 0)
	disk.Close()
	return disk.DataPath()
}

// hold starts a program that keeps a disk open until the test ends, and waits
// for the line that it prints once it has it.
func hold(t *testing.T, ready, input, tool string, args ...string) {
	t.Helper()
	cmd := exec.Command(testtool.Need(t, tool), args...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
	t.Cleanup(func() {
		timer.Stop()
		cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	})
	if _, err := io.WriteString(stdin, input); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		if strings.Contains(lines.Text(), ready) {
			return
		}
	}
	t.Fatalf("%s %q ended early", tool, args)
}

func holdByQEMU(t *testing.T, args ...string) {
	t.Helper()
	hold(t, "bytes at offset 0", "read 0 512\n", "qemu-io", args...)
}

func TestQEMUWritesMeanwhile(t *testing.T) {
	path := mustCreateClosed(t)
	holdByQEMU(t, "-f", "raw", path)
	for _, mode := range []Mode{ReadOnly, ReadWrite} {
		_, err := Open(path, Raw, mode)
		if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), `"qemu-io" (process `) {
			t.Errorf("mode %d: %v", mode, err)
		}
	}
}

func TestQEMUReadsMeanwhile(t *testing.T) {
	path := mustCreateClosed(t)
	holdByQEMU(t, "-r", "-f", "raw", path)
	mustOpen(t, path, Raw, ReadOnly).Close()
	if _, err := Open(path, Raw, ReadWrite); !errors.Is(err, ErrInUse) {
		t.Error(err)
	}
}

func TestMachineRunsMeanwhile(t *testing.T) {
	for _, readonly := range []string{"on", "off"} {
		path := mustCreateClosed(t)
		hold(t, `"return"`, `{"execute":"qmp_capabilities"}`, "qemu-system-x86_64", "-accel", "tcg", "-S", "-nodefaults", "-display", "none",
			"-qmp", "stdio", "-drive", "if=virtio,format=raw,readonly="+readonly+",file="+path)
		disk, err := Open(path, Raw, ReadOnly)
		if readonly == "off" && !errors.Is(err, ErrInUse) || readonly == "on" && err != nil {
			t.Errorf("read-only disk %s: %v", readonly, err)
		}
		if err == nil {
			disk.Close()
		}
		if _, err := Open(path, Raw, ReadWrite); !errors.Is(err, ErrInUse) {
			t.Errorf("read-only disk %s: %v", readonly, err)
		}
	}
}

func TestQEMUUsesVMDKMeanwhile(t *testing.T) {
	path := writeVMDK(t, qemuVMDK, 10<<20)
	holdByQEMU(t, "-f", "vmdk", path)
	if _, err := Open(path, VMDK, ReadOnly); !errors.Is(err, ErrInUse) {
		t.Error(err)
	}
}

func TestQEMUKeepsAway(t *testing.T) {
	qemuIO := testtool.Need(t, "qemu-io")
	for _, test := range []struct {
		mode    Mode
		flags   []string
		refused bool
	}{
		{ReadOnly, []string{"-r"}, false},
		{ReadOnly, nil, true},
		{ReadWrite, []string{"-r"}, true},
		{ReadWrite, nil, true},
	} {
		path := mustCreateClosed(t)
		disk := mustOpen(t, path, Raw, test.mode)
		out, err := exec.Command(qemuIO, append(test.flags, "-f", "raw", "-c", "read 0 512", path)...).CombinedOutput()
		refused := err != nil && bytes.Contains(out, []byte("lock"))
		if refused != test.refused || err != nil && !refused {
			t.Errorf("mode %d, qemu-io %v: %v\n%s", test.mode, test.flags, err, out)
		}
		disk.Close()
	}
}

// QEMU sees the same holes.
func TestExtentsAsQEMUMapsThem(t *testing.T) {
	disk := mustCreate(t, 20<<20+512)
	for _, offset := range []int64{0, 1<<20 - 1, 5<<20 + 4095, 9 << 20, 20 << 20} {
		mustWrite(t, disk, bytes.Repeat([]byte{1}, 512), offset)
	}
	disk.Close()
	disk = mustOpen(t, disk.DataPath(), Raw, ReadOnly)
	compareWithMap(t, disk, "raw", disk.DataPath())

	path := writeVMDK(t, qemuVMDK, 10<<20)
	compareWithMap(t, mustOpen(t, path, VMDK, ReadOnly), "vmdk", path)
}

func compareWithMap(t *testing.T, disk Disk, format, path string) {
	t.Helper()
	out, err := exec.Command(testtool.Need(t, "qemu-img"), "map", "--output=json", "-f", format, path).Output()
	if err != nil {
		t.Fatal(err)
	}
	var parts []struct {
		Start, Length int64
		Zero          bool
	}
	if err := json.Unmarshal(out, &parts); err != nil {
		t.Fatal(err)
	}
	var want []Extent
	for _, p := range parts {
		want = append(want, Extent{Offset: p.Start, Length: p.Length, Hole: p.Zero})
	}
	got, err := disk.Extents(0, disk.Size())
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%s: extents %v, %v, want %v", format, got, err, want)
	}
}

// A block device has no holes and no marks, and one user.
func TestBlockDevice(t *testing.T) {
	device := loopDevice(t, mustCreateClosed(t))
	disk := mustOpen(t, device, Raw, ReadWrite)
	if disk.Size() != 1<<20 || string(mustRead(t, disk, 0, 4)) != "data" {
		t.Errorf("%d bytes", disk.Size())
	}
	mustWrite(t, disk, bytes.Repeat([]byte{5}, 10_000), 1000)
	if err := errors.Join(disk.Discard(1500, 5000), disk.Flush()); err != nil {
		t.Error(err)
	}
	if got := mustRead(t, disk, 1000, 6500); bytes.Count(got, []byte{0}) != 5000 {
		t.Error("discarded range is not zero")
	}
	extents, err := disk.Extents(0, 1<<20)
	if err != nil || len(extents) != 1 || extents[0] != (Extent{Length: 1 << 20}) {
		t.Errorf("extents %v, %v", extents, err)
	}
	if err := disk.SetDiskUUID(testUUID); err != nil {
		t.Error(err)
	}
	if _, err := Open(device, Raw, ReadOnly); !errors.Is(err, ErrInUse) {
		t.Errorf("second user: %v", err)
	}
}

// loopDevice makes a block device of a file, where the test may.
func loopDevice(t *testing.T, path string) string {
	t.Helper()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		t.Skip("cannot make a block device:", err)
	}
	defer control.Close()
	number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		t.Skip("cannot make a block device:", err)
	}
	device, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", number), os.O_RDWR, 0)
	if err != nil {
		t.Skip("cannot make a block device:", err)
	}
	backing, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer backing.Close()
	if err := unix.IoctlSetInt(int(device.Fd()), unix.LOOP_SET_FD, int(backing.Fd())); err != nil {
		device.Close()
		t.Skip("cannot make a block device:", err)
	}
	t.Cleanup(func() {
		if err := unix.IoctlSetInt(int(device.Fd()), unix.LOOP_CLR_FD, 0); err != nil {
			t.Error(err)
		}
		device.Close()
	})
	return device.Name()
}
