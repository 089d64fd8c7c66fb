package kms

import (
	"bytes"
	"crypto/hmac"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/google/uuid"
	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"github.com/vmcrypt/vmcrypt/internal/secret"
)

var (
	metaBucket    = []byte("meta")
	objectsBucket = []byte("objects")
	namesBucket   = []byte("names")

	schemaKey     = []byte("schema")
	storeKey      = []byte("store")
	checkValueKey = []byte("check")
)

// store is the key manager's objects on disk. One process at a time has it
// open for writing; every change is durable when update returns.
type store struct {
	db        *bbolt.DB
	path      string
	committer committer
	rotation  sync.RWMutex // held for reading while sealer and data must match
	sealer    *sealer      // the holder of the committer's turn may read it too
	keeper    *keeper      // of the root key
	keyFile   string       // the name of the file that the root key is in
	owners    owners
	lives     lives
}

func newStore(path string) *store {
	return &store{path: path, committer: committer{turn: make(chan struct{}, 1)}}
}

// createStore makes a store without objects, sealed under root, in a new file.
func createStore(path string, root *secret.Buffer, clients ...registered) error {
	id := uuid.New()
	seal, err := newSealer(root, id, schemaVersion)
	if err != nil {
		return err
	}
	defer seal.destroy()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{OpenFile: createFile})
	if err != nil {
		return err
	}
	return errors.Join(db.Update(func(tx *bbolt.Tx) error { return initialize(tx, seal, clients) }), db.Close())
}

func createFile(path string, flag int, perm fs.FileMode) (*os.File, error) {
	return os.OpenFile(path, flag|os.O_EXCL, perm)
}

func initialize(b *bbolt.Tx, s *sealer, clients []registered) error {
	for _, name := range [][]byte{objectsBucket, namesBucket} {
		if _, err := b.CreateBucket(name); err != nil {
			return err
		}
	}
	for _, c := range clients {
		if err := (&tx{bolt: b, sealer: s}).putClient(c); err != nil {
			return err
		}
	}
	meta, err := b.CreateBucket(metaBucket)
	if err != nil {
		return err
	}
	return errors.Join(
		meta.Put(schemaKey, binary.BigEndian.AppendUint32(nil, schemaVersion)),
		meta.Put(storeKey, s.store[:]),
		meta.Put(checkValueKey, s.check))
}

// openMode says what a store is opened for.
type openMode bool

const (
	forWriting openMode = false
	forReading openMode = true // others may read at the same time
)

// openStore opens a store that exists, waiting for others to close it for at
// most wait; it fails with ErrBusy, ErrMissing, ErrVersion, ErrRootKey or
// ErrDamaged, and then has changed nothing. A store of an earlier schema is
// brought to this one first.
func openStore(path string, roots rootKeys, mode openMode, wait time.Duration) (*store, error) {
	s, err := openCurrent(path, roots, mode, wait)
	if !errors.Is(err, errOldSchema) {
		return s, err
	}
	if err := migrate(path, roots, wait); err != nil {
		return nil, err
	}
	return openCurrent(path, roots, mode, wait)
}

// openCurrent fails with errOldSchema if the store has to be migrated first.
func openCurrent(path string, roots rootKeys, mode openMode, wait time.Duration) (*store, error) {
	s := newStore(path)
	if err := s.openFile(mode, wait); err != nil {
		return nil, err
	}
	err := s.unlock(roots)
	if err == nil && s.sealer.schema < schemaVersion {
		err = errOldSchema
	}
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// openFile opens the database. bbolt panics on damage that it does not expect
// and then leaves the file open and locked, so the file is kept at hand.
func (s *store) openFile(mode openMode, wait time.Duration) error {
	var file *os.File
	opts := &bbolt.Options{ReadOnly: bool(mode), Timeout: wait}
	opts.OpenFile = func(path string, flag int, perm fs.FileMode) (f *os.File, err error) {
		f, err = openExisting(path, flag, perm)
		if file == nil {
			file = f
		}
		return f, err
	}
	err := guard(func() (err error) {
		s.db, err = bbolt.Open(s.path, 0o600, opts)
		return err
	})
	if err == nil {
		return nil
	}
	if file != nil {
		// After a panic the file stays mapped, and that alone would keep the lock.
		_ = unix.Flock(int(file.Fd()), unix.LOCK_UN) // EBADF if bbolt has closed it
		file.Close()
	}
	return s.explain(err)
}

// openExisting never makes a file, and takes none that bbolt would fill anew.
func openExisting(path string, flag int, perm fs.FileMode) (*os.File, error) {
	f, err := os.OpenFile(path, flag&^os.O_CREATE, perm)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() || info.Size() == 0 {
		f.Close()
		return nil, errors.Join(err, fmt.Errorf("%w: not a key store", ErrDamaged))
	}
	return f, nil
}

// explain puts bbolt's errors into ours.
func (s *store) explain(err error) error {
	var pathErr *fs.PathError
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return fmt.Errorf("%s: %w", s.path, ErrBusy)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s: %w", s.path, ErrMissing)
	case errors.As(err, &pathErr):
		return err
	case errors.Is(err, ErrDamaged):
		return fmt.Errorf("%s: %w", s.path, err)
	}
	return fmt.Errorf("%s: %w: %v", s.path, ErrDamaged, err)
}

// rootKeys gives the root keys that a store may be sealed under. It is called
// while nobody else can write to the store. There may be some besides an error.
type rootKeys func() ([]*kept, error)

// unlock checks that the store is whole, and derives its keys from the root key
// that it was sealed under.
func (s *store) unlock(roots rootKeys) error {
	keys, failed := roots()
	defer func() {
		for _, k := range keys {
			k.destroy()
		}
	}()
	if len(keys) == 0 {
		return failed
	}
	err := guard(func() error {
		return s.db.View(func(tx *bbolt.Tx) error { return s.readMeta(tx, keys) })
	})
	if errors.Is(err, ErrRootKey) && failed != nil {
		return failed
	}
	if err != nil {
		return fmt.Errorf("%s: %w", s.path, err)
	}
	return nil
}

func (s *store) readMeta(tx *bbolt.Tx, keys []*kept) error {
	if err := checkSize(tx); err != nil {
		return err
	}
	meta := tx.Bucket(metaBucket)
	if meta == nil || tx.Bucket(objectsBucket) == nil || tx.Bucket(namesBucket) == nil {
		return fmt.Errorf("%w: not a key store", ErrDamaged)
	}
	schema := meta.Get(schemaKey)
	if len(schema) != 4 {
		return fmt.Errorf("%w: no schema version", ErrDamaged)
	}
	v := binary.BigEndian.Uint32(schema)
	if v < 1 || v > schemaVersion {
		return fmt.Errorf("%w %d of the store: this version of vmcrypt knows 1 to %d", ErrVersion, v, schemaVersion)
	}
	id, err := uuid.FromBytes(meta.Get(storeKey))
	if err != nil {
		return fmt.Errorf("%w: no store UUID", ErrDamaged)
	}
	for _, k := range keys {
		if err := s.tryKey(k, id, v, meta.Get(checkValueKey)); !errors.Is(err, ErrRootKey) {
			return err
		}
	}
	return fmt.Errorf("%w: %s is not the one this store was made with", ErrRootKey, rootKeyFile)
}

// tryKey takes a root key into use if the store was sealed under it.
func (s *store) tryKey(k *kept, id uuid.UUID, schema uint32, check []byte) error {
	seal, err := newSealer(k.root, id, schema)
	if err != nil {
		return err
	}
	if !hmac.Equal(check, seal.check) {
		seal.destroy()
		return ErrRootKey
	}
	s.sealer, s.keyFile = seal, k.name
	s.keeper, err = parseKeeper(k.keeper.bytes())
	return err
}

// checkSize finds a file that was cut off: reading beyond its end would kill
// the process.
func checkSize(tx *bbolt.Tx) error {
	info, err := os.Stat(tx.DB().Path())
	if err != nil {
		return err
	}
	if info.Size() < tx.Size() {
		return fmt.Errorf("%w: %d of %d bytes are there", ErrDamaged, info.Size(), tx.Size())
	}
	return nil
}

// panicked is the error of a function that did not end by itself. What it was
// doing is left half done.
type panicked struct{ error }

func (p *panicked) Unwrap() error { return p.error }

// guard runs fn and turns the panics with which bbolt answers to damage, and
// reads beyond the end of its file, into errors.
func guard(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = &panicked{fmt.Errorf("%w: %v", ErrDamaged, r)}
		}
	}()
	return fn()
}

// close waits for what is being done with the store.
func (s *store) close() error {
	s.committer.turn <- struct{}{}
	defer func() { <-s.committer.turn }()
	s.rotation.Lock()
	defer s.rotation.Unlock()
	if s.sealer != nil {
		s.sealer.destroy()
	}
	s.keeper.destroy()
	return s.db.Close()
}

// view runs fn on a consistent state of the store. It must not be called within
// fn.
func (s *store) view(fn func(*tx) error) error {
	s.rotation.RLock()
	defer s.rotation.RUnlock()
	return guard(func() error {
		return s.db.View(func(b *bbolt.Tx) error { return fn(&tx{bolt: b, sealer: s.sealer, owners: &s.owners}) })
	})
}

// snapshot copies a consistent state of the store into memory. It holds sealed
// keys only. While it is copied, whoever writes may have to wait, so it is not
// sent to anybody straight away. With it comes the root key.
func (s *store) snapshot() (m *memfile, root *secret.Buffer, err error) {
	if m, err = newMemfile(); err != nil {
		return nil, nil, err
	}
	err = s.view(func(t *tx) error {
		if _, err := t.bolt.WriteTo(m); err != nil {
			return err
		}
		root, err = secret.Take(bytes.Clone(t.sealer.root.Bytes()))
		return err
	})
	if err != nil {
		return nil, nil, errors.Join(err, m.Close())
	}
	return m, root, nil
}
