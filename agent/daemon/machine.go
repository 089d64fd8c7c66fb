package daemon

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vmcrypt/vmcrypt/agent"
	"github.com/vmcrypt/vmcrypt/agent/api"
	"github.com/vmcrypt/vmcrypt/agent/diskserver"
	"github.com/vmcrypt/vmcrypt/image"
)

// machine is a VM that is unlocked, or was.
type machine struct {
	*daemon
	descriptor string // its path, by which the machine is known
	directory  string // of its disk server

	users int           // of the machine, running or waiting: guarded by daemon.mu
	turn  chan struct{} // holds an element while an operation is under way

	mu      sync.Mutex
	wish    *wish // nil while the VM is to be locked
	vm      diskserver.VM
	server  *process // the disk server; nil if it died
	problem string   // why it was not started again then
}

// enter gives the VM of a path, of a descriptor or a bare image, when no other operation
// on it is under way. The caller calls leave then.
func (d *daemon) enter(ctx context.Context, path string) (m *machine, leave func(), err error) {
	m = d.machine(path)
	select {
	case m.turn <- struct{}{}:
		return m, func() { <-m.turn; d.left(m) }, nil
	case <-ctx.Done():
		d.left(m)
		return nil, nil, ctx.Err()
	}
}

// machine counts one more user of a VM.
func (d *daemon) machine(path string) *machine {
	descriptor := descriptorOf(path)
	d.mu.Lock()
	defer d.mu.Unlock()
	m, ok := d.machines[descriptor]
	if !ok {
		m = &machine{
			daemon: d, descriptor: descriptor, directory: filepath.Join(d.folder, idOf(descriptor)),
			turn: make(chan struct{}, 1),
		}
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

// known gives a VM that is to be unlocked, or nil.
func (d *daemon) known(path string) *machine {
	d.mu.Lock()
	defer d.mu.Unlock()
	if m, ok := d.machines[descriptorOf(path)]; ok && m.wants() != nil {
		return m
	}
	return nil
}

func descriptorOf(path string) string {
	if strings.EqualFold(filepath.Ext(path), ".vmx") {
		return path
	}
	return path + ".vmx"
}

// idOf names a VM in paths of sockets, which have to be short.
func idOf(descriptor string) string {
	sum := sha256.Sum256([]byte(descriptor))
	return hex.EncodeToString(sum[:8])
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

func (m *machine) wants() *wish {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.wish
}

// runs notes that the disk server runs.
func (m *machine) runs(w wish, vm diskserver.VM, server *process) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wish, m.vm, m.server, m.problem = &w, vm, server, ""
}

// died notes that the disk server, if this is it, does not run any more, and why it
// was not started again.
func (m *machine) died(server *process, why string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.server == server {
		m.server, m.problem = nil, why
	}
}

// forgo notes that the VM is to be locked, and gives what was.
func (m *machine) forgo() (w wish, vm diskserver.VM, server *process) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w, vm, server = *m.wish, m.vm, m.server
	m.wish, m.server = nil, nil
	return w, vm, server
}

// unlock is the operation of the API.
func (d *daemon) unlock(ctx context.Context, r api.UnlockRequest) (*api.VM, error) {
	path, err := d.find(ctx, r.VM)
	if err != nil {
		return nil, err
	}
	m, leave, err := d.enter(ctx, path)
	if err != nil {
		return nil, err
	}
	defer leave()
	return m.unlock(ctx, wish{Path: path, ReadOnly: r.ReadOnly})
}

func (m *machine) unlock(ctx context.Context, w wish) (*api.VM, error) {
	if now := m.wants(); now != nil {
		vm, err := m.ask(ctx)
		switch {
		case err == nil && now.ReadOnly == w.ReadOnly:
			return vm, nil
		case err == nil:
			return nil, fmt.Errorf("%w: %s is unlocked already, read-only: %t", image.ErrInUse, m.descriptor, now.ReadOnly)
		}
	}
	if err := m.start(ctx, w, actUnlock); err != nil {
		return nil, err
	}
	return m.ask(ctx)
}

// start unlocks the disks, whether they were or not.
func (m *machine) start(ctx context.Context, w wish, act action) (err error) {
	e := m.entry(ctx, act)
	defer func() { m.conclude(e, err) }()
	t, err := agent.OpenBeneath(m.Datastores, w.Path)
	if err != nil {
		return err
	}
	e.about(t.VM(), w)
	defer m.usedKeys()
	pidfd := -1
	cmd := m.DiskServer()
	cmd.SysProcAttr = &syscall.SysProcAttr{PidFD: &pidfd}
	err = m.Host.Unlock(ctx, t, agent.UnlockOptions{
		ReadOnly: w.ReadOnly, Directory: m.directory, SocketUser: m.SocketUser, Command: cmd,
		Release: func(keys []agent.Release) error { return m.released(e, keys) },
	})
	p := newProcess(pidfd)
	if err != nil {
		p.Close()
		return err
	}
	m.runs(w, t.VM(), p)
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
	m, leave, err := d.enter(ctx, path)
	if err != nil {
		return nil, err
	}
	defer leave()
	if m.wants() == nil {
		return m.locked(path)
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
	return m.locked(path)
}

// locked tells of a VM that is locked. Its files may be out of reach by now.
func (m *machine) locked(path string) (*api.VM, error) {
	t, err := agent.OpenBeneath(m.Datastores, path)
	if err != nil {
		return &api.VM{Name: filepath.Base(path), Descriptor: m.descriptor, State: api.Locked, Disks: []api.Disk{}, Problem: err.Error()}, nil
	}
	vm := lockedVM(t)
	return &vm, nil
}

// Times of a lock.
const (
	leaveTime = 5 * time.Second // for clients to go
	leavePoll = 20 * time.Millisecond
	stopTime  = time.Minute // for a disk server to flush and end
	termTime  = 10 * time.Second
)

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
			return fmt.Errorf("%w: %s has %d connections to its disks", image.ErrInUse, vm.Name, n)
		}
	}
}

// stop ends the disk server.
func (m *machine) stop(ctx context.Context) (err error) {
	w, vm, server := m.forgo()
	e := m.entry(ctx, actLock)
	e.about(vm, w)
	defer func() { m.conclude(e, err) }()
	failed := m.end(ctx, server)
	if err := errors.Join(os.RemoveAll(m.directory), m.unnote()); err != nil {
		failed = append(failed, err.Error())
	}
	if len(failed) > 0 {
		return fmt.Errorf("%w: %s", ErrLocking, strings.Join(failed, "; "))
	}
	return nil
}

// ErrLocking: the VM is locked, but not all went well.
var ErrLocking = errors.New("locked, but something failed on the way; what the guest wrote last may be lost")

// end has a disk server end, in good order if that can be had, and tells what failed.
func (m *machine) end(ctx context.Context, server *process) (failed []string) {
	ctx, cancel := context.WithTimeout(ctx, stopTime)
	defer cancel()
	client, err := diskserver.Connect(ctx, m.directory)
	if err == nil {
		failed, err = client.Stop(ctx)
		client.Close()
	}
	if server == nil {
		if server, err = silent(m.directory); errors.Is(err, os.ErrNotExist) {
			return failed // it died before
		}
	}
	if server == nil {
		return append(failed, err.Error())
	}
	defer server.Close()
	if err != nil {
		slog.Warn("a disk server does not end as asked", "descriptor", m.descriptor, "error", err)
	}
	if err := server.end(termTime); err != nil {
		failed = append(failed, err.Error())
	}
	return failed
}

// status tells of a VM that is to be unlocked.
func (m *machine) status(ctx context.Context) api.VM {
	vm, err := m.ask(ctx)
	if err == nil {
		return *vm
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	out := api.VM{
		Name: m.vm.Name, UUID: m.vm.UUID, Descriptor: m.descriptor, State: api.Restarting, Disks: []api.Disk{},
		Problem: cmp.Or(m.problem, err.Error()),
	}
	switch {
	case m.server != nil:
		out.State = api.Unlocked
	case m.wish == nil:
		out.State, out.Problem = api.Locked, "" // since a moment ago
	}
	return out
}

// askTime is how long a disk server may take to tell its status.
const askTime = 10 * time.Second

// ask has the disk server tell its status.
func (m *machine) ask(ctx context.Context) (*api.VM, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
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
			Node: disk.Node, URI: URI(disk.Node, disk.Socket), ReadOnly: disk.ReadOnly,
			BytesRead: disk.BytesRead, BytesWritten: disk.BytesWritten, Connections: disk.Connections,
		})
	}
	return vm
}

// URI leads to a disk that is served over NBD:
// https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md
func URI(node, socket string) string {
	return (&url.URL{Scheme: "nbd+unix", Path: "/" + node, RawQuery: url.Values{"socket": {socket}}.Encode()}).String()
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
	t, err := agent.OpenBeneath(d.Datastores, path)
	if err != nil {
		return nil, err
	}
	locked := lockedVM(t)
	return &locked, nil
}
