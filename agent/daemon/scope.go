package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/vmcrypt/vmcrypt/internal/systemd"
)

// users are the units that stop guests when the host is shut down: the disks go after
// them. Those that a host does not have do not matter.
var users = []string{
	"machine.slice", "virt-guest-shutdown.target", "libvirt-guests.service", "libvirtd.service", "virtqemud.service",
	"qemu.slice", "pve-guests.service",
}

// storage are the units that the disks need, and so go before.
var storage = []string{"local-fs.target", "remote-fs.target"}

// scope has a disk server live in a unit of its own, apart from the agent's: so it
// outlives it in any case, is accounted for by itself, and ends at shutdown when the
// guest has ended. Where that can't be had, it lives on with the agent's.
func (m *machine) scope(ctx context.Context, pid int) {
	if !systemd.CanScope() {
		return
	}
	if err := m.scopeOf(pid).Start(ctx, pid); err != nil {
		slog.Warn("a disk server has no scope of its own", "descriptor", m.descriptor, "error", err)
	}
}

// scopeOf describes the unit. systemd writes it to a file, a line a setting: the path may
// have line breaks, and be no UTF-8.
func (m *machine) scopeOf(pid int) systemd.Scope {
	return systemd.Scope{
		Name:        fmt.Sprintf("vmcrypt-disk-%s-%d", filepath.Base(m.directory), pid),
		Description: fmt.Sprintf("Encrypted disks of %q", m.descriptor),
		Before:      users, After: storage,
	}
}
