package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmcrypt/vmcrypt/agent"
	"github.com/vmcrypt/vmcrypt/internal/secret/secrettest"
	"github.com/vmcrypt/vmcrypt/internal/testtool"
)

// needlesOf gives the KEK of an encrypted disk and the halves of its DEK, with all that is
// made of them.
func (h *host) needlesOf(target, node string) (ofKEK, ofDEK []secrettest.Needle) {
	h.t.Helper()
	opened, err := agent.Open(target, "")
	if err != nil {
		h.t.Fatal(err)
	}
	for _, d := range opened.Disks {
		if d.Node != node {
			continue
		}
		kek, key := h.keysOf(d.Record)
		half := key.Len() / 2
		return secrettest.ScheduleOf("KEK", kek.Material.Bytes()), append(
			secrettest.ScheduleOf(node+" DEK 1", key.Bytes()[:half]), secrettest.ScheduleOf(node+" DEK 2", key.Bytes()[half:])...)
	}
	h.t.Fatalf("%s has no disk %s", target, node)
	return nil, nil
}

// forgets checks that a process has none of the needles. What is unreachable is erased
// when the collector finds that: so it looks again for a while.
func forgets(t *testing.T, who string, pid int, needles []secrettest.Needle) {
	t.Helper()
	var found []string
	for range 20 {
		if found = secrettest.InProcess(t, pid, needles); len(found) == 0 {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Errorf("%s has %d pieces of keys:\n%s", who, len(found), strings.Join(found, "\n"))
}

// TestKeysInMemory looks for keys in the memory of the agent and of disk servers: only
// that of an unlocked disk has them, and only those of that disk.
func TestKeysInMemory(t *testing.T) {
	if !erases {
		t.Skip("a build without GOEXPERIMENT=runtimesecret leaves keys on its heap")
	}
	if os.Getuid() != 0 {
		t.Skip("only root can look into the processes")
	}
	for _, engine := range []string{"auto", "crypto-aes"} {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			h, _ := startHostWithKMS(t)
			h.stopAgent(syscall.SIGTERM)
			h.edit(filepath.Join(h.home.dir, "config.yaml"), `(?m)^engine: auto$`, "engine: "+engine+" # as is tested")
			h.startAgent()
			h.checkKeysInMemory()
		})
	}
	t.Run("own key manager", func(t *testing.T) {
		t.Parallel()
		h := startHost(t) // the agent itself serves the key manager of the host
		h.checkKeysInMemory()
	})
}

func (h *host) checkKeysInMemory() {
	h.t.Helper()
	t, target, other := h.t, h.vm("web01", "scsi0:0", "nvme0:1"), h.vm("other", "scsi0:0")
	neighbour := *h.unlock(other).PID
	var keks, deks []secrettest.Needle
	for _, node := range []string{"scsi0:0", "nvme0:1"} {
		ofKEK, ofDEK := h.needlesOf(target, node)
		keks, deks = append(keks, ofKEK...), append(deks, ofDEK...)
	}
	all := append(keks, deks...)
	rounds := 1
	if os.Getenv("VMCRYPT_TEST_LONG") == "1" {
		rounds = 5
	}
	for range rounds {
		vm := h.unlock(target)
		for _, d := range vm.Disks {
			if out, ok := qemuIO(t, d.URI, "write -P 1 0 64k", "read 0 64k"); !ok {
				t.Fatal(out)
			}
		}
		h.hasKeys(*vm.PID, deks)
		forgets(t, "the disk server", *vm.PID, keks)
		forgets(t, "the disk server of another VM", neighbour, all)
		forgets(t, "the agent", h.agent.Process.Pid, all)
		if err := syscall.Kill(*vm.PID, syscall.SIGKILL); err != nil { // it is started again
			t.Fatal(err)
		}
		eventually(t, "it runs again", func() bool { now := h.named("web01"); return now.PID != nil && *now.PID != *vm.PID })
		h.lock(target)
		forgets(t, "the agent, after the lock,", h.agent.Process.Pid, all)
		forgets(t, "the disk server of another VM", neighbour, all)
	}
	h.lock(other)
	h.untouched()
}

// hasKeys is the control: what is not found while a disk is unlocked would not be found
// afterwards either.
func (h *host) hasKeys(pid int, deks []secrettest.Needle) {
	h.t.Helper()
	found := strings.Join(secrettest.InProcess(h.t, pid, deks), "\n")
	for _, node := range []string{"scsi0:0", "nvme0:1"} {
		for half := 1; half <= 2; half++ {
			for _, piece := range []string{"half 1", "half 2", "round key 2", "round key 14"} {
				if name := fmt.Sprintf("%s DEK %d, %s", node, half, piece); !strings.Contains(found, name) {
					h.t.Errorf("the disk server has no %s:\n%s", name, found)
				}
			}
		}
	}
}

// TestNoCoreFile: nobody but root looks into the processes, or gets a core file of them.
func TestNoCoreFile(t *testing.T) {
	if !testtool.Unprivileged(t) {
		return
	}
	h := newHost(t)
	h.program = filepath.Join(h.dir, "vmcrypt") // this one lies where only root can start it again
	write(t, h.program, read(t, "/proc/self/exe"))
	if err := os.Chmod(h.program, 0o700); err != nil {
		t.Fatal(err)
	}
	h.startAgent()
	vm := h.unlock(h.vm("web01", "scsi0:0"))
	sleep := exec.Command("sleep", "60")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	defer sleep.Wait() //nolint:errcheck // it is killed
	defer sleep.Process.Kill()
	look := func(pid int) error {
		f, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
		if err == nil {
			f.Close()
		}
		return err
	}
	if err := look(sleep.Process.Pid); err != nil {
		t.Skipf("nobody can look into any process here: %v", err)
	}
	for who, pid := range map[string]int{"the agent": h.agent.Process.Pid, "the disk server": *vm.PID} {
		if err := look(pid); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("the memory of %s can be opened: %v", who, err)
		}
		if err := unix.PtraceAttach(pid); err == nil {
			t.Errorf("a debugger can be attached to %s", who)
		}
	}
	limits := string(read(t, fmt.Sprintf("/proc/%d/limits", *vm.PID)))
	if i := strings.Index(limits, "Max core file size"); i < 0 || strings.Join(strings.Fields(limits[i:])[4:6], " ") != "0 0" {
		t.Errorf("the disk server may write core files:\n%s", limits)
	}
	h.lock("web01")
	h.untouched()
}
