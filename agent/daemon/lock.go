package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/vmcrypt/vmcrypt/agent/api"
	"github.com/vmcrypt/vmcrypt/agent/diskserver"
	"github.com/vmcrypt/vmcrypt/image"
)

// lock is the operation of the API.
func (d *daemon) lock(ctx context.Context, r api.LockRequest) (*api.VM, error) {
	if err := checkOwner(r.Owner); err != nil {
		return nil, err
	}
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
	force, err := m.mayForce(r)
	if err != nil {
		return nil, err
	}
	if !force {
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

var (
	// ErrClients is the error for a VM whose disks somebody has open.
	ErrClients = fmt.Errorf("%w: clients are connected", image.ErrInUse)
	// ErrSilent is the error for a VM of whose disks nobody knows whether they are open.
	ErrSilent = fmt.Errorf("%w: clients may be connected, for the disk server does not answer", image.ErrInUse)
	// ErrWaiting is the error for a VM whose disk server is started again, or just was:
	// who had its disks open may connect once more.
	ErrWaiting = fmt.Errorf("%w: clients may be about to connect again, for the disk server has died", image.ErrInUse)
)

// awaitClients waits for clients to go. QEMU's connections may live a moment longer than it.
func (m *machine) awaitClients(ctx context.Context) error {
	for deadline := time.Now().Add(leaveTime); ; time.Sleep(leavePoll) {
		inUse := m.checkClients(ctx)
		if ctx.Err() != nil { // what could not be asked then may be in use
			return ctx.Err()
		}
		if inUse == nil || errors.Is(inUse, ErrWaiting) || time.Now().After(deadline) { // nothing is started meanwhile
			return inUse
		}
	}
}

// checkClients fails if clients are connected, or may be.
func (m *machine) checkClients(ctx context.Context) error {
	vm, silence := m.ask(ctx)
	if silence != nil {
		if _, err := m.running(ctx); errors.Is(err, fs.ErrNotExist) {
			return m.checkGuest()
		}
		return fmt.Errorf("%w: %s: %w", ErrSilent, m.descriptor, silence)
	}
	return errors.Join(connected(vm), m.checkGuest())
}

// checkGuest is for a disk server without clients: the guest for which the VM is unlocked
// may be about to connect again.
func (m *machine) checkGuest() error {
	if w := m.wants(); w != nil && w.Owner != "" && !w.Locking && m.mayReconnect() {
		return fmt.Errorf("%w: %s, for %s", ErrWaiting, m.descriptor, w.Owner)
	}
	return nil
}

// connected fails if a VM's disks have clients.
func connected(vm *api.VM) error {
	n := 0
	for _, disk := range vm.Disks {
		n += disk.Connections
	}
	if n > 0 {
		return fmt.Errorf("%w: %s has %d connections to its disks", ErrClients, vm.Name, n)
	}
	return nil
}

// ErrLocking is the error for a VM that is locked, though not all went well.
var ErrLocking = errors.New("locked, but something failed on the way; what the guest wrote last may be lost")

// stop ends the disk server. None is started again even if that fails, or this agent
// ends now.
func (m *machine) stop(ctx context.Context) (err error) {
	w := m.forgo()
	e := m.entry(ctx, actLock, w)
	defer func() { m.conclude(e, err) }()
	m.noteLock(w)
	failed, err := m.end(ctx)
	if err != nil {
		err = fmt.Errorf("%s is not locked: %w", m.descriptor, err)
		m.stays(err)
		return err
	}
	m.stopped()
	diskserver.RemoveDirectory(m.directory)
	if err := unnote(m.directory); err != nil {
		failed = append(failed, err.Error())
	}
	if len(failed) > 0 {
		return fmt.Errorf("%w: %s", ErrLocking, strings.Join(failed, "; "))
	}
	return nil
}

// end has the disk server end, in good order if that can be had, and tells what failed.
// The error is that it lives.
func (m *machine) end(ctx context.Context) (failed []string, err error) {
	server, unknown := m.running(ctx)
	if errors.Is(unknown, fs.ErrNotExist) {
		return nil, nil
	}
	failed, silence := askToStop(ctx, m.directory)
	if silence != nil {
		slog.Warn("a disk server does not end as asked", "descriptor", m.descriptor, "error", silence)
		failed = append(failed, fmt.Sprintf("the disk server did not tell whether it flushed: %v", silence))
	}
	switch {
	case unknown == nil:
		return failed, server.end()
	case silence == nil:
		return failed, nil // it says that it has ended
	}
	return failed, unknown
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
