package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vmcrypt/vmcrypt/blockcrypt/conversion"
	"github.com/vmcrypt/vmcrypt/internal/durable"
)

// journalSuffix makes the name of a conversion's journal of that of the file with
// the sectors.
const journalSuffix = ".vmcrypt-journal"

func journalOf(dataPath string) sidecar { return sidecar{resolved(dataPath) + journalSuffix} }

// checkNoJournal refuses a disk that its descriptor takes for finished, beside
// which a journal tells otherwise.
func checkNoJournal(dataPath string) error {
	path := journalOf(dataPath).path
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return fmt.Errorf("%w: it says nothing of a conversion of %s, but the journal of one is there, %s",
		ErrDescriptor, dataPath, path)
}

// sidecar is the journal of a conversion in its place.
type sidecar struct{ path string }

var _ conversion.Sidecar = sidecar{}

// Create makes a journal of zeros. They are written, and not just reserved: so
// whatever is written later needs no new space and no change of the file's
// metadata, on file systems that write in place.
func (s sidecar) Create(size int64) (conversion.File, error) {
	if err := os.Remove(s.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f, err := openRegular(s.path, os.O_RDWR|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return nil, err
	}
	if err := s.initialize(f, size); err != nil {
		f.Close()
		return nil, err
	}
	return &journalFile{File: f, size: size}, nil
}

func (s sidecar) initialize(f *os.File, size int64) error {
	if err := lockFile(f); err != nil {
		return err
	}
	if err := reserve(f, size); err != nil {
		return fmt.Errorf("reserve %d bytes for %s: %w", size, s.path, err)
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(s.path))
}

func reserve(f *os.File, size int64) error {
	err := unix.Fallocate(int(f.Fd()), 0, 0, size)
	for errors.Is(err, unix.EINTR) {
		err = unix.Fallocate(int(f.Fd()), 0, 0, size)
	}
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	zeros := make([]byte, 1<<20)
	for at := int64(0); at < size; at += int64(len(zeros)) {
		if _, err := f.WriteAt(zeros[:min(int64(len(zeros)), size-at)], at); err != nil {
			return err
		}
	}
	return nil
}

// Open opens a journal that is there.
func (s sidecar) Open() (conversion.File, error) {
	f, err := openRegular(s.path, os.O_RDWR)
	if errors.Is(err, errOddFile) {
		return nil, fmt.Errorf("%w: %w", conversion.ErrJournal, err)
	}
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil {
		err = lockFile(f)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &journalFile{File: f, size: info.Size()}, nil
}

// Remove removes the journal if there is one.
func (s sidecar) Remove() error {
	if err := os.Remove(s.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return durable.SyncDir(filepath.Dir(s.path))
}

// peek tells how far the conversion has come; nil if there is no journal that tells.
func (s sidecar) peek() *conversion.Position {
	f, err := openRegular(s.path, os.O_RDONLY)
	if err != nil {
		return nil
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil
	}
	p, err := conversion.Peek(f, info.Size())
	if err != nil {
		return nil
	}
	return &p
}

// journalFile is an open journal.
type journalFile struct {
	*os.File
	size int64
}

func (f *journalFile) Size() int64 { return f.size }

// Sync makes data durable, and of the metadata what is needed to read them.
func (f *journalFile) Sync() error {
	err := unix.Fdatasync(int(f.Fd()))
	for errors.Is(err, unix.EINTR) {
		err = unix.Fdatasync(int(f.Fd()))
	}
	if err != nil {
		return &fs.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
	}
	return nil
}
