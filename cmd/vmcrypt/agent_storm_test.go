package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/vmcrypt/vmcrypt/agent"
	"github.com/vmcrypt/vmcrypt/agent/api"
)

// manyVMs is how many are unlocked at once.
func manyVMs() int {
	if os.Getenv("VMCRYPT_TEST_LONG") == "1" {
		return 1000
	}
	return 100
}

// herd makes copies of a VM, all under its KEK.
func (h *host) herd(n int) (targets []string) {
	h.t.Helper()
	first := h.vm("vm", "scsi0:0")
	for i := range n - 1 {
		targets = append(targets, h.copyVM(first, fmt.Sprintf("vm%04d", i)))
	}
	return append(targets, first)
}

// atOnce asks the agent about all targets at the same time.
func atOnce(t *testing.T, targets []string, ask func(target string) error) (failed []error) {
	t.Helper()
	errs := make([]error, len(targets))
	var asking sync.WaitGroup
	for i, target := range targets {
		asking.Go(func() { errs[i] = ask(target) })
	}
	asking.Wait()
	for _, err := range errs {
		if err != nil {
			failed = append(failed, err)
		}
	}
	return failed
}

func (h *host) unlockAtOnce(targets []string) (failed []error) {
	h.t.Helper()
	client := h.client()
	return atOnce(h.t, targets, func(target string) error {
		vm, err := client.Unlock(h.t.Context(), api.UnlockRequest{VM: target})
		if err == nil && vm.Descriptor != target {
			return fmt.Errorf("%s leads to %s", target, vm.Descriptor)
		}
		return err
	})
}

func (h *host) lockAtOnce(targets []string) {
	h.t.Helper()
	client := h.client()
	if failed := atOnce(h.t, targets, func(target string) error {
		_, err := client.Lock(h.t.Context(), api.LockRequest{VM: target})
		return err
	}); len(failed) > 0 {
		h.t.Errorf("%d locks failed, such as by %v", len(failed), failed[0])
	}
}

// gets counts, in the key manager's log, who fetched the KEK of a target.
func (h *host) gets(target string) int {
	h.t.Helper()
	id := parseJSON[agent.Status](h.t, h.ok("status", "--json", target)).Disks[0].Recipients[0].KEKID
	n := 0
	for line := range bytes.Lines(read(h.t, filepath.Join(h.home.dir, "kms/audit.log"))) {
		e := parseJSON[struct{ Operation, Object, Result string }](h.t, string(line))
		if e.Operation == "Get" && e.Object == id && e.Result == "Success" {
			n++
		}
	}
	return n
}

// TestUnlockStorm: many VMs are powered on at once, and their KEK is fetched once.
func TestUnlockStorm(t *testing.T) {
	h, _ := startHostWithKMS(t)
	targets := h.herd(manyVMs())
	before := h.gets(targets[0])
	begun := time.Now()
	if failed := h.unlockAtOnce(targets); len(failed) > 0 {
		t.Fatalf("%d of %d unlocks failed, such as by %v", len(failed), len(targets), failed[0])
	}
	t.Logf("%d VMs were unlocked in %v", len(targets), time.Since(begun))
	if n := h.gets(targets[0]) - before; n != 1 {
		t.Errorf("their KEK was fetched %d times", n)
	}
	for _, vm := range h.list() {
		if vm.State != api.Unlocked {
			t.Errorf("%s is %s", vm.Name, vm.State)
		}
	}
	h.stopAgent(os.Kill)
	h.startAgent()
	for _, vm := range h.list() {
		if vm.State != api.Unlocked {
			t.Errorf("after a restart of the agent %s is %s", vm.Name, vm.State)
		}
	}
	h.lockAtOnce(targets)
	h.untouched()
	h.ok("audit", "verify")
}

// TestStormOfKEKs: VMs with KEKs of their own have each fetched once.
func TestStormOfKEKs(t *testing.T) {
	h, _ := startHostWithKMS(t)
	var targets []string
	before := map[string]int{}
	for i := range 10 {
		target := h.vm(fmt.Sprintf("vm%d", i), "scsi0:0", "scsi0:1")
		targets, before[target] = append(targets, target), h.gets(target)
	}
	if failed := h.unlockAtOnce(targets); len(failed) > 0 {
		t.Fatal(failed)
	}
	for _, target := range targets {
		if n := h.gets(target) - before[target]; n != 1 {
			t.Errorf("the KEK of %s was fetched %d times", target, n)
		}
	}
	h.lockAtOnce(targets)
	h.untouched()
}

// TestStormWithoutKeyManager: all hear soon that it does not answer, whether it refuses
// connections or hangs.
func TestStormWithoutKeyManager(t *testing.T) {
	h, kms := startHostWithKMS(t)
	targets := h.herd(50)
	for i := range 10 {
		targets = append(targets, h.vm(fmt.Sprintf("own%d", i), "scsi0:0"))
	}
	storm := func() time.Duration {
		t.Helper()
		begun := time.Now()
		failed := h.unlockAtOnce(targets)
		for _, err := range failed {
			if e := (*api.Error)(nil); !errors.As(err, &e) || e.ExitCode != exitNoKeyManager {
				t.Errorf("an unlock: %v", err)
			}
		}
		if len(failed) != len(targets) {
			t.Errorf("%d of %d unlocks failed", len(failed), len(targets))
		}
		return time.Since(begun)
	}
	kms.down()
	if took := storm(); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	if os.Getenv("VMCRYPT_TEST_LONG") == "1" {
		kms.hangs.Store(true)
		kms.up()
		if took := storm(); took > 30*time.Second { // it may be silent for 10 s
			t.Errorf("with one that hangs it took %v", took)
		}
		kms.hangs.Store(false)
	} else {
		kms.up()
	}
	h.untouched()
	if failed := h.unlockAtOnce(targets[:10]); len(failed) > 0 {
		t.Error(failed)
	}
	h.lockAtOnce(targets)
}

// TestSameVMAtOnce: one of many unlocks and locks of a VM does it, and the others see it
// done.
func TestSameVMAtOnce(t *testing.T) {
	h := startHost(t)
	target := h.vm("web01", "scsi0:0")
	same := make([]string, 20)
	for i := range same {
		same[i] = target
	}
	for range 3 {
		if failed := h.unlockAtOnce(same); len(failed) > 0 {
			t.Fatal(failed)
		}
		h.lockAtOnce(same)
		h.untouched()
	}
	client := h.client()
	if failed := atOnce(t, same, func(target string) error {
		if _, err := client.Unlock(t.Context(), api.UnlockRequest{VM: target}); err != nil {
			return err
		}
		_, err := client.Lock(t.Context(), api.LockRequest{VM: target})
		return err
	}); len(failed) > 0 {
		t.Error(failed)
	}
	h.untouched()
	h.ok("audit", "verify")
}
