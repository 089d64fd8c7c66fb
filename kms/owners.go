package kms

import (
	"bytes"
	"slices"
	"sync"

	"github.com/google/uuid"
)

// owners knows the IDs of each client's objects, so that Locate opens no records
// of others, however many they have. It is made when a server looks at its whole
// store anyway, and is not on disk. Objects do not leave the store, nor do they
// change hands.
type owners struct {
	mu  sync.RWMutex
	ids map[string][]uuid.UUID // in order; nil if it was not made
}

// set takes over the objects of a store that nobody writes to meanwhile.
func (o *owners) set(ids map[string][]uuid.UUID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ids = ids
}

// add notes an object that was committed. IDs are in the order of time, so
// nearly all go to the end; for the others a new slice is made, as the old one
// may be being read.
func (o *owners) add(owner string, id uuid.UUID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ids == nil {
		return
	}
	ids := o.ids[owner]
	if at, _ := slices.BinarySearchFunc(ids, id, compareIDs); at < len(ids) {
		o.ids[owner] = slices.Insert(slices.Clone(ids), at, id)
		return
	}
	o.ids[owner] = append(ids, id)
}

// of gives the objects of a client, some of which may be younger than a
// transaction; false if they are not known.
func (o *owners) of(owner string) ([]uuid.UUID, bool) {
	if o == nil {
		return nil, false
	}
	o.mu.RLock()
	defer o.mu.RUnlock()
	return slices.Clip(o.ids[owner]), o.ids != nil
}

func compareIDs(a, b uuid.UUID) int { return bytes.Compare(a[:], b[:]) }

// noteOwners notes the objects that a transaction has made, now that they are
// committed and before anybody is told.
func (t *tx) noteOwners() {
	for _, c := range t.changes {
		if c.made != "" {
			t.owners.add(c.made, uuid.UUID(c.key))
		}
	}
}

// eachOf is each for the objects of one client, or for more if it is not known
// whose they are.
func (t *tx) eachOf(owner string, fn func(*object) error) error {
	ids, known := t.owners.of(owner)
	if !known {
		return t.each(fn)
	}
	committed := len(ids)
	for _, c := range t.changes {
		if c.made == owner {
			ids = append(ids, uuid.UUID(c.key))
		}
	}
	if len(ids) > committed {
		slices.SortFunc(ids, compareIDs)
	}
	for _, id := range ids {
		if err := t.only(id, nil, fn); err != nil {
			return err
		}
	}
	return nil
}
