package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmcrypt/vmcrypt/agent/api"
)

// directoryOf is where a VM's sockets are.
func directoryOf(vm api.VM) string {
	_, socket, _ := strings.Cut(vm.Disks[0].URI, "?socket=")
	return filepath.Dir(socket)
}

// TestHostileDirectory: QEMU's user owns the directory of the sockets, and keeps nobody
// from locking the VM, or from starting its disk server again.
func TestHostileDirectory(t *testing.T) {
	t.Parallel()
	h := startHost(t)
	target := h.vm("web01", "scsi0:0")
	vm := h.unlock(target)
	directory := directoryOf(vm)
	folder, err := os.Open(directory)
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	spoil := func(name string) {
		t.Helper()
		if err := os.RemoveAll(filepath.Join(directory, name)); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(directory, name, strings.Repeat("d/", 1500)), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	spoil("control.sock")
	spoil("scsi0:0.sock")
	if err := syscall.Kill(*vm.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(folder.Fd()), unix.LOCK_EX); err != nil { // as soon as anybody can
		t.Fatal(err)
	}
	eventually(t, "it is unlocked again", func() bool {
		now := h.named("web01")
		return now.State == api.Unlocked && now.PID != nil && *now.PID != *vm.PID
	})
	if out, ok := qemuIO(t, h.unlock(target).Disks[0].URI, "read 0 512"); !ok {
		t.Error(out)
	}
	spoil("more")
	h.lock(target)
	h.onlyAside(2)
	h.stopAgent(os.Kill)
	h.startAgent()
	h.onlyAside(2)
	h.unlock(target)
	h.lock(target)
	for _, e := range h.audit() {
		if e.Result == "failure" {
			t.Errorf("in the audit log: %+v", e)
		}
	}
}

// onlyAside checks that nothing is left of a VM but directories that were put aside.
func (h *host) onlyAside(want int) {
	h.t.Helper()
	left := names(h.t, filepath.Join(h.dir, "run/vms"))
	for _, name := range left {
		if !strings.Contains(name, ".aside-") {
			h.t.Errorf("%s is left", name)
		}
	}
	if len(left) != want {
		h.t.Errorf("%d directories were put aside, not %d: %v", len(left), want, left)
	}
	if pids := h.diskServers(); len(pids) > 0 {
		h.t.Errorf("there are disk servers: %v", pids)
	}
}

// TestEndsNoOtherProcess: a program of the agent's user that looks at the lock is not
// taken for the disk server.
func TestEndsNoOtherProcess(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("only root sees what a disk server has open")
	}
	h := startHost(t)
	target := h.vm("web01", "scsi0:0")
	directory := directoryOf(h.unlock(target))
	h.lock(target)
	write(t, directory+".lock", nil)
	other := reader(t, directory+".lock") // its number is likely to be the lower one
	vm := h.unlock(target)
	h.stopAgent(os.Kill)
	for _, name := range []string{directory + ".json", directory + "/control.sock"} {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	h.startAgent()
	h.run("lock", "--force", target) // whether all was flushed it can't tell
	h.gone(*vm.PID)
	select {
	case <-other:
		t.Error("another process was ended")
	default:
	}
	h.untouched()
}

// reader starts a program that has a file open, and tells when it has ended.
func reader(t *testing.T, path string) (ended <-chan struct{}) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command("sleep", "600")
	cmd.ExtraFiles = []*os.File{f}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end := make(chan struct{})
	go func() {
		_ = cmd.Wait() // it is killed
		close(end)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		<-end
	})
	return end
}
