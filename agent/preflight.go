package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vmcrypt/vmcrypt/kek"
)

// ErrPreflight means that a VM could not be unlocked.
var ErrPreflight = errors.New("VMs could not be unlocked if this host rebooted now")

// Preflight is which VMs of this host could be unlocked if it rebooted now.
type Preflight struct {
	VMs        []VMPreflight     `json:"vms"` // those with encrypted disks
	Datastores []UnreadDatastore `json:"unreadDatastores"`
	Links      []string          `json:"links"`   // symbolic links behind which nothing was looked at, and why
	Circles    []string          `json:"circles"` // of VMs that run key managers and need each other
}

// VMPreflight is whether one VM could be unlocked.
type VMPreflight struct {
	Name       string   `json:"name"`
	UUID       string   `json:"uuid"`
	Descriptor string   `json:"descriptor"`
	Unlocks    bool     `json:"unlocks"`
	Problems   []string `json:"problems"` // why it could not be unlocked
	Warnings   []string `json:"warnings"` // what is wrong besides

	causes []error
}

// UnreadDatastore is one that could not be read to its end.
type UnreadDatastore struct {
	Path    string `json:"path"`
	Problem string `json:"problem"`
}

// preflightBatch is how many VMs are looked at a time, so that there need not be room for
// the data keys of all.
const preflightBatch = 500

// Preflight looks at all VMs in the datastores as if none was unlocked and nothing was
// left of what this host knows.
func (h *Host) Preflight(ctx context.Context) (*Preflight, error) {
	p := &Preflight{VMs: []VMPreflight{}, Datastores: []UnreadDatastore{}, Links: []string{}, Circles: []string{}}
	var targets []*Target
	for _, root := range h.Datastores {
		s := newScan(h.Datastores, func(path string, t *Target, err error) error {
			switch {
			case err != nil:
				p.VMs = append(p.VMs, VMPreflight{Name: path, Descriptor: path, Problems: []string{err.Error()}, Warnings: []string{}, causes: []error{err}})
			case !t.Plain():
				targets = append(targets, t)
			}
			return nil
		})
		s.links = func(problem string) { p.Links = append(p.Links, problem) }
		err := s.datastore(ctx, root)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			p.Datastores = append(p.Datastores, UnreadDatastore{Path: root, Problem: err.Error()})
		}
	}
	if err := h.preflight(ctx, p, targets); err != nil {
		return nil, err
	}
	circles, err := h.Circles(ctx)
	if err != nil {
		return nil, err
	}
	p.Circles = append(p.Circles, circles...)
	slices.SortFunc(p.VMs, func(a, b VMPreflight) int { return strings.Compare(a.Descriptor, b.Descriptor) })
	return p, nil
}

func (h *Host) preflight(ctx context.Context, p *Preflight, targets []*Target) error {
	var flights []*flight
	for batch := range slices.Chunk(targets, preflightBatch) {
		of, err := h.fly(ctx, batch)
		if err != nil {
			return err
		}
		flights = append(flights, of...)
	}
	h.settle(flights)
	for _, f := range flights {
		p.VMs = append(p.VMs, f.vm)
	}
	return nil
}

// flight is a VM that is looked at.
type flight struct {
	vm     VMPreflight
	target *Target
	disks  []DiskVerification
}

// fly asks the key managers for the keys of VMs.
func (h *Host) fly(ctx context.Context, targets []*Target) ([]*flight, error) {
	var disks []Disk
	for _, t := range targets {
		of, err := t.encrypted()
		if err != nil {
			return nil, err
		}
		disks = append(disks, of...)
	}
	v, err := h.verify(ctx, disks)
	if err != nil {
		return nil, err
	}
	var flights []*flight
	rest := v.Disks
	for _, t := range targets {
		f := newFlight(t)
		for _, d := range t.Disks {
			if d.Record != nil {
				f.look(d, &rest[0])
				f.disks, rest = append(f.disks, rest[0]), rest[1:]
			}
		}
		flights = append(flights, f)
	}
	return flights, nil
}

func newFlight(t *Target) *flight {
	vm := t.VM()
	return &flight{target: t, vm: VMPreflight{
		Name: vm.Name, UUID: vm.UUID, Descriptor: vm.Descriptor, Problems: []string{}, Warnings: []string{},
	}}
}

// look notes what is wrong with a disk.
func (f *flight) look(d Disk, v *DiskVerification) {
	if err := d.ready(); err != nil {
		f.blame(fmt.Sprintf("disk %s: %v", d.Node, err), err)
	}
	complaints := v.complaints()
	if !v.opens() {
		f.blame(fmt.Sprintf("disk %s: its key is not to be had: %s", d.Node, strings.Join(complaints, "; ")), v.causes()...)
		return
	}
	for _, text := range complaints {
		f.vm.Warnings = append(f.vm.Warnings, "disk "+d.Node+": "+text)
	}
}

func (f *flight) blame(problem string, causes ...error) {
	f.vm.Problems = append(f.vm.Problems, problem)
	f.vm.causes = append(f.vm.causes, causes...)
}

// ready tells whether a disk's file is as it has to be to be unlocked.
func (d Disk) ready() error {
	if err := d.checkFinished(); err != nil {
		return err
	}
	s, err := d.status()
	if err != nil {
		return err
	}
	if s.SizeBytes != d.Record.Size {
		return fmt.Errorf("%w: %s has %d bytes, but its record is of a disk of %d", ErrDescriptor, d.Path, s.SizeBytes, d.Record.Size)
	}
	return nil
}

// complaints are what is wrong with the KEKs of a disk.
func (d *DiskVerification) complaints() (all []string) {
	for _, r := range d.Recipients {
		name := fmt.Sprintf("KEK %s at %q", r.KEKID, r.Alias)
		if r.Problem != "" {
			all = append(all, name+": "+r.Problem)
		}
		for _, s := range r.Servers {
			if s.Result != kek.KeyOK {
				all = append(all, fmt.Sprintf("%s: %s: %s: %s", name, s.Address, s.Result, s.Detail))
			}
		}
	}
	return all
}

// settle finds out which VMs could be unlocked one after the other, as the key managers
// come up that run in some of them.
func (h *Host) settle(flights []*flight) {
	for again := true; again; {
		again = false
		for _, f := range flights {
			if !f.vm.Unlocks && len(f.vm.Problems) == 0 && len(h.lockedIn(f, flights)) == 0 {
				f.vm.Unlocks, again = true, true
			}
		}
	}
	for _, f := range flights {
		if f.vm.Unlocks || len(f.vm.Problems) > 0 {
			continue
		}
		for _, vm := range h.lockedIn(f, flights) {
			f.blame(fmt.Sprintf("the key managers that have its keys run in VMs that would be locked: %s", vm), kek.ErrUnavailable)
		}
	}
}

// lockedIn names the VMs, locked so far, that run the key managers without which there
// are no keys for a VM.
func (h *Host) lockedIn(f *flight, flights []*flight) (vms []string) {
	for i := range f.disks {
		for _, previous := range []bool{false, true} {
			vms = append(vms, h.missing(&f.disks[i], previous, flights)...)
		}
	}
	slices.Sort(vms)
	return slices.Compact(vms)
}

// missing is lockedIn for one of the data keys of a disk.
func (h *Host) missing(d *DiskVerification, previous bool, flights []*flight) (vms []string) {
	for _, r := range d.Recipients {
		if r.Previous != previous {
			continue
		}
		hosts := h.KeyManagerVMs[r.Alias]
		for i, s := range r.Servers {
			if !s.unwraps {
				continue
			}
			if i >= len(hosts) || hosts[i] == "" {
				return nil
			}
			at := slices.IndexFunc(flights, func(f *flight) bool { return f.target.isVM(hosts[i]) })
			if at < 0 || flights[at].vm.Unlocks {
				return nil
			}
			vms = append(vms, flights[at].vm.Descriptor)
		}
	}
	return vms
}

// Err is nil if all VMs could be unlocked, as far as is known. Else it wraps ErrPreflight
// and the reasons.
func (p *Preflight) Err() error {
	locked := 0
	causes := []error{ErrPreflight}
	for _, vm := range p.VMs {
		if !vm.Unlocks {
			locked++
			causes = append(causes, vm.causes...)
		}
	}
	switch {
	case locked > 0:
		return &verdict{fmt.Sprintf("%d of %d %v", locked, len(p.VMs), ErrPreflight), causes}
	case len(p.Datastores) > 0:
		return fmt.Errorf("datastore %s was not read to its end: %s", p.Datastores[0].Path, p.Datastores[0].Problem)
	}
	return nil
}
