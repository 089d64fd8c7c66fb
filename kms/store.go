package kms

import (
	"crypto/hmac"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime/debug"
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

	schemaKey = []byte("schema")
	storeKey  = []byte("store")
	checkKey  = []byte("check")
)

// store is the key manager's objects on disk. One process at a time has it
// open for writing; every change is durable when update returns.
type store struct {
	db     *bbolt.DB
	path   string
	sealer *sealer
}

// createStore makes an empty store, sealed under root, in a new file.
func createStore(path string, root *secret.Buffer) error {
	id := uuid.New()
	seal, err := newSealer(root, id)
	if err != nil {
		return err
	}
	defer seal.destroy()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{OpenFile: createFile})
	if err != nil {
		return err
	}
	return errors.Join(db.Update(func(tx *bbolt.Tx) error { return initialize(tx, seal) }), db.Close())
}

func createFile(path string, flag int, perm fs.FileMode) (*os.File, error) {
	return os.OpenFile(path, flag|os.O_EXCL, perm)
}

func initialize(tx *bbolt.Tx, s *sealer) error {
	for _, name := range [][]byte{objectsBucket, namesBucket} {
		if _, err := tx.CreateBucket(name); err != nil {
			return err
		}
	}
	meta, err := tx.CreateBucket(metaBucket)
	if err != nil {
		return err
	}
	return errors.Join(
		meta.Put(schemaKey, binary.BigEndian.AppendUint32(nil, schemaVersion)),
		meta.Put(storeKey, s.store[:]),
		meta.Put(checkKey, s.check))
}

// openMode says what a store is opened for.
type openMode bool

const (
	forWriting openMode = false
	forReading openMode = true // others may read at the same time
)

// openStore opens a store that exists, waiting for others to close it for at
// most wait; it fails with ErrBusy, ErrMissing, ErrVersion, ErrRootKey or
// ErrDamaged, and then has changed nothing.
func openStore(path string, root *secret.Buffer, mode openMode, wait time.Duration) (*store, error) {
	s := &store{path: path}
	if err := s.openFile(mode, wait); err != nil {
		return nil, err
	}
	if err := s.unlock(root); err != nil {
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

// unlock checks that the store is whole and derives its keys.
func (s *store) unlock(root *secret.Buffer) error {
	err := guard(func() error {
		return s.db.View(func(tx *bbolt.Tx) error { return s.readMeta(tx, root) })
	})
	if err != nil {
		return fmt.Errorf("%s: %w", s.path, err)
	}
	return nil
}

func (s *store) readMeta(tx *bbolt.Tx, root *secret.Buffer) error {
	if err := checkSize(tx); err != nil {
		return err
	}
	meta := tx.Bucket(metaBucket)
	if meta == nil || tx.Bucket(objectsBucket) == nil || tx.Bucket(namesBucket) == nil {
		return fmt.Errorf("%w: not a key store", ErrDamaged)
	}
	if schema := meta.Get(schemaKey); len(schema) != 4 {
		return fmt.Errorf("%w: no schema version", ErrDamaged)
	} else if v := binary.BigEndian.Uint32(schema); v != schemaVersion {
		return fmt.Errorf("%w %d of the store: this version of vmcrypt knows %d", ErrVersion, v, schemaVersion)
	}
	id, err := uuid.FromBytes(meta.Get(storeKey))
	if err != nil {
		return fmt.Errorf("%w: no store UUID", ErrDamaged)
	}
	if s.sealer, err = newSealer(root, id); err != nil {
		return err
	}
	if !hmac.Equal(meta.Get(checkKey), s.sealer.check) {
		return fmt.Errorf("%w: %s is not the one this store was made with", ErrRootKey, rootKeyFile)
	}
	return nil
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

// guard runs fn and turns the panics with which bbolt answers to damage, and
// reads beyond the end of its file, into errors.
func guard(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", ErrDamaged, r)
		}
	}()
	return fn()
}

func (s *store) close() error {
	if s.sealer != nil {
		s.sealer.destroy()
	}
	return s.db.Close()
}

// view runs fn on a consistent state of the store.
func (s *store) view(fn func(*tx) error) error {
	return guard(func() error {
		return s.db.View(func(b *bbolt.Tx) error { return fn(&tx{b, s.sealer}) })
	})
}

// update runs fn and makes what it changed durable, or nothing if it fails.
func (s *store) update(fn func(*tx) error) error {
	return guard(func() error {
		return s.db.Update(func(b *bbolt.Tx) error { return fn(&tx{b, s.sealer}) })
	})
}

// snapshot copies a consistent state of the store into memory. It holds sealed
// keys only. While it is copied, whoever writes may have to wait, so it is not
// sent to anybody straight away.
func (s *store) snapshot() (*memfile, error) {
	m, err := newMemfile()
	if err != nil {
		return nil, err
	}
	err = s.view(func(t *tx) error {
		_, err := t.bolt.WriteTo(m)
		return err
	})
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

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
