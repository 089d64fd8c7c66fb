package kms

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"go.etcd.io/bbolt"
)

// testdata/store-v1 is what the first release wrote: a store with objects in
// several states, its root key, a backup, and the objects as they should read.
const storeV1 = "testdata/store-v1"

// plainObject is an object of objects.json.
type plainObject struct {
	attributes
	Key string `json:"key"`
}

func wantV1(t *testing.T) map[string]plainObject {
	t.Helper()
	want := map[string]plainObject{}
	if err := json.Unmarshal(readBytes(t, filepath.Join(storeV1, "objects.json")), &want); err != nil {
		t.Fatal(err)
	}
	return want
}

// homeV1 is a home with the store of the first release.
func homeV1(t *testing.T) Home {
	t.Helper()
	h := emptyHome(t)
	if err := os.MkdirAll(h.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{storeFile, rootKeyFile} {
		if err := os.WriteFile(h.path(name), readBytes(t, filepath.Join(storeV1, name)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

// wantObjectsOf fails the test unless the home holds exactly these objects,
// each found by its names.
func wantObjectsOf(t *testing.T, h Home, want map[string]plainObject) {
	t.Helper()
	checkStore(t, h)
	s, err := h.open(forReading, storeWait)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	got := map[string]plainObject{}
	if err := s.view(func(x *tx) error {
		return x.each(func(o *object) error {
			got[o.id.String()] = plainObject{o.attributes, hex.EncodeToString(o.material)}
			return nil
		})
	}); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("objects %+v, want %+v", got, want)
	}
}

func TestMigrateFromSchema1(t *testing.T) {
	for what, mode := range map[string]openMode{"reading": forReading, "writing": forWriting} {
		t.Run(what, func(t *testing.T) {
			h := homeV1(t)
			s, err := h.open(mode, storeWait)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.view(func(x *tx) error {
				if v := binary.BigEndian.Uint32(x.bolt.Bucket(metaBucket).Get(schemaKey)); v != schemaVersion || x.sequence() != 6 {
					t.Errorf("schema %d, sequence %d", v, x.sequence())
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			s.close()
			wantObjectsOf(t, h, wantV1(t))
		})
	}
}

// TestRestoreBackupOfSchema1: a backup that the first release made.
func TestRestoreBackupOfSchema1(t *testing.T) {
	h := restore(t, filepath.Join(storeV1, "backup"))
	wantObjectsOf(t, h, wantV1(t))
	serve(t, h)
	wantServed(t, h)
}

// wantServed has the objects' owners read a key of the fixture.
func wantServed(t *testing.T, h Home) {
	t.Helper()
	c := dial(t, h)
	defer c.conn.Close()
	ids := c.locate(nameAttribute("active"))
	if len(ids) != 1 || hex.EncodeToString([]byte(c.get(ids[0]))) != wantV1(t)[ids[0]].Key {
		t.Errorf("located %v", ids)
	}
	c.create("another")
}

// TestFailedMigrationChangesNothing: with the last of its records damaged.
func TestFailedMigrationChangesNothing(t *testing.T) {
	h := homeV1(t)
	edit(t, h, func(tx *bbolt.Tx) error {
		k, v := tx.Bucket(objectsBucket).Cursor().Last()
		v = bytes.Clone(v)
		v[len(v)-1] ^= 1
		return tx.Bucket(objectsBucket).Put(bytes.Clone(k), v)
	})
	refusedStore(t, h, ErrDamaged)
}

// TestMigrationKeepsNamesUnique: a store of schema 1 in which an owner has two objects
// of one name, which was not possible, is refused rather than mended.
func TestMigrationKeepsNamesUnique(t *testing.T) {
	h := homeV1(t)
	addV1(t, h, newObject("vmcrypt", "active"))
	refusedStore(t, h, ErrDamaged)
}

// TestMigrationLetsNamesBeShared: once the names belong to owners.
func TestMigrationLetsNamesBeShared(t *testing.T) {
	h := homeV1(t)
	want := wantV1(t)
	o := newObject("a third", "active")
	addV1(t, h, o)

	want[o.id.String()] = plainObject{o.attributes, hex.EncodeToString(o.material)}
	wantObjectsOf(t, h, want)
}

// addV1 puts an object into a store of schema 1, past its index.
func addV1(t *testing.T, h Home, o *object) {
	t.Helper()
	keys, err := h.rootKeys(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer keys[0].destroy()
	record, err := o.marshal()
	if err != nil {
		t.Fatal(err)
	}
	edit(t, h, func(tx *bbolt.Tx) error {
		s := newStore("")
		if err := s.readMeta(tx, keys); err != nil {
			return err
		}
		defer s.sealer.destroy()
		sealed, err := s.sealer.seal(o.id, record)
		return errors.Join(err, tx.Bucket(objectsBucket).Put(o.id[:], sealed))
	})
}
