package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vmcrypt/vmcrypt/vmx"
)

// ErrCircle means that the key managers that have a VM's key run in VMs that need it.
var ErrCircle = errors.New("to unlock the VM would need the VM itself")

// isVM tells whether the target is the VM of that UUID, or of that descriptor.
func (t *Target) isVM(name string) bool {
	if filepath.IsAbs(name) {
		return t.place() == resolved(name)
	}
	return SameUUID(t.VM().UUID, name)
}

// place is where the target's descriptor lies, whichever way leads to it.
func (t *Target) place() string {
	path, err := filepath.Abs(t.Descriptor)
	if err != nil {
		path = t.Descriptor
	}
	return resolved(path)
}

// SameUUID compares UUIDs, of which descriptors have "56 4d 0b … -…" and libvirt
// "564d0b…-…".
func SameUUID(a, b string) bool {
	digits := func(s string) string { return strings.ToLower(strings.NewReplacer(" ", "", "-", "").Replace(s)) }
	return len(digits(a)) == 32 && digits(a) == digits(b)
}

// circles is which VMs run key managers, and which aliases these need to be unlocked.
type circles struct {
	vms   map[string][]string // by alias: of each key manager, who runs it; "" for nobody that needs a key
	needs map[string][]need   // by VM
}

// need is aliases of which one is enough.
type need []string

// newCircles looks for the VMs that run key managers. One that can't be found, or opened,
// passes for one that needs no key: it is elsewhere.
func (h *Host) newCircles(ctx context.Context, also *Target) (*circles, error) {
	c := &circles{vms: map[string][]string{}, needs: map[string][]need{}}
	found, err := h.findVMs(ctx, also)
	if err != nil {
		return nil, err
	}
	for alias, names := range h.KeyManagerVMs {
		for _, name := range names {
			vm := ""
			if t := found[name]; t != nil {
				vm = t.place()
				c.needs[vm] = t.needs(nil, "")
			}
			c.vms[alias] = append(c.vms[alias], vm)
		}
	}
	return c, nil
}

// findVMs finds the VMs that run key managers, by what the configuration calls them.
func (h *Host) findVMs(ctx context.Context, also *Target) (map[string]*Target, error) {
	found, byUUID := map[string]*Target{}, map[string]bool{}
	for _, names := range h.KeyManagerVMs {
		for _, name := range names {
			switch {
			case name == "":
			case also != nil && also.isVM(name):
				found[name] = also
			case filepath.IsAbs(name):
				found[name], _ = Open(name, "") // as is said above
			default:
				byUUID[name] = true
			}
		}
	}
	for _, root := range h.Datastores {
		if len(byUUID) == 0 {
			break
		}
		_ = Scan(ctx, h.Datastores, root, func(_ string, t *Target, err error) error { // as far as it can be read
			for name := range byUUID {
				if err == nil && t.isVM(name) && (found[name] == nil || found[name].Plain()) { // a copy may be encrypted
					found[name] = t
				}
			}
			return nil
		})
	}
	return found, ctx.Err()
}

// needs are the aliases that the target's disks need, as they would be if the given ones
// were under that alias.
func (t *Target) needs(moved []Disk, alias string) (all []need) {
	for _, d := range t.Disks {
		switch {
		case slices.ContainsFunc(moved, func(m Disk) bool { return m.Node == d.Node }):
			all = append(all, need{alias})
		case d.Record != nil:
			all = append(all, aliasesOf(d.Record.Recipients))
			if len(d.Record.Previous) > 0 {
				all = append(all, aliasesOf(d.Record.Previous))
			}
		}
	}
	return all
}

func aliasesOf(recipients []vmx.Recipient) (n need) {
	for _, r := range recipients {
		n = append(n, r.Alias)
	}
	return n
}

// startable are the VMs that could be unlocked one after the other, none of them being
// so at first.
func (c *circles) startable() map[string]bool {
	up := map[string]bool{"": true}
	for before := -1; before != len(up); {
		before = len(up)
		for vm := range c.needs {
			if c.lacking(vm, up) == nil {
				up[vm] = true
			}
		}
	}
	return up
}

// lacking is the first need of a VM that is not met, nil if all are.
func (c *circles) lacking(vm string, up map[string]bool) need {
	for _, n := range c.needs[vm] {
		if !slices.ContainsFunc(n, func(alias string) bool { return c.answers(alias, up) }) {
			return n
		}
	}
	return nil
}

// answers tells whether an alias has a key manager that runs. One of which nothing is
// known does.
func (c *circles) answers(alias string, up map[string]bool) bool {
	vms := c.vms[alias]
	return len(vms) == 0 || slices.ContainsFunc(vms, func(vm string) bool { return up[vm] })
}

// from tells the way from a VM that can't be unlocked round to where it began.
func (c *circles) from(vm string, up map[string]bool) string {
	way, seen := vm, map[string]bool{}
	for !seen[vm] {
		seen[vm] = true
		alias := c.lacking(vm, up)[0]
		vm = c.vms[alias][0]
		way += fmt.Sprintf(" needs %q, which runs in %s", alias, vm)
		if !seen[vm] {
			way += ", and that"
		}
	}
	return way
}

// Circles tells of the VMs that run key managers and could never be unlocked if all of
// them were locked.
func (h *Host) Circles(ctx context.Context) (all []string, err error) {
	if !h.runsKeyManagers() {
		return nil, nil
	}
	c, err := h.newCircles(ctx, nil)
	if err != nil {
		return nil, err
	}
	up := c.startable()
	for _, vm := range slices.Sorted(maps.Keys(c.needs)) {
		if !up[vm] {
			all = append(all, fmt.Sprintf("%v: %s", ErrCircle, c.from(vm, up)))
		}
	}
	return all, nil
}

func (h *Host) runsKeyManagers() bool {
	for _, vms := range h.KeyManagerVMs {
		if slices.ContainsFunc(vms, func(vm string) bool { return vm != "" }) {
			return true
		}
	}
	return false
}

// checkCircle refuses to have disks of a target under keys of an alias if then none could
// be had without the target. That is so for one that runs a key manager, be it by others
// that do.
func (h *Host) checkCircle(ctx context.Context, disks []Disk, alias string) error {
	if !h.runsKeyManagers() {
		return nil
	}
	t := disks[0].target
	c, err := h.newCircles(ctx, t)
	if err != nil {
		return err
	}
	vm := t.place()
	if _, runs := c.needs[vm]; !runs {
		return nil
	}
	c.needs[vm] = t.needs(disks, alias)
	if up := c.startable(); !up[vm] {
		return fmt.Errorf("%w: %s", ErrCircle, c.from(vm, up))
	}
	return nil
}
