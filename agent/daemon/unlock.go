package daemon

import (
	"context"
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
		case err == nil && w.Locking:
			return nil, fmt.Errorf("%w, and to be locked: its disk server lives on", ErrUnlocked)
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
	m.tend(func() { m.watch(p) })
	if err := m.note(w); err != nil {
		slog.Error("if the disk server dies while no agent runs, the next agent won't start it again", "descriptor", m.descriptor, "error", err)
	}
	return nil
}
