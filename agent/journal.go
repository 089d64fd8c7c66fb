package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vmcrypt/vmcrypt/blockcrypt/conversion"
	"github.com/vmcrypt/vmcrypt/image"
	"github.com/vmcrypt/vmcrypt/internal/durable"
)

// journalSuffix makes the name of a conversion's journal of that of the file with
// the sectors.
const journalSuffix = ".vmcrypt-journal"

func journalOf(dataPath string) sidecar { return sidecar{resolved(dataPath) + journalSuffix} }

// checkNoJournal refuses a disk that its descriptor takes for finished, beside
// which a journal tells otherwise.
func checkNoJournal(dataPath string) error {
	j := journalOf(dataPath)
	there, err := j.exists()
	if err != nil || !there {
		return err
	}
	return fmt.Errorf("%w: it says nothing of a conversion of %s, but the journal of one is there, %s",
		ErrJournalOnly, dataPath, j.path)
}

// sidecar is the journal of a conversion in its place.
type sidecar struct{ path string }

var _ conversion.Sidecar = sidecar{}

// Create makes a journal of zeros. They are written, and not just reserved: so
// whatever is written later needs no new space and no change of the file's
// metadata, on file systems that write in place. After an error there is none: on a
// full disk it would have taken the room that the descriptor needs.
func (s sidecar) Create(size int64) (conversion.File, error) {
	if err := os.Remove(s.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f, err := image.Create(s.path, size)
	if err != nil {
		return nil, err
	}
	if err := s.initialize(f); err != nil {
		return nil, errors.Join(err, f.Close(), s.Remove())
	}
	return pastCache(f), nil
}

func (s sidecar) initialize(f *image.File) error {
	if err := fill(f); err != nil {
		return fmt.Errorf("reserve %d bytes for %s: %w", f.Size(), s.path, err)
	}
	if err := f.Flush(); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(s.path))
}

// fill writes zeros.
func fill(f *image.File) error {
	if err := f.Reserve(0, f.Size()); err != nil {
		return err
	}
	zeros := make([]byte, 1<<20)
	for at := int64(0); at < f.Size(); at += int64(len(zeros)) {
		if _, err := f.WriteAt(zeros[:min(int64(len(zeros)), f.Size()-at)], at); err != nil {
			return err
		}
	}
	return nil
}

// Open opens a journal that is there.
func (s sidecar) Open() (conversion.File, error) {
	f, err := image.OpenBeneath(filepath.Dir(s.path), filepath.Base(s.path), image.Raw, image.ReadWrite)
	if errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("%w: it is a symbolic link", conversion.ErrJournal)
	}
	if err != nil {
		return nil, err
	}
	if err := checkJournal(f); err != nil {
		f.Close()
		return nil, err
	}
	return pastCache(f), nil
}

// checkJournal refuses what somebody put there to have another file written.
func checkJournal(f *image.File) error {
	links, err := f.Links()
	if err == nil && (links > 1 || f.IsDevice()) {
		err = fmt.Errorf("%w: it is no regular file, or has other names too", conversion.ErrJournal)
	}
	return err
}

// journalFile is an open journal, whose data go past the page cache.
type journalFile struct {
	image.Disk
	done func()
}

func pastCache(f *image.File) conversion.File {
	past, done := image.PastCache(f)
	return journalFile{past, done}
}

func (f journalFile) Close() error {
	f.done()
	return f.Disk.Close()
}

// Remove removes the journal if there is one.
func (s sidecar) Remove() error {
	if err := os.Remove(s.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return durable.SyncDir(filepath.Dir(s.path))
}

// exists tells whether there is something in the journal's place.
func (s sidecar) exists() (bool, error) {
	_, err := os.Lstat(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// peek tells how far the conversion has come; nil if there is no journal that tells.
func (s sidecar) peek() *conversion.Position {
	f, err := openRegular(s.path, os.O_RDONLY)
	if err != nil {
		return nil
	}
	defer f.Close()
	return peek(f)
}

func peek(journal *os.File) *conversion.Position {
	info, err := journal.Stat()
	if err != nil {
		return nil
	}
	p, err := conversion.Peek(journal, info.Size())
	if err != nil {
		return nil
	}
	return &p
}
