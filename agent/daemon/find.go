package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vmcrypt/vmcrypt/agent"
	"github.com/vmcrypt/vmcrypt/agent/api"
	"github.com/vmcrypt/vmcrypt/internal/text"
)

var (
	// ErrUnknownVM is the error for a name that no VM has.
	ErrUnknownVM = errors.New("unknown VM")
	// ErrAmbiguous is the error for a name that several VMs have.
	ErrAmbiguous = errors.New("several VMs have this name")
)

// list gives all VMs with encrypted disks.
func (d *daemon) list(ctx context.Context) (*api.List, error) {
	found, err := d.scan(ctx)
	if err != nil {
		return nil, err
	}
	for _, vm := range d.unlockedVMs(ctx) {
		if vm != nil {
			found[vm.Descriptor] = *vm
		}
	}
	list := &api.List{VMs: []api.VM{}}
	for _, vm := range found {
		list.VMs = append(list.VMs, vm)
	}
	slices.SortFunc(list.VMs, func(a, b api.VM) int { return strings.Compare(a.Descriptor, b.Descriptor) })
	return list, ctx.Err()
}

// open opens the VM that a client means by a path.
func (d *daemon) open(path string) (*agent.Target, error) {
	t, err := agent.OpenBeneath(d.Datastores, path)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: %w", ErrUnknownVM, err)
	}
	return t, err
}

// locked tells of a VM that is locked. What is none must not pass for one: who locks it
// may have meant another.
func (d *daemon) locked(path string) (*api.VM, error) {
	t, err := d.open(path)
	switch {
	case err != nil:
		return nil, err
	case !t.Described():
		return nil, fmt.Errorf("%w: %s has no descriptor %s", ErrUnknownVM, path, t.Descriptor)
	case t.Plain():
		return nil, fmt.Errorf("%w: %s has no encrypted disk", agent.ErrState, path)
	}
	return lockedVM(t), nil
}

func lockedVM(t *agent.Target) *api.VM {
	vm := t.VM()
	out := &api.VM{Name: vm.Name, UUID: vm.UUID, Descriptor: vm.Descriptor, State: api.Locked, Disks: []api.Disk{}}
	for _, disk := range t.Disks {
		if disk.Record == nil {
			continue
		}
		d := api.Disk{Node: disk.Node}
		if disk.Record.Unfinished() {
			d.Conversion = conversionOf(t, disk)
			out.Problem = unfinished(disk, d.Conversion)
		}
		out.Disks = append(out.Disks, d)
	}
	return out
}

// conversionOf tells how far a conversion has come, as far as that can be seen.
func conversionOf(t *agent.Target, disk agent.Disk) *api.Conversion {
	c := &api.Conversion{State: disk.Record.State, SizeBytes: disk.Record.Size}
	if s, err := t.Status([]string{disk.Node}); err == nil && s.Disks[0].Conversion != nil {
		c.PositionBytes, c.Running = s.Disks[0].Conversion.PositionBytes, s.Disks[0].Conversion.Running
	}
	return c
}

func unfinished(disk agent.Disk, c *api.Conversion) string {
	if c.Running {
		return fmt.Sprintf("disk %s is %s", disk.Node, disk.Record.State)
	}
	return fmt.Sprintf("disk %s is %s, which was interrupted: that has to be finished first", disk.Node, disk.Record.State)
}

// brokenVM is a VM of which there is not more to tell.
func brokenVM(descriptor string, err error) *api.VM {
	return &api.VM{
		Name: filepath.Base(descriptor), Descriptor: descriptor, State: api.Locked, Disks: []api.Disk{},
		Problem: text.Clip(err.Error(), maxProblem),
	}
}

// maxProblem bounds what is told of a descriptor that can't be read, in bytes: it may
// be in the words of that descriptor.
const maxProblem = 4 << 10

// find gives the path that a client means: one of a descriptor or an image.
func (d *daemon) find(ctx context.Context, vm string) (string, error) {
	switch {
	case vm == "":
		return "", fmt.Errorf("%w: name a VM, or its descriptor", ErrRequest)
	case filepath.IsAbs(vm):
		return filepath.Clean(vm), nil
	}
	list, err := d.list(ctx)
	if err != nil {
		return "", err
	}
	var paths []string
	for _, candidate := range list.VMs {
		if candidate.Name == vm || agent.SameUUID(candidate.UUID, vm) {
			paths = append(paths, candidate.Descriptor)
		}
	}
	switch len(paths) {
	case 0:
		return "", fmt.Errorf("%w %q: no VM with encrypted disks has this name or UUID in %s", ErrUnknownVM, vm, strings.Join(d.Datastores, ", "))
	case 1:
		return paths[0], nil
	}
	return "", fmt.Errorf("%w: %s: name one of %s", ErrAmbiguous, vm, strings.Join(paths[:min(len(paths), maxNamed)], ", "))
}

// maxNamed is how many VMs of a name are told.
const maxNamed = 10
