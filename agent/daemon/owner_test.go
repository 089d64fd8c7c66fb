package daemon

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/vmcrypt/vmcrypt/agent/api"
	"github.com/vmcrypt/vmcrypt/agent/diskserver"
)

// TestOwnerForcesOnlyItsOwn: the end of a guest, or of one that did not get to start,
// takes no disks by force but those that were unlocked for it.
func TestOwnerForcesOnlyItsOwn(t *testing.T) {
	for name, test := range map[string]struct {
		wish         *wish
		server, want bool
	}{
		"its own":                  {&wish{Owner: "a"}, true, true},
		"its own, being restarted": {&wish{Owner: "a"}, false, true},
		"nobody's":                 {&wish{}, true, false},
		"not known for whom":       {nil, true, false},
	} {
		d, p := newTestDaemon(t), immortal(t)
		m := d.machine(filepath.Join(d.Datastores[0], "web01.vmx"))
		m.wish = test.wish
		if test.server {
			m.server = p
		}
		if force, err := m.mayForce(api.LockRequest{Owner: "a", Force: true}); force != test.want || err != nil {
			t.Errorf("%s: %t, %v", name, force, err)
		}
	}
}

// TestOwnerAmidRestart: clients of what was unlocked by hand are not to be seen while its
// disk server is started again, but wait for it. Another guest neither gets their disks
// nor has them locked.
func TestOwnerAmidRestart(t *testing.T) {
	d := newTestDaemon(t)
	descriptor := filepath.Join(d.Datastores[0], "web01.vmx")
	m := d.machine(descriptor)
	m.runs(wish{VM: diskserver.VM{Name: "web01", Descriptor: descriptor}}, nil)
	if err := os.Mkdir(m.directory, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := d.unlock(t.Context(), api.UnlockRequest{VM: descriptor, Owner: "a"}); !errors.Is(err, ErrWaiting) {
		t.Errorf("an unlock ends with %v", err)
	}
	if _, err := d.lock(t.Context(), api.LockRequest{VM: descriptor, Owner: "a", Force: true}); !errors.Is(err, ErrWaiting) {
		t.Errorf("a lock ends with %v", err)
	}
	if m.wants() == nil || m.wants().Owner != "" || m.wants().Locking {
		t.Errorf("then it is to be %+v", m.wants())
	}
}

// TestGuestAmidRestart: while the disk server of a guest is started again, its disks are
// taken from it on purpose only.
func TestGuestAmidRestart(t *testing.T) {
	d := newTestDaemon(t)
	descriptor := filepath.Join(d.Datastores[0], "web01.vmx")
	m := d.machine(descriptor)
	m.runs(wish{VM: diskserver.VM{Name: "web01", Descriptor: descriptor}, Owner: "a"}, nil)
	if _, err := d.lock(t.Context(), api.LockRequest{VM: descriptor}); !errors.Is(err, ErrWaiting) {
		t.Errorf("a lock ends with %v", err)
	}
	if w := m.wants(); w == nil || w.Locking {
		t.Errorf("then it is to be %+v", w)
	}
	if _, err := d.lock(t.Context(), api.LockRequest{VM: descriptor, Owner: "a", Force: true}); err != nil || m.wants() != nil {
		t.Errorf("the lock when it has ended: %v", err)
	}
}
