package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/vmcrypt/vmcrypt/agent/diskserver"
)

// machine is a VM that is unlocked, or was, or is about to be.
type machine struct {
	*daemon
	descriptor string // its path, by which the machine is known
	directory  string // of its disk server

	users int           // of the machine, running or waiting: guarded by daemon.mu
	turn  chan struct{} // holds an element while an operation is under way

	mu      sync.Mutex
	wish    *wish              // nil if the VM is locked
	server  *process           // the disk server; nil if there is none, or none is known
	problem string             // why it was not started again, or does not end
	revived time.Time          // when the disk server was started again
	pause   time.Duration      // before it was started last, if the one before had a short life
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

// tend does something about the VM in the background.
func (m *machine) tend(do func()) {
	m.machine(m.descriptor) // one more user
	m.background.Go(func() {
		defer m.left(m)
		do()
	})
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

// known gives a VM that is not locked, or nil.
func (d *daemon) known(path string) *machine {
	d.mu.Lock()
	defer d.mu.Unlock()
	if m, ok := d.machines[descriptorOf(path)]; ok && m.wants() != nil {
		return m
	}
	return nil
}

// wanted gives all VMs that are not locked.
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

func (d *daemon) directoryOf(descriptor string) string { return directoryIn(d.folder, descriptor) }

// directoryIn is where a VM's disk server has its sockets, whose paths have to be short.
func directoryIn(folder, descriptor string) string {
	sum := sha256.Sum256([]byte(descriptor))
	return filepath.Join(folder, hex.EncodeToString(sum[:8]))
}

// folderOf is where an agent that listens at a socket has the directories of disk servers.
func folderOf(socket string) string { return filepath.Join(filepath.Dir(socket), "vms") }

// SocketPath is where a disk is served when its VM is unlocked by the agent that listens
// at a socket. The descriptor's path is the one by which it is unlocked.
func SocketPath(socket, descriptor, node string) string {
	return filepath.Join(directoryIn(folderOf(socket), descriptor), diskserver.SocketName(node))
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
	if m.server != server || m.wish == nil || m.wish.Locking {
		return false
	}
	m.server = nil
	return true
}

// reconnectTime is how long QEMU may take to connect to a disk server that was started
// again: it tries ever less often, up to every 16 s.
const reconnectTime = 30 * time.Second

// revives notes that the disk server was started again.
func (m *machine) revives() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.revived = time.Now()
}

// mayReconnect tells whether clients may be about to come back that are not to be seen:
// the disk server is no more, or has just been started again.
func (m *machine) mayReconnect() bool {
	if !m.serves() {
		return true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return time.Since(m.revived) < reconnectTime
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

// forgo notes that the VM is to be locked, and gives what is known of it.
func (m *machine) forgo() wish {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := wish{VM: diskserver.VM{Name: filepath.Base(m.descriptor), Descriptor: m.descriptor}, Boot: m.boot}
	if m.wish != nil {
		w = *m.wish
	}
	w.Locking = true
	m.wish = &w
	return w
}

// stays notes why the VM, which is to be locked, is not.
func (m *machine) stays(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.problem = err.Error()
}

// stopped notes that the VM is locked.
func (m *machine) stopped() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wish, m.server, m.problem = nil, nil, ""
}

// serves tells whether the disk server runs, if it is known.
func (m *machine) serves() bool { return m.process().lives() }

// process gives the disk server, which may have ended; nil if none is known.
func (m *machine) process() *process {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.server
}

// running gives the disk server if it runs, even if this agent did not know it. The
// error is fs.ErrNotExist where there is none.
func (m *machine) running(ctx context.Context) (*process, error) {
	if p := m.process(); p.lives() {
		return p, nil
	}
	p, err := silent(m.directory)
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // only root can find each
		if asked, _, silence := serving(ctx, m.directory); silence == nil {
			p, err = asked, nil
		}
	}
	if err != nil {
		return nil, err
	}
	m.found(p)
	return p, nil
}

// found goes on with a disk server that this agent did not know.
func (m *machine) found(p *process) {
	m.mu.Lock()
	m.server, m.problem = p, ""
	w := m.wish
	m.mu.Unlock()
	m.tend(func() { m.watch(p) })
	if w == nil {
		w = new(wish)
	}
	m.conclude(m.entry(m.ctx, actAdopt, *w), nil)
}
