package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vmcrypt/vmcrypt/agent"
	"github.com/vmcrypt/vmcrypt/agent/api"
	"github.com/vmcrypt/vmcrypt/image"
)

// unlock is the operation of the API.
func (d *daemon) unlock(ctx context.Context, r api.UnlockRequest) (*api.VM, error) {
	if err := checkOwner(r.Owner); err != nil {
		return nil, err
	}
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
	return m.unlock(ctx, path, wish{ReadOnly: r.ReadOnly, Owner: r.Owner})
}

func (m *machine) unlock(ctx context.Context, path string, w wish) (*api.VM, error) {
	if has := m.wants(); has != nil {
		vm, err := m.ask(ctx)
		switch {
		case err == nil:
			return m.unlockAgain(*has, w, vm)
		case m.serves():
			return nil, fmt.Errorf("%w, but its disk server does not answer: %w", ErrUnlocked, err)
		case !has.isFor(w.Owner):
			return nil, has.owned()
		}
		if err := m.checkWaiting(*has, w.Owner); err != nil {
			return nil, err
		}
		w.Owner = cmp.Or(w.Owner, has.Owner)
	}
	e := m.entry(ctx, actUnlock, w)
	err := m.start(ctx, path, w, e)
	m.conclude(e, err)
	if err != nil {
		return nil, err
	}
	return m.ask(ctx)
}

// unlockAgain is for a VM whose disks are served.
func (m *machine) unlockAgain(has, want wish, vm *api.VM) (*api.VM, error) {
	switch {
	case has.Locking:
		return nil, fmt.Errorf("%w, and to be locked: its disk server lives on", ErrUnlocked)
	case has.ReadOnly != want.ReadOnly:
		return nil, fmt.Errorf("%w, read-only: %t", ErrUnlocked, has.ReadOnly)
	case want.Owner == "" || has.Owner == want.Owner:
		return vm, nil
	case has.Owner != "":
		return nil, has.owned()
	}
	if err := errors.Join(connected(vm), m.checkWaiting(has, want.Owner)); err != nil {
		return nil, err
	}
	has.Owner, vm.Owner = want.Owner, want.Owner
	if err := m.note(has); err != nil {
		return nil, err
	}
	m.setOwner(has)
	return vm, nil
}

// ErrUnlocked is the error for a VM that is unlocked already, in another way.
var ErrUnlocked = fmt.Errorf("%w: the VM is unlocked already", image.ErrInUse)

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
		Started: func(pid int) { m.scope(ctx, pid) },
	})
	if err != nil {
		if pidfd >= 0 {
			unix.Close(pidfd)
		}
		return err
	}
	p := newProcess(pidfd)
	m.runs(w, p)
	m.tend(func() { m.watch(p) })
	if err := m.note(w); err != nil {
		slog.Error("if the disk server dies while no agent runs, the next agent won't start it again", "descriptor", m.descriptor, "error", err)
	}
	return nil
}
