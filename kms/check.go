package kms

import (
	"fmt"

	"github.com/google/uuid"
)

// census is what a store holds at one moment.
type census struct {
	Store    uuid.UUID `json:"store"`
	Sequence uint64    `json:"sequence"` // keys ever made
	Objects  int       `json:"objects"`  // objects there are, destroyed ones included
}

// count looks at everything: each record must open under the root key, the
// index must lead from each name to its object and nowhere else, and the file's
// pages must be in order.
func (s *store) count() (c census, err error) {
	return s.countEach(func(*object) {})
}

// countEach is count, and shows each object to seen.
func (s *store) countEach(seen func(*object)) (c census, err error) {
	err = s.view(func(t *tx) error {
		c, err = t.count(seen)
		if err != nil {
			return err
		}
		if err := t.checkNotes(); err != nil {
			return err
		}
		// Last, as it would not survive damage that leads it beyond the file's end.
		return t.checkPages()
	})
	if err != nil {
		return census{}, fmt.Errorf("%s: %w", s.path, err)
	}
	return c, nil
}

func (t *tx) count(seen func(*object)) (census, error) {
	c := census{Store: t.sealer.store, Sequence: t.sequence()}
	names := 0
	err := t.each(func(o *object) error {
		c.Objects++
		names += len(o.Names)
		seen(o)
		return t.checkNames(o)
	})
	if err == nil && t.bolt.Bucket(namesBucket).Stats().KeyN != names {
		err = fmt.Errorf("%w: the index of names does not match the objects", ErrDamaged)
	}
	return c, err
}

// checkPages tells whether bbolt finds anything wrong. It gives the first error
// of what may be many, but reads them all: bbolt waits for that.
func (t *tx) checkPages() (err error) {
	for damage := range t.bolt.Check() {
		if err == nil {
			err = fmt.Errorf("%w: %v", ErrDamaged, damage)
		}
	}
	return err
}

// checkNotes tells whether every note opens.
func (t *tx) checkNotes() error {
	for _, bucket := range noteBuckets {
		if _, err := t.notes(bucket); err != nil {
			return err
		}
	}
	return nil
}
