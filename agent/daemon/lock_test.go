package daemon

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmcrypt/vmcrypt/agent"
	"github.com/vmcrypt/vmcrypt/agent/api"
	"github.com/vmcrypt/vmcrypt/agent/diskserver"
	"github.com/vmcrypt/vmcrypt/internal/audit"
)

// newTestDaemon makes an agent that listens nowhere.
func newTestDaemon(t *testing.T) *daemon {
	t.Helper()
	dir, err := os.MkdirTemp("", "vd") // short, for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	d, err := newDaemon(t.Context(), Config{
		Socket: filepath.Join(dir, "socket"), State: filepath.Join(dir, "state"), Datastores: []string{dir},
		Host: new(agent.Host), Explain: func(error) (int, string) { return 1, "" },
	})
	if err == nil {
		err = d.makeFolders()
	}
	if err == nil {
		d.audit, err = audit.Open(d.State, audit.Head{})
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.background.Wait()
		d.audit.Close()
	})
	return d
}

// immortal is a disk server that no signal reaches.
func immortal(t *testing.T) *process {
	t.Helper()
	pidfd, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	pidfd.Close()
	return &process{pidfd, make(chan struct{}), time.Now()}
}

// TestLockFails: the agent does not lose sight of a disk server that does not end, and
// starts no other when it has.
func TestLockFails(t *testing.T) {
	d, p := newTestDaemon(t), immortal(t)
	descriptor := filepath.Join(d.Datastores[0], "web01.vmx")
	w := wish{VM: diskserver.VM{Name: "web01", Descriptor: descriptor}, Boot: d.boot}
	m := d.goOn(w, p)
	if err := m.note(w); err != nil {
		t.Fatal(err)
	}
	for range 2 { // it can be repeated
		_, err := d.lock(t.Context(), api.LockRequest{VM: descriptor, Force: true})
		if err == nil || errors.Is(err, ErrLocking) || !strings.Contains(err.Error(), "not locked") {
			t.Errorf("the lock ends with %v", err)
		}
		vm, err := d.status(t.Context(), "web01")
		if err != nil || vm.State != api.Unlocked || !strings.Contains(vm.Problem, "not locked") {
			t.Errorf("then it is %+v, %v", vm, err)
		}
	}
	if _, err := d.unlock(t.Context(), api.UnlockRequest{VM: descriptor}); !errors.Is(err, ErrUnlocked) {
		t.Errorf("an unlock ends with %v", err)
	}
	if noted := d.noted(m.directory); noted == nil || !noted.Locking {
		t.Errorf("the next agent finds %+v", noted)
	}
	close(p.ended)
	d.background.Wait()
	if d.known(descriptor) != nil || len(d.machines) > 0 || d.noted(m.directory) != nil {
		t.Errorf("when it has ended, there are still %+v, %+v", d.machines, d.noted(m.directory))
	}
}

// TestLockIsBegun: what an agent began to lock, the next one does not start again.
func TestLockIsBegun(t *testing.T) {
	d := newTestDaemon(t)
	m := d.machine(filepath.Join(d.Datastores[0], "web01.vmx"))
	m.noteLock(m.forgo())
	m.stopped()
	d.left(m)
	if err := d.adopt(); err != nil {
		t.Fatal(err)
	}
	d.background.Wait()
	if len(d.machines) > 0 || d.noted(m.directory) != nil {
		t.Errorf("there are %+v, %+v", d.machines, d.noted(m.directory))
	}
}

// TestRestartIsDone: there is nothing to start while a disk server lives that can't be
// asked.
func TestRestartIsDone(t *testing.T) {
	d, p := newTestDaemon(t), immortal(t)
	defer close(p.ended)
	m := d.machine(filepath.Join(d.Datastores[0], "web01.vmx"))
	m.runs(wish{}, p)
	if !m.tryRestart() {
		t.Error("another disk server is to be started")
	}
}

// TestPauseAfter: a disk server that crashes again and again is started ever more
// seldom.
func TestPauseAfter(t *testing.T) {
	m := new(machine)
	for _, c := range []struct{ life, pause time.Duration }{
		{time.Hour, 0}, {0, time.Second}, {9 * time.Second, 2 * time.Second}, {0, 4 * time.Second}, {11 * time.Second, 0}, {0, time.Second},
	} {
		if got := m.pauseAfter(c.life); got != c.pause {
			t.Errorf("after a life of %v a pause of %v, not %v", c.life, got, c.pause)
		}
	}
	for range 100 {
		m.pauseAfter(0)
	}
	if got := m.pauseAfter(0); got != maxPause {
		t.Errorf("at last a pause of %v", got)
	}
}
