package daemon

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmcrypt/vmcrypt/agent"
	"github.com/vmcrypt/vmcrypt/agent/api"
	"github.com/vmcrypt/vmcrypt/agent/diskserver"
	"github.com/vmcrypt/vmcrypt/image"
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

// unlock is the operation of the API.
func (d *daemon) unlock(ctx context.Context, r api.UnlockRequest) (*api.VM, error) {
	path, err := d.find(ctx, r.VM)
	if err != nil {
		return nil, err
	}
	m := d.machine(path)
	defer d.left(m)
	if err := m.take(ctx); err != nil {
		return nil, err
	}
	defer m.give()
	return m.unlock(ctx, path, r.ReadOnly)
}

func (m *machine) unlock(ctx context.Context, path string, readOnly bool) (*api.VM, error) {
	if w := m.wants(); w != nil {
		vm, err := m.ask(ctx)
		switch {
		case err == nil && w.ReadOnly == readOnly:
			return vm, nil
		case err == nil:
			return nil, fmt.Errorf("%w, read-only: %t", ErrUnlocked, w.ReadOnly)
		case m.serves():
			return nil, fmt.Errorf("%w, but its disk server does not answer: %w", ErrUnlocked, err)
		}
	}
	w := wish{ReadOnly: readOnly}
	e := m.entry(ctx, actUnlock, w)
	err := m.start(ctx, path, w, e)
	m.conclude(e, err)
	if err != nil {
		return nil, err
	}
	return m.ask(ctx)
}

// ErrUnlocked is the error for a VM that is unlocked already, in another way.
var ErrUnlocked = fmt.Errorf("%w: the VM is unlocked already", image.ErrInUse)

func (m *machine) serves() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.server.lives()
}

// start unlocks the disks, whether they were or not.
func (m *machine) start(ctx context.Context, path string, w wish, e *entry) error {
	t, err := m.open(path)
	if err != nil {
		return err
	}
	w.VM, w.Boot = t.VM(), m.boot
	e.about(w)
	defer m.usedKeys()
	pidfd := -1
	cmd := m.DiskServer()
	cmd.SysProcAttr = &syscall.SysProcAttr{PidFD: &pidfd}
	err = m.Host.Unlock(ctx, t, agent.UnlockOptions{
		ReadOnly: w.ReadOnly, Directory: m.directory, SocketUser: m.SocketUser, Command: cmd,
		Release: func(keys []agent.Release) error { return m.released(e, keys) },
	})
	if err != nil {
		if pidfd >= 0 {
			unix.Close(pidfd)
		}
		return err
	}
	p := newProcess(pidfd)
	m.runs(w, p)
	m.background.Go(func() { m.watch(p) })
	if err := m.note(w); err != nil {
		slog.Error("if the disk server dies while no agent runs, the next agent won't start it again", "descriptor", m.descriptor, "error", err)
	}
	return nil
}

// lock is the operation of the API.
func (d *daemon) lock(ctx context.Context, r api.LockRequest) (*api.VM, error) {
	path, err := d.find(ctx, r.VM)
	if err != nil {
		return nil, err
	}
	m := d.machine(path)
	defer d.left(m)
	m.interrupt()
	defer m.resume()
	if err := m.take(ctx); err != nil {
		return nil, err
	}
	defer m.give()
	if m.wants() == nil && !m.hasDirectory() {
		return d.locked(path)
	}
	if !r.Force {
		if err := m.awaitClients(ctx); err != nil {
			return nil, err
		}
	}
	// Nobody who goes away now stops it.
	if err := m.stop(context.WithoutCancel(ctx)); err != nil {
		return nil, err
	}
	vm, err := d.locked(path)
	if err != nil { // its files may be out of reach by now
		vm = brokenVM(m.descriptor, err)
	}
	return vm, nil
}

// hasDirectory tells whether a disk server left its directory, or has it.
func (m *machine) hasDirectory() bool {
	_, err := os.Lstat(m.directory)
	return !errors.Is(err, fs.ErrNotExist)
}

// Times of a lock.
const (
	leaveTime = 5 * time.Second // for clients to go
	leavePoll = 20 * time.Millisecond
	stopTime  = time.Minute // for a disk server to flush
)

// ErrClients is the error for a VM whose disks somebody has open.
var ErrClients = fmt.Errorf("%w: clients are connected", image.ErrInUse)

// awaitClients waits for clients to go. QEMU's connections may live a moment longer than it.
func (m *machine) awaitClients(ctx context.Context) error {
	for deadline := time.Now().Add(leaveTime); ; time.Sleep(leavePoll) {
		vm, err := m.ask(ctx)
		if err != nil {
			return nil //nolint:nilerr // a disk server that is no more has no clients
		}
		n := 0
		for _, disk := range vm.Disks {
			n += disk.Connections
		}
		if n == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%w: %s has %d connections to its disks", ErrClients, vm.Name, n)
		}
	}
}

// ErrLocking: the VM is locked, but not all went well.
var ErrLocking = errors.New("locked, but something failed on the way; what the guest wrote last may be lost")

// stop ends the disk server. It unlocks the VM no more even if this agent ends now.
func (m *machine) stop(ctx context.Context) (err error) {
	w, server := m.forgo()
	e := m.entry(ctx, actLock, w)
	defer func() { m.conclude(e, err) }()
	unnoted := unnote(m.directory)
	failed, err := m.end(ctx, server)
	if err != nil {
		return fmt.Errorf("%s is not locked: %w", m.descriptor, errors.Join(err, unnoted))
	}
	if err := errors.Join(unnoted, os.RemoveAll(m.directory)); err != nil {
		failed = append(failed, err.Error())
	}
	if len(failed) > 0 {
		return fmt.Errorf("%w: %s", ErrLocking, strings.Join(failed, "; "))
	}
	return nil
}

// end has the disk server end, in good order if that can be had, and tells what failed.
// The error is that it lives.
func (m *machine) end(ctx context.Context, server *process) (failed []string, err error) {
	failed, err = askToStop(ctx, m.directory)
	if err != nil && server.lives() {
		slog.Warn("a disk server does not end as asked", "descriptor", m.descriptor, "error", err)
	}
	if server == nil {
		if server, err = silent(m.directory); errors.Is(err, fs.ErrNotExist) {
			return failed, nil // it has ended
		}
		if err != nil {
			return failed, err
		}
	}
	return failed, server.end()
}

// askToStop has a disk server end, and tells what failed on the way.
func askToStop(ctx context.Context, directory string) (failed []string, err error) {
	reachable, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	client, err := diskserver.Connect(reachable, directory)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	ctx, cancel = context.WithTimeout(ctx, stopTime)
	defer cancel()
	return client.Stop(ctx)
}

// status tells of a VM that is to be unlocked.
func (m *machine) status(ctx context.Context) api.VM {
	vm, err := m.ask(ctx)
	if err == nil {
		return *vm
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.wish == nil { // since a moment ago
		return api.VM{Descriptor: m.descriptor, State: api.Locked, Disks: []api.Disk{}}
	}
	out := api.VM{
		Name: m.wish.VM.Name, UUID: m.wish.VM.UUID, Descriptor: m.descriptor, State: api.Restarting,
		Disks: []api.Disk{}, Problem: cmp.Or(m.problem, err.Error()),
	}
	if m.server.lives() {
		out.State = api.Unlocked
	}
	return out
}

// ask has the disk server tell its status.
func (m *machine) ask(ctx context.Context) (*api.VM, error) {
	status, err := statusOfServer(ctx, m.directory)
	if err != nil {
		return nil, err
	}
	return unlockedVM(status), nil
}

func unlockedVM(s *diskserver.Status) *api.VM {
	vm := &api.VM{
		Name: s.VM.Name, UUID: s.VM.UUID, Descriptor: s.VM.Descriptor, State: api.Unlocked, Since: &s.Since, PID: &s.PID,
	}
	for _, disk := range s.Disks {
		vm.Disks = append(vm.Disks, api.Disk{
			Node: disk.Node, URI: agent.NBDURI(disk.Node, disk.Socket), ReadOnly: disk.ReadOnly,
			BytesRead: disk.BytesRead, BytesWritten: disk.BytesWritten, Connections: disk.Connections,
		})
	}
	return vm
}

// status is the operation of the API.
func (d *daemon) status(ctx context.Context, vm string) (*api.VM, error) {
	path, err := d.find(ctx, vm)
	if err != nil {
		return nil, err
	}
	if m := d.known(path); m != nil {
		vm := m.status(ctx)
		return &vm, nil
	}
	return d.locked(path)
}
