package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"

	"github.com/vmcrypt/vmcrypt/agent"
	"github.com/vmcrypt/vmcrypt/agent/api"
)

// Limits of what is told of a datastore, besides those of what is looked at in it: who may
// write there must not be able to have the agent give answers too long for clients.
const (
	maxConversions = 1000     // disks amid a conversion, for each of which files are read
	maxListed      = 32 << 20 // bytes that all datastores may add to an answer
)

// scan gives the VMs in the datastores that have encrypted disks, as if all were
// locked, as far as they can be read. The error is that ctx has ended.
func (d *daemon) scan(ctx context.Context) (map[string]api.VM, error) {
	if err := d.scans.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer d.scans.Release(1)
	found := map[string]api.VM{}
	for _, root := range d.Datastores {
		l := &listing{found: found, conversions: maxConversions, listed: maxListed / len(d.Datastores)}
		err := agent.Scan(ctx, d.Datastores, root, l.look)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		d.wasRead(root, err)
	}
	return found, nil
}

// wasRead notes what kept a datastore from being read to its end, if anything, and logs
// what is new.
func (d *daemon) wasRead(root string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	was := d.unread[root]
	if d.unread[root] = err; err != nil && (was == nil || was.Error() != err.Error()) {
		slog.Warn("a datastore was not read to its end", "datastore", root, "error", err)
	}
}

// listing is what is found in one datastore.
type listing struct {
	found map[string]api.VM // by the paths of their descriptors

	conversions, listed int // how many there may still be
}

// look adds the VM of a descriptor if it has encrypted disks.
func (l *listing) look(path string, t *agent.Target, err error) error {
	switch {
	case err != nil:
		return l.add(brokenVM(path, err))
	case t.Plain():
		return nil
	}
	if err := l.countConversions(t); err != nil {
		return err
	}
	return l.add(lockedVM(t))
}

func (l *listing) countConversions(t *agent.Target) error {
	for _, disk := range t.Disks {
		if disk.Record != nil && disk.Record.Unfinished() {
			l.conversions--
		}
	}
	if l.conversions < 0 {
		return fmt.Errorf("%w: %d disks amid a conversion", agent.ErrLimit, maxConversions)
	}
	return nil
}

func (l *listing) add(vm *api.VM) error {
	text, err := json.Marshal(vm)
	if err != nil {
		return err
	}
	if l.listed -= len(text); l.listed < 0 {
		return fmt.Errorf("%w: VMs of which there is more to tell than fits into an answer", agent.ErrLimit)
	}
	l.found[vm.Descriptor] = *vm
	return nil
}
