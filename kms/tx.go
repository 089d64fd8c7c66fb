package kms

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

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
	bolt    *bbolt.Tx
	sealer  *sealer
	owners  *owners  // nil if nobody asks for them
	changes []change // all there were, in their order
}

// change is what it takes to undo a change.
type change struct {
	bucket, key, old []byte // old is nil where there was no such key
	sequence         uint64 // of the objects, before
	made             string // the owner, where the change makes an object
	life             *life  // of the object, where the change writes one
}

// attempt runs fn. If it fails, all that it changed is taken back, and the
// transaction can go on as if it had not run. It fails with panicked where that
// is not so.
func (t *tx) attempt(fn func(*tx) error) error {
	mark := len(t.changes)
	err := guard(func() error { return fn(t) })
	if err == nil {
		return nil
	}
	if undone := t.undo(mark); undone != nil {
		return &panicked{fmt.Errorf("%w; and then: %w", err, undone)}
	}
	return err
}

// undo takes back all changes but the first n.
func (t *tx) undo(n int) error {
	for _, c := range slices.Backward(t.changes[n:]) {
		b := t.bolt.Bucket(c.bucket)
		var err error
		if c.old == nil {
			err = b.Delete(c.key)
		} else {
			err = b.Put(c.key, c.old)
		}
		err = errors.Join(err, t.bolt.Bucket(objectsBucket).SetSequence(c.sequence))
		if err != nil {
			return err
		}
	}
	t.changes = t.changes[:n]
	return nil
}

// set gives a key of a bucket a value, or none if it is nil.
func (t *tx) set(bucket, key, value []byte) error {
	b := t.bolt.Bucket(bucket)
	key = bytes.Clone(key) // bbolt wants to keep both
	t.changes = append(t.changes, change{bucket, key, bytes.Clone(b.Get(key)), t.sequence(), "", nil})
	if value == nil {
		return b.Delete(key)
	}
	return b.Put(key, bytes.Clone(value))
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

// put replaces an object. If its names, or its owner, are others than before,
// the index follows; errNameTaken if another object of the owner has a name.
func (t *tx) put(o *object) error {
	old, err := t.get(o.id)
	if err != nil {
		return err
	}
	defer old.wipe()
	if err := t.rename(old, o); err != nil {
		return err
	}
	return t.write(o)
}

// add puts a new object and its names, or fails with errNameTaken.
func (t *tx) add(o *object) error {
	if err := t.rename(&object{id: o.id}, o); err != nil {
		return err
	}
	if err := t.write(o); err != nil {
		return err
	}
	t.changes[len(t.changes)-1].made = o.Owner
	_, err := t.bolt.Bucket(objectsBucket).NextSequence()
	return err
}

// write seals the record of an object.
func (t *tx) write(o *object) error {
	record, err := o.marshal()
	if err != nil {
		return err
	}
	defer secret.Wipe(record)
	sealed, err := t.sealer.seal(o.id, record)
	if err != nil {
		return err
	}
	if err := t.set(objectsBucket, o.id[:], sealed); err != nil {
		return err
	}
	now := lifeOf(o)
	t.changes[len(t.changes)-1].life = &now
	return nil
}

// rename replaces the names of an object in the index.
func (t *tx) rename(old, o *object) error {
	if old.Owner == o.Owner && slices.Equal(old.Names, o.Names) {
		return nil
	}
	for _, n := range old.Names {
		if err := t.set(namesBucket, t.sealer.nameKey(old.Owner, n), nil); err != nil {
			return err
		}
	}
	for _, n := range o.Names {
		if err := t.name(o, n); err != nil {
			return err
		}
	}
	return nil
}

// name makes the index lead from a name to an object.
func (t *tx) name(o *object, n name) error {
	key := t.sealer.nameKey(o.Owner, n)
	if t.bolt.Bucket(namesBucket).Get(key) != nil {
		return fmt.Errorf("%w: %q", errNameTaken, n.Value)
	}
	return t.set(namesBucket, key, o.id[:])
}

// find returns the ID of the object that an owner calls by a name, or
// errNoObject.
func (t *tx) find(owner string, n name) (uuid.UUID, error) {
	id := t.bolt.Bucket(namesBucket).Get(t.sealer.nameKey(owner, n))
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
		if id, err := t.find(o.Owner, n); err != nil || id != o.id {
			return fmt.Errorf("object %s: %w: the index of names does not lead to it", o.id, ErrDamaged)
		}
	}
	return nil
}
