package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmcrypt/vmcrypt/agent"
	"github.com/vmcrypt/vmcrypt/agent/api"
)

// TestAuditTells: who did what to which VM when, and by which KEK.
func TestAuditTells(t *testing.T) {
	t.Parallel()
	h := startHost(t)
	target := h.vm("web01", "scsi0:0", "scsi0:1")
	vm := h.unlock(target, "--read-only")
	h.unlock(target, "--read-only") // changes nothing
	h.lock(target)
	h.lock(target) // likewise
	entries := h.audit()
	want := [][2]string{{"unlock", "released"}, {"unlock", "success"}, {"lock", "success"}}
	if len(entries) != len(want) {
		t.Fatalf("the log has %d entries: %+v", len(entries), entries)
	}
	disks := parseJSON[agent.Status](t, h.ok("status", "--json", target)).Disks
	for i, e := range entries {
		if [2]string{e.Action, e.Result} != want[i] || e.VM != "web01" || e.UUID != vm.UUID || e.Descriptor != target || !e.ReadOnly ||
			e.UID != os.Getuid() || e.PID == 0 || e.PID == h.agent.Process.Pid || time.Since(e.Time).Abs() > time.Hour || e.Sequence != i+1 {
			t.Errorf("entry %d: %+v", i, e)
		}
		if e.Action == "lock" {
			continue
		}
		for j, k := range e.Keys {
			if r := disks[j].Recipients[0]; k.Node != disks[j].Node || k.DiskUUID != disks[j].DiskUUID || k.Alias != r.Alias || k.KEKID != r.KEKID {
				t.Errorf("entry %d tells of the key %+v, of %+v", i, k, disks[j])
			}
		}
		if len(e.Keys) != len(disks) {
			t.Errorf("entry %d tells of %d keys", i, len(e.Keys))
		}
	}
	log := filepath.Join(h.home.dir, "agent/audit.log")
	info, err := os.Stat(log)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the log is %v, %v", info, err)
	}
	h.edit(log, `"released"`, `"withheld"`)
	h.fails(exitTampered, []string{"audit.log"}, "audit", "verify")
}

// auditCalls judges what the agent does to its audit log.
type auditCalls struct {
	h       *host
	full    atomic.Bool // writes fail
	lost    atomic.Bool // syncs fail
	mu      sync.Mutex
	noted   bool // the keys that are about to be handed over
	durable bool // and that on disk
	early   bool // a disk server began before
}

func (a *auditCalls) judge(c fileCall) verdict {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !strings.HasSuffix(c.path, "/agent/audit.log") {
		if c.path != "" && !a.durable && isDiskServer(int(c.pid)) {
			a.early = true
		}
		return verdict{}
	}
	switch c.name {
	case "pwrite":
		if a.full.Load() {
			return failed(unix.ENOSPC)
		}
		a.noted = a.noted || bytes.Contains(c.memory(c.args[1], c.args[2]), []byte(`"result":"released"`))
	case "fsync", "fdatasync":
		if a.lost.Load() {
			return failed(unix.EIO)
		}
		a.durable = a.durable || a.noted
	}
	return verdict{}
}

// supervised has the host's agent wait for verdicts, and its disk servers, too.
func (a *auditCalls) supervised(t *testing.T) {
	a.h.start = func(cmd *exec.Cmd) error {
		listener, started := filtered(t, cmd)
		ended := new(atomic.Bool)
		go func() {
			_ = attend(listener, a.judge, ended) // if it fails, so do the calls
			unix.Close(listener)
		}()
		t.Cleanup(func() { ended.Store(true) })
		return <-started
	}
}

// TestAuditComesFirst: keys are handed over when it is on disk by whom, and not if that
// can't be written.
func TestAuditComesFirst(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	calls := &auditCalls{h: h}
	calls.supervised(t)
	h.startAgent()
	target, other := h.vm("web01", "scsi0:0"), h.vm("other", "scsi0:0")

	calls.full.Store(true)
	h.fails(exitFailure, []string{"audit log", "no space left", "make room"}, "unlock", target)
	h.untouched()
	calls.full.Store(false)
	vm := h.unlock(target)
	calls.mu.Lock()
	if !calls.durable || calls.early {
		t.Errorf("the entry was on disk: %t; a disk server began before: %t", calls.durable, calls.early)
	}
	calls.mu.Unlock()

	calls.lost.Store(true)
	h.fails(exitFailure, []string{"audit log", "input/output error"}, "unlock", other)
	calls.lost.Store(false)
	h.fails(exitFailure, []string{"audit log"}, "unlock", other) // nobody knows what is on disk
	h.unlock(target)                                             // which is done already
	if err := syscall.Kill(*vm.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the agent says why it is not started again", func() bool {
		now := h.named("web01")
		return now.State == api.Restarting && strings.Contains(now.Problem, "audit log")
	})
	h.lock(target) // a lock takes keys away: it goes on without
	h.untouched()
	h.ok("audit", "verify")
	h.stopAgent(os.Kill)
	h.start = nil
	h.startAgent()
	h.unlock(other)
	h.lock(other)
	h.ok("audit", "verify")
}
