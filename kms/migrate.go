package kms

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"go.etcd.io/bbolt"

	"github.com/vmcrypt/vmcrypt/internal/secret"
)

// errOldSchema: the store is of an earlier schema, which has to be migrated.
var errOldSchema = errors.New("earlier schema")

// migrate brings a store of an earlier schema to this one, in one transaction:
// if it fails, nothing has changed.
func migrate(path string, roots rootKeys, wait time.Duration) (err error) {
	s := newStore(path)
	if err := s.openFile(forWriting, wait); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.unlock(roots); err != nil {
		return err
	}
	to, err := newSealer(s.sealer.root, s.sealer.store, schemaVersion)
	if err != nil {
		return err
	}
	defer to.destroy()
	err = guard(func() error {
		return s.db.Update(func(b *bbolt.Tx) error {
			return errors.Join(reseal(b, s.sealer, to), (&tx{bolt: b, sealer: to}).putClient(firstClient))
		})
	})
	if err != nil {
		return fmt.Errorf("%s: bring it from schema %d to %d: %w", path, s.sealer.schema, to.schema, err)
	}
	return nil
}

// reseal seals all records and notes anew, makes the index of names anew, and notes the
// sealer's schema and check value. It is all that a migration and a new root
// key take.
func reseal(b *bbolt.Tx, from, to *sealer) error {
	if err := b.DeleteBucket(namesBucket); err != nil {
		return err
	}
	if _, err := b.CreateBucket(namesBucket); err != nil {
		return err
	}
	ids, err := allIDs(b)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if err := resealObject(b, id, from, to); err != nil {
			return err
		}
	}
	meta := b.Bucket(metaBucket)
	return errors.Join(
		(&tx{bolt: b, sealer: to}).resealNotes(from),
		meta.Put(schemaKey, binary.BigEndian.AppendUint32(nil, to.schema)),
		meta.Put(checkValueKey, bytes.Clone(to.check)))
}

// allIDs lists the objects: a bucket must not change while one walks along it.
func allIDs(b *bbolt.Tx) (ids []uuid.UUID, err error) {
	err = b.Bucket(objectsBucket).ForEach(func(k, _ []byte) error {
		id, err := uuid.FromBytes(k)
		if err != nil {
			return fmt.Errorf("%w: an object has no valid ID", ErrDamaged)
		}
		ids = append(ids, id)
		return nil
	})
	return ids, err
}

func resealObject(b *bbolt.Tx, id uuid.UUID, from, to *sealer) error {
	objects := b.Bucket(objectsBucket)
	record, err := from.open(id, objects.Get(id[:]))
	if err != nil {
		return err
	}
	defer secret.Wipe(record)
	sealed, err := to.seal(id, record)
	if err != nil {
		return err
	}
	if err := objects.Put(id[:], sealed); err != nil {
		return err
	}
	o, err := unmarshalObject(id, record)
	if err != nil {
		return err
	}
	defer o.wipe()
	names := &tx{bolt: b, sealer: to}
	for _, n := range o.Names {
		if err := names.name(o, n); err != nil {
			return fmt.Errorf("object %s: %w: %w", id, ErrDamaged, err)
		}
	}
	return nil
}
