package kms

import (
	"errors"
	"fmt"

	"github.com/google/uuid"
	"go.etcd.io/bbolt"

	"github.com/vmcrypt/vmcrypt/internal/secret"
)

var (
	errNoObject  = errors.New("no such object")
	errNameTaken = errors.New("name is in use")
)

// tx is a transaction on the store.
type tx struct {
	bolt   *bbolt.Tx
	sealer *sealer
}

// sequence counts the keys ever made in this store.
func (t *tx) sequence() uint64 { return t.bolt.Bucket(objectsBucket).Sequence() }

// get returns an object, which must be wiped, or errNoObject.
func (t *tx) get(id uuid.UUID) (*object, error) {
	sealed := t.bolt.Bucket(objectsBucket).Get(id[:])
	if sealed == nil {
		return nil, errNoObject
	}
	return t.open(id, sealed)
}

func (t *tx) open(id uuid.UUID, sealed []byte) (*object, error) {
	record, err := t.sealer.open(id, sealed)
	if err != nil {
		return nil, err
	}
	return unmarshalObject(id, record)
}

// put replaces the record of an object.
func (t *tx) put(o *object) error {
	record, err := o.marshal()
	if err != nil {
		return err
	}
	defer secret.Wipe(record)
	sealed, err := t.sealer.seal(o.id, record)
	if err != nil {
		return err
	}
	return t.bolt.Bucket(objectsBucket).Put(o.id[:], sealed)
}

// add puts a new object and its names, or fails with errNameTaken.
func (t *tx) add(o *object) error {
	index := t.bolt.Bucket(namesBucket)
	for _, n := range o.Names {
		key := t.sealer.nameKey(n)
		if index.Get(key) != nil {
			return fmt.Errorf("%w: %q", errNameTaken, n.Value)
		}
		if err := index.Put(key, o.id[:]); err != nil {
			return err
		}
	}
	if _, err := t.bolt.Bucket(objectsBucket).NextSequence(); err != nil {
		return err
	}
	return t.put(o)
}

// find returns the ID of the object with a name, or errNoObject.
func (t *tx) find(n name) (uuid.UUID, error) {
	id := t.bolt.Bucket(namesBucket).Get(t.sealer.nameKey(n))
	if id == nil {
		return uuid.Nil, errNoObject
	}
	return uuid.FromBytes(id)
}

// each calls fn with every object in the order of their IDs. The object is
// wiped afterwards.
func (t *tx) each(fn func(*object) error) error {
	return t.bolt.Bucket(objectsBucket).ForEach(func(k, sealed []byte) error {
		id, err := uuid.FromBytes(k)
		if err != nil {
			return fmt.Errorf("%w: an object has no valid ID", ErrDamaged)
		}
		o, err := t.open(id, sealed)
		if err != nil {
			return err
		}
		defer o.wipe()
		return fn(o)
	})
}

// checkNames tells whether the index leads to o from each of its names.
func (t *tx) checkNames(o *object) error {
	for _, n := range o.Names {
		if id, err := t.find(n); err != nil || id != o.id {
			return fmt.Errorf("object %s: %w: the index of names does not lead to it", o.id, ErrDamaged)
		}
	}
	return nil
}
