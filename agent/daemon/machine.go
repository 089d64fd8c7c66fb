package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"path/filepath"
	"strings"
	"sync"
)

// machine is a VM that is unlocked, or was, or is about to be.
type machine struct {
	*daemon
	descriptor string // its path, by which the machine is known
	directory  string // of its disk server

	users int           // of the machine, running or waiting: guarded by daemon.mu
	turn  chan struct{} // holds an element while an operation is under way

	mu      sync.Mutex
	wish    *wish              // nil while the VM is to be locked
	server  *process           // the disk server; nil if there is none, or none is known
	problem string             // why it was not started again
	lockers int                // who are about to lock the VM
	attempt context.CancelFunc // of a restart that is under way, or nil
}

// machine gives the VM of a path, of a descriptor or a bare image, and counts one more
// user of it.
func (d *daemon) machine(path string) *machine {
	descriptor := descriptorOf(path)
	d.mu.Lock()
	defer d.mu.Unlock()
	m, ok := d.machines[descriptor]
	if !ok {
		m = &machine{daemon: d, descriptor: descriptor, directory: d.directoryOf(descriptor), turn: make(chan struct{}, 1)}
		d.machines[descriptor] = m
	}
	m.users++
	return m
}

// left is for who used a VM. Those that are locked are not remembered.
func (d *daemon) left(m *machine) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if m.users--; m.users == 0 && m.wants() == nil {
		delete(d.machines, m.descriptor)
	}
}

// take waits until no other operation on the VM is under way; give ends the own one.
func (m *machine) take(ctx context.Context) error {
	select {
	case m.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (m *machine) give() { <-m.turn }

// known gives a VM that is to be unlocked, or nil.
func (d *daemon) known(path string) *machine {
	d.mu.Lock()
	defer d.mu.Unlock()
	if m, ok := d.machines[descriptorOf(path)]; ok && m.wants() != nil {
		return m
	}
	return nil
}

// wanted gives all VMs that are to be unlocked.
func (d *daemon) wanted() (out []*machine) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, m := range d.machines {
		if m.wants() != nil {
			out = append(out, m)
		}
	}
	return out
}

func descriptorOf(path string) string {
	if strings.EqualFold(filepath.Ext(path), ".vmx") {
		return path
	}
	return path + ".vmx"
}

// directoryOf is where a VM's disk server has its sockets, whose paths have to be short.
func (d *daemon) directoryOf(descriptor string) string {
	sum := sha256.Sum256([]byte(descriptor))
	return filepath.Join(d.folder, hex.EncodeToString(sum[:8]))
}

func (m *machine) wants() *wish {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.wish
}

// runs notes that the VM is to be unlocked, and its disk server.
func (m *machine) runs(w wish, server *process) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wish, m.server, m.problem = &w, server, ""
}

// died notes that a disk server has ended, and tells whether it should not have.
func (m *machine) died(server *process) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.server != server || m.wish == nil {
		return false
	}
	m.server = nil
	return true
}

// isNews notes how an attempt to start the disk server again ended, and tells whether
// that is not as the last time.
func (m *machine) isNews(err error) bool {
	if err == nil {
		return true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	last := m.problem
	m.problem = err.Error()
	return m.problem != last
}

// attempting notes a restart that is under way, nil for none. One that somebody is
// waiting to end does not even begin.
func (m *machine) attempting(cancel context.CancelFunc) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.attempt = cancel; cancel != nil && m.lockers > 0 {
		cancel()
	}
}

// interrupt keeps the disk server from being started again until resume.
func (m *machine) interrupt() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lockers++; m.attempt != nil {
		m.attempt()
	}
}

func (m *machine) resume() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lockers--
}

// forgo notes that the VM is to be locked, and gives what was.
func (m *machine) forgo() (w wish, server *process) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.wish != nil {
		w, server = *m.wish, m.server
	}
	m.wish, m.server = nil, nil
	return w, server
}

// serves tells whether the disk server runs.
func (m *machine) serves() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.server.lives()
}
