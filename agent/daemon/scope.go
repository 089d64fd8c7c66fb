package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

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
		Name:        scopesOf(m.directory) + strconv.Itoa(pid),
		Description: fmt.Sprintf("Encrypted disks of %q", m.descriptor),
		Before:      users, After: storage,
	}
}

// scopesOf is how the names of the scopes of a directory's disk servers begin. The rest
// is the number of the process.
func scopesOf(directory string) string { return "vmcrypt-disk-" + filepath.Base(directory) + "-" }

// findScoped gives a pidfd of the disk server of a directory that lives in a scope, or -1.
// Systemd knows it even where this process may not look at others.
func findScoped(ctx context.Context, directory string) int {
	if !systemd.CanScope() {
		return -1
	}
	pid := scoped(ctx, directory)
	fd, err := unix.PidfdOpen(pid, 0)
	if pid == 0 || err != nil {
		return -1
	}
	if scoped(ctx, directory) != pid { // the number may be another process's by now
		unix.Close(fd)
		return -1
	}
	return fd
}

// scoped gives the number of the disk server of a directory that lives in a scope, or 0.
func scoped(ctx context.Context, directory string) int {
	prefix := scopesOf(directory)
	names, err := systemd.Scopes(ctx, prefix)
	if err != nil {
		slog.Warn("a disk server can't be looked for in its scope", "directory", directory, "error", err)
	}
	for _, name := range names {
		if pid, err := strconv.Atoi(strings.TrimPrefix(name, prefix)); err == nil {
			return pid
		}
	}
	return 0
}
