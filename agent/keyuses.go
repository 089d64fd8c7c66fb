package agent

import (
	"context"
	"fmt"
	"slices"
)

// KeyUses is which VMs in the datastores need which KEKs.
type KeyUses struct {
	// VMs are the descriptors of those that need a KEK, by alias and KEK ID.
	VMs map[string]map[string][]string
	// Unknown are the descriptors and datastores that could not be read, and the symbolic
	// links behind which nothing was looked at, with the reason: there, any KEK may be needed.
	Unknown []string
}

// KeyUses looks at all VMs in the datastores, and at their disks that are not present,
// too. The error is that ctx has ended.
func (h *Host) KeyUses(ctx context.Context) (*KeyUses, error) {
	u := &KeyUses{VMs: map[string]map[string][]string{}}
	for _, root := range h.Datastores {
		s := newScan(h.Datastores, u.look)
		s.links = func(problem string) { u.Unknown = append(u.Unknown, problem) }
		err := s.datastore(ctx, root)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			u.Unknown = append(u.Unknown, fmt.Sprintf("%s: %v", root, err))
		}
	}
	return u, nil
}

func (u *KeyUses) look(path string, t *Target, err error) error {
	if err != nil {
		u.Unknown = append(u.Unknown, fmt.Sprintf("%s: %v", path, err))
		return nil
	}
	u.add(t)
	return nil
}

func (u *KeyUses) add(t *Target) {
	for _, d := range slices.Concat(t.Disks, t.absent) {
		if d.Record == nil {
			continue
		}
		for _, r := range slices.Concat(d.Record.Recipients, d.Record.Previous) {
			keys := u.VMs[r.Alias]
			if keys == nil {
				keys = map[string][]string{}
				u.VMs[r.Alias] = keys
			}
			if !slices.Contains(keys[r.KEKID], t.Descriptor) {
				keys[r.KEKID] = append(keys[r.KEKID], t.Descriptor)
			}
		}
	}
}
