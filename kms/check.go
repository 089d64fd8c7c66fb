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

// count looks at every object and every name: each record must open under the
// root key, and the index must lead from each name to its object.
func (s *store) count() (census, error) {
	c := census{Store: s.sealer.store}
	err := s.view(func(t *tx) error {
		c.Sequence = t.sequence()
		names := 0
		err := t.each(func(o *object) error {
			c.Objects++
			names += len(o.Names)
			return t.checkNames(o)
		})
		if err == nil {
			err = t.checkNotes()
		}
		if err == nil && t.bolt.Bucket(namesBucket).Stats().KeyN != names {
			err = fmt.Errorf("%w: the index of names does not match the objects", ErrDamaged)
		}
		return err
	})
	if err != nil {
		return census{}, fmt.Errorf("%s: %w", s.path, err)
	}
	return c, nil
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
