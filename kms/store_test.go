package kms

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gemalto/kmip-go/kmip14"
	"github.com/google/uuid"
	"go.etcd.io/bbolt"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
	"github.com/vmcrypt/vmcrypt/internal/secret"
)

// filledHome is a home with a few keys, and those keys.
func filledHome(t *testing.T) (Home, map[string]string) {
	t.Helper()
	h := newHome(t)
	return h, fill(t, h, "one", "two", "three")
}

func fill(t *testing.T, h Home, names ...string) map[string]string {
	t.Helper()
	c := dial(t, h)
	defer c.conn.Close()
	keys := map[string]string{}
	for _, name := range names {
		id := c.create(name)
		keys[id] = c.get(id)
	}
	return keys
}

// wantKeys fails the test unless the home gives out exactly these keys.
func wantKeys(t *testing.T, h Home, keys map[string]string) {
	t.Helper()
	c := dial(t, h)
	defer c.conn.Close()
	if got := len(c.locate()); got != len(keys) {
		t.Errorf("%d keys, want %d", got, len(keys))
	}
	for id, key := range keys {
		if c.get(id) != key {
			t.Errorf("key %s changed", id)
		}
	}
}

func TestKeysSurviveReopening(t *testing.T) {
	t.Parallel()
	h, keys := filledHome(t)
	wantKeys(t, h, keys)
	wantKeys(t, h, keys)
}

func TestStoreHoldsNothingInTheClear(t *testing.T) {
	t.Parallel()
	h, keys := filledHome(t)
	data, err := os.ReadFile(h.path(storeFile))
	if err != nil {
		t.Fatal(err)
	}
	for id, key := range keys {
		if bytes.Contains(data, []byte(key)) || bytes.Contains(data, []byte(id)) {
			t.Error("a key is in the store in the clear")
		}
	}
	for _, text := range []string{"three", clientName, "usageMask"} {
		if bytes.Contains(data, []byte(text)) {
			t.Errorf("%q is in the store in the clear", text)
		}
	}
}

func TestDestroyDeletesTheKey(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	c := dial(t, h)
	id := c.create("k")
	do[kmipwire.DestroyResponse](c, kmip14.OperationDestroy, &kmipwire.DestroyRequest{UniqueIdentifier: id})
	c.conn.Close()
	s, err := h.open(forReading, storeWait)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if err := s.view(func(tx *tx) error {
		o, err := tx.get(uuid.MustParse(id))
		if err == nil && o.material != nil {
			t.Error("the key is still there")
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// refusedStore fails the test unless opening the home's store fails with want,
// and changes nothing.
func refusedStore(t *testing.T, h Home, want error) {
	t.Helper()
	before, err := os.ReadFile(h.path(storeFile))
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range []openMode{forReading, forWriting} {
		s, err := h.open(mode, storePoll)
		if err == nil {
			s.close()
		}
		if !errors.Is(err, want) || !strings.Contains(err.Error(), h.Dir) {
			t.Errorf("error is %v, want %v", err, want)
		}
	}
	if after, err := os.ReadFile(h.path(storeFile)); err != nil || !bytes.Equal(before, after) {
		t.Error("the store has changed")
	}
}

// brokenHome is a filled home without the check at the end.
func brokenHome(t *testing.T) Home {
	t.Helper()
	h := emptyHome(t)
	if err := h.Init(nil); err != nil {
		t.Fatal(err)
	}
	fill(t, h, "one", "two")
	return h
}

func TestWrongRootKey(t *testing.T) {
	h := brokenHome(t)
	other, err := secret.Random(rootKeySize)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Destroy()
	if err := os.WriteFile(h.path(rootKeyFile), formatRootKey(other), 0o600); err != nil {
		t.Fatal(err)
	}
	refusedStore(t, h, ErrRootKey)
}

func TestRootKeyFile(t *testing.T) {
	h := brokenHome(t)
	good, err := os.ReadFile(h.path(rootKeyFile))
	if err != nil {
		t.Fatal(err)
	}
	for what, text := range map[string][]byte{
		"empty":       {},
		"short":       good[:len(good)-2],
		"no newline":  good[:len(good)-1],
		"long":        append(bytes.Clone(good), '\n'),
		"other magic": bytes.Replace(good, []byte("key-1"), []byte("key-2"), 1),
		"upper case":  append([]byte(rootKeyMagic), bytes.ToUpper(good[len(rootKeyMagic):])...),
		"no hex":      append(bytes.Clone(good[:len(good)-2]), "g\n"...),
	} {
		t.Run(what, func(t *testing.T) {
			if err := os.WriteFile(h.path(rootKeyFile), text, 0o600); err != nil {
				t.Fatal(err)
			}
			refusedStore(t, h, ErrDamaged)
		})
	}
	if err := os.Remove(h.path(rootKeyFile)); err != nil {
		t.Fatal(err)
	}
	refusedStore(t, h, fs.ErrNotExist)
}

func TestRootKeyOthersCanRead(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	if err := os.Chmod(h.path(rootKeyFile), 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Dial(t.Context(), ""); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("error is %v", err)
	}
	if err := os.Chmod(h.path(rootKeyFile), 0o600); err != nil {
		t.Fatal(err)
	}
}

// edit changes the store behind the key manager's back.
func edit(t *testing.T, h Home, fn func(tx *bbolt.Tx) error) {
	t.Helper()
	db, err := bbolt.Open(h.path(storeFile), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Update(fn), db.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestFutureSchema(t *testing.T) {
	h := brokenHome(t)
	edit(t, h, func(tx *bbolt.Tx) error {
		return tx.Bucket(metaBucket).Put(schemaKey, binary.BigEndian.AppendUint32(nil, schemaVersion+1))
	})
	refusedStore(t, h, ErrVersion)
}

func TestForeignDatabase(t *testing.T) {
	h := brokenHome(t)
	edit(t, h, func(tx *bbolt.Tx) error { return tx.DeleteBucket(metaBucket) })
	refusedStore(t, h, ErrDamaged)
}

func TestStoreThatIsNone(t *testing.T) {
	h := brokenHome(t)
	for what, data := range map[string][]byte{
		"empty": {}, "short": []byte("store"), "zeros": make([]byte, 32<<10), "text": bytes.Repeat([]byte("store"), 10_000),
	} {
		t.Run(what, func(t *testing.T) {
			if err := os.WriteFile(h.path(storeFile), data, 0o600); err != nil {
				t.Fatal(err)
			}
			refusedStore(t, h, ErrDamaged)
		})
	}
}

// TestTruncatedStore: every length that is not whole is refused, by an error
// and not by SIGBUS.
func TestTruncatedStore(t *testing.T) {
	h := brokenHome(t)
	whole, err := os.ReadFile(h.path(storeFile))
	if err != nil {
		t.Fatal(err)
	}
	size := used(t, h)
	for n := 4096; n < size; n += 2048 {
		if err := os.WriteFile(h.path(storeFile), whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		refusedStore(t, h, ErrDamaged)
	}
}

// used is the size of the store without the space that it has in stock.
func used(t *testing.T, h Home) (n int) {
	t.Helper()
	s, err := h.open(forReading, storeWait)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if err := s.view(func(tx *tx) error { n = int(tx.bolt.Size()); return nil }); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestSwappedRecords: a record belongs to its ID.
func TestSwappedRecords(t *testing.T) {
	h := brokenHome(t)
	edit(t, h, func(tx *bbolt.Tx) error {
		b := tx.Bucket(objectsBucket)
		k1, v1 := b.Cursor().First()
		k2, v2 := b.Cursor().Last()
		v1, v2 = bytes.Clone(v1), bytes.Clone(v2)
		return errors.Join(b.Put(bytes.Clone(k1), v2), b.Put(bytes.Clone(k2), v1))
	})
	wantDamaged(t, h)
}

func TestLostName(t *testing.T) {
	h := brokenHome(t)
	edit(t, h, func(tx *bbolt.Tx) error {
		k, _ := tx.Bucket(namesBucket).Cursor().First()
		return tx.Bucket(namesBucket).Delete(bytes.Clone(k))
	})
	wantDamaged(t, h)
}

func TestStrayName(t *testing.T) {
	h := brokenHome(t)
	edit(t, h, func(tx *bbolt.Tx) error {
		return tx.Bucket(namesBucket).Put(make([]byte, 32), make([]byte, 16))
	})
	wantDamaged(t, h)
}

// wantDamaged fails the test unless the store opens and a full look at it, as
// Serve and Backup take it, finds the damage.
func wantDamaged(t *testing.T, h Home) {
	t.Helper()
	if err := h.Serve(t.Context(), "127.0.0.1:0", nil); !errors.Is(err, ErrDamaged) {
		t.Errorf("serve: %v", err)
	}
	if _, err := h.gather(t.Context()); !errors.Is(err, ErrDamaged) {
		t.Errorf("backup: %v", err)
	}
}

// TestFlippedBits: damage anywhere in the store gives an error or does not
// matter, but never a wrong key and never the end of the process.
func TestFlippedBits(t *testing.T) {
	h := brokenHome(t)
	whole, err := os.ReadFile(h.path(storeFile))
	if err != nil {
		t.Fatal(err)
	}
	root := func() ([]*kept, error) { return h.rootKeys(nil) }
	want := keysIn(t, h.path(storeFile), root)
	size, path := used(t, h), h.path("flipped.db")
	r := rand.New(rand.NewPCG(1, 2))
	noticed := 0
	for range 150 {
		data := bytes.Clone(whole)
		data[r.IntN(size)] ^= 1 << r.IntN(8)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := readKeys(path, root)
		if after, _ := os.ReadFile(path); !bytes.Equal(data, after) {
			t.Fatal("opening a damaged store changed it")
		}
		if err != nil {
			noticed++
			continue
		}
		for id, key := range got {
			if k, ok := want[id]; ok && k != key {
				t.Fatalf("key %s differs", id)
			}
		}
	}
	if noticed == 0 {
		t.Error("no flip was noticed")
	}
}

func keysIn(t *testing.T, path string, root rootKeys) map[uuid.UUID]string {
	t.Helper()
	keys, err := readKeys(path, root)
	if err != nil || len(keys) == 0 {
		t.Fatalf("%d keys, %v", len(keys), err)
	}
	return keys
}

func readKeys(path string, root rootKeys) (map[uuid.UUID]string, error) {
	s, err := openStore(path, root, forWriting, time.Second)
	if err != nil {
		return nil, err
	}
	defer s.close()
	keys := map[uuid.UUID]string{}
	err = s.view(func(tx *tx) error {
		return tx.each(func(o *object) error {
			keys[o.id] = string(o.material)
			return nil
		})
	})
	return keys, err
}

func TestRecordRoundTrip(t *testing.T) {
	o := &object{id: uuid.New(), material: []byte("0123456789abcdef")}
	o.Type, o.Algorithm, o.Length, o.UsageMask, o.State, o.Owner = 2, 3, 128, 12, 2, "me"
	o.Names = []name{{"n|\"ä", 1}, {"u", 2}}
	o.Initial, o.LastChange, o.Revocation = 1, 2, &revocation{5, "old"}
	record, err := o.marshal()
	if err != nil {
		t.Fatal(err)
	}
	for n := range len(record) - len(o.material) {
		if _, err := unmarshalObject(o.id, bytes.Clone(record[:n])); !errors.Is(err, ErrDamaged) {
			t.Fatalf("%d of %d bytes: %v", n, len(record), err)
		}
	}
	got, err := unmarshalObject(o.id, bytes.Clone(record))
	if err != nil {
		t.Fatal(err)
	}
	again, err := got.marshal()
	if err != nil || !bytes.Equal(record, again) {
		t.Errorf("another record after a round trip: %v", err)
	}
	got.wipe()
	if got.material != nil {
		t.Error("not wiped")
	}
}

// TestBrokenPages: what bbolt itself finds wrong is found when the store is
// checked, though every record reads well.
func TestBrokenPages(t *testing.T) {
	h := brokenHome(t)
	edit(t, h, func(tx *bbolt.Tx) error { // a larger tree, with free pages
		b, err := tx.CreateBucket([]byte("tmp"))
		if err != nil {
			return err
		}
		for i := range 500 {
			if err := b.Put(binary.BigEndian.AppendUint32(nil, uint32(i)), make([]byte, 200)); err != nil {
				return err
			}
		}
		return nil
	})
	edit(t, h, func(tx *bbolt.Tx) error { return tx.DeleteBucket([]byte("tmp")) })
	loseFreePage(t, h)
	wantDamaged(t, h)
}

// loseFreePage takes the last entry off the free list. Its page begins with
// number (8 bytes), flags (2: 16 for a free list), count (2) and overflow (4).
func loseFreePage(t *testing.T, h Home) {
	t.Helper()
	data := readBytes(t, h.path(storeFile))
	lost := 0
	for at := 0; at+16 <= len(data); at += os.Getpagesize() {
		page := data[at:]
		if n := binary.NativeEndian.Uint16(page[10:]); binary.NativeEndian.Uint16(page[8:]) == 16 && n > 1 {
			binary.NativeEndian.PutUint16(page[10:], n-1)
			lost++
		}
	}
	if lost == 0 {
		t.Fatal("there is no free list")
	}
	if err := os.WriteFile(h.path(storeFile), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// largeStore is one of 10,000 objects.
func largeStore(b *testing.B) (Home, *store) {
	b.Helper()
	h := homeIn(filepath.Join(b.TempDir(), "home"))
	if err := h.Init(nil); err != nil {
		b.Fatal(err)
	}
	s := openHome(b, h)
	if err := s.update(func(t *tx) error {
		for i := range 10_000 {
			if err := t.add(newObject("me", fmt.Sprint(i))); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		b.Fatal(err)
	}
	return h, s
}

// BenchmarkCheck: as Serve does when it starts.
func BenchmarkCheck(b *testing.B) {
	_, s := largeStore(b)
	for b.Loop() {
		if _, err := s.count(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRotate: a new root key for all.
func BenchmarkRotate(b *testing.B) {
	h, s := largeStore(b)
	for b.Loop() {
		if err := h.rotate(s, nil); err != nil {
			b.Fatal(err)
		}
	}
}
