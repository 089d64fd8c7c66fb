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

// ErrLocking is the error for a VM that is locked, though not all went well.
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
	diskserver.RemoveDirectory(m.directory)
	if err := unnoted; err != nil {
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
