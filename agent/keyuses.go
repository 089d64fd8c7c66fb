package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/vmcrypt/vmcrypt/vmx"
)

// KeyUses is which VMs in the datastores need which KEKs.
type KeyUses struct {
	// VMs are the descriptors of those that need a KEK, and copies of descriptors under other
	// names, by alias and KEK ID.
	VMs map[string]map[string][]string
	// Unknown are the descriptors and datastores that could not be read, or are empty, and the
	// symbolic links behind which nothing was looked at, with the reason: there, any KEK may
	// be needed.
	Unknown []string
}

// errEmpty: what lies in a datastore shows only while that is mounted.
var errEmpty = errors.New("there is nothing in it; perhaps it is not mounted")

// KeyUses looks at all VMs in the datastores, and at their disks that are not present,
// too. The error is that ctx has ended.
func (h *Host) KeyUses(ctx context.Context) (*KeyUses, error) {
	u := &KeyUses{VMs: map[string]map[string][]string{}}
	for _, root := range h.Datastores {
		s := newScan(h.Datastores, u.look)
		s.links = func(problem string) { u.Unknown = append(u.Unknown, problem) }
		s.copies = func(path string) { u.lookAtCopy(h.Datastores, path) }
		err := s.datastore(ctx, root)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err == nil && s.files == maxFiles {
			err = errEmpty
		}
		if err != nil {
			u.miss(root, err)
		}
	}
	return u, nil
}

func (u *KeyUses) look(path string, t *Target, err error) error {
	if err != nil {
		u.miss(path, err)
		return nil
	}
	for _, d := range slices.Concat(t.Disks, t.absent) {
		u.add(t.Descriptor, d.Record)
	}
	return nil
}

func (u *KeyUses) miss(path string, err error) {
	u.Unknown = append(u.Unknown, fmt.Sprintf("%s: %v", path, err))
}

// lookAtCopy looks at what may be a copy of a descriptor: it needs the keys as soon as
// somebody puts it back. What is no descriptor by its content is none.
func (u *KeyUses) lookAtCopy(datastores folders, path string) {
	file, err := datastores.open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist): // it has just been removed
		return
	case err != nil:
		u.miss(path, err)
		return
	}
	defer file.Close()
	f, err := vmx.ReadFrom(file)
	if err != nil {
		return
	}
	if err := u.addAll(path, f); err != nil {
		u.miss(path, err)
	}
}

// addAll adds the records of a descriptor.
func (u *KeyUses) addAll(path string, f *vmx.File) error {
	present, err := f.Disks()
	if err != nil {
		return err
	}
	absent, err := f.Absent()
	if err != nil {
		return err
	}
	for _, d := range slices.Concat(present, absent) {
		record, err := f.Record(d.Node)
		if err != nil {
			return err
		}
		u.add(path, record)
	}
	return nil
}

// add notes what KEKs a disk needs; none without a record.
func (u *KeyUses) add(path string, record *vmx.Record) {
	if record == nil {
		return
	}
	for _, r := range slices.Concat(record.Recipients, record.Previous) {
		keys := u.VMs[r.Alias]
		if keys == nil {
			keys = map[string][]string{}
			u.VMs[r.Alias] = keys
		}
		if !slices.Contains(keys[r.KEKID], path) {
			keys[r.KEKID] = append(keys[r.KEKID], path)
		}
	}
}
