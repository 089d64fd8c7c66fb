package conversion

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"slices"

	"github.com/vmcrypt/vmcrypt/image"
)

// world is storage whose writes are durable only once they are synced: a disk, a
// journal and a descriptor. At each operation it can be left as a crash would
// leave it.
type world struct {
	disk, journal *file
	phase         Phase  // durable, and visible
	renamed       Phase  // visible, may not be durable; "" if it is
	holes         []bool // blocks of the disk that were holes at first

	reached marker // which the run knows to be durable

	before func(op) error // is told each operation before it happens; an error fails it
}

// op is an operation on storage.
type op struct {
	on   string // disk, journal, folder, descriptor
	what string // read, write, sync, create, remove, rename
}

// file is what programs see of a file, what is durable of it, and the writes on the
// way from the one to the other.
type file struct {
	visible, durable []byte
	pending          []write
}

type write struct {
	offset int64
	data   []byte
}

func newFile(content []byte) *file {
	return &file{visible: bytes.Clone(content), durable: bytes.Clone(content)}
}

func (f *file) read(p []byte, offset int64) (int, error) {
	if offset < 0 || offset > int64(len(f.visible)) {
		return 0, io.EOF
	}
	n := copy(p, f.visible[offset:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *file) write(p []byte, offset int64) (int, error) {
	if offset < 0 || offset+int64(len(p)) > int64(len(f.visible)) {
		return 0, errors.New("write outside the file")
	}
	copy(f.visible[offset:], p)
	f.pending = append(f.pending, write{offset, bytes.Clone(p)})
	return len(p), nil
}

func (f *file) sync() {
	for _, w := range f.pending {
		copy(f.durable[w.offset:], w.data)
	}
	f.pending = nil
}

func (w *world) tell(on, what string) error {
	if w.before == nil {
		return nil
	}
	return w.before(op{on, what})
}

// simDisk is the world's disk.
type simDisk struct{ w *world }

var _ image.Disk = simDisk{}

func (d simDisk) Size() int64  { return int64(len(d.w.disk.visible)) }
func (d simDisk) Close() error { return nil }

func (d simDisk) ReadAt(p []byte, offset int64) (int, error) {
	if err := d.w.tell("disk", "read"); err != nil {
		return 0, err
	}
	return d.w.disk.read(p, offset)
}

func (d simDisk) WriteAt(p []byte, offset int64) (int, error) {
	if err := d.w.tell("disk", "write"); err != nil {
		return 0, err
	}
	return d.w.disk.write(p, offset)
}

func (d simDisk) Flush() error {
	if err := d.w.tell("disk", "sync"); err != nil {
		d.w.disk.pending = nil // the kernel takes the pages for clean
		return err
	}
	d.w.disk.sync()
	return nil
}

func (d simDisk) Discard(int64, int64) error { return errors.New("nothing may be discarded") }

func (d simDisk) Extents(offset, length int64) ([]image.Extent, error) {
	if err := d.w.tell("disk", "map"); err != nil {
		return nil, err
	}
	var extents []image.Extent
	for at := offset; at < offset+length; {
		next := min(at-at%blockSize+blockSize, offset+length)
		extents = append(extents, image.Extent{Offset: at, Length: next - at, Hole: d.isHole(at, next)})
		at = next
	}
	return extents, nil
}

// isHole: a hole is one until something is written to it.
func (d simDisk) isHole(at, end int64) bool {
	return d.w.holes[at/blockSize] && !slices.ContainsFunc(d.w.disk.visible[at:end], func(b byte) bool { return b != 0 })
}

// simFolder is where the world's journal lies.
type simFolder struct{ w *world }

func (s simFolder) Create(size int64) (File, error) {
	if err := s.w.tell("folder", "create"); err != nil {
		return nil, err
	}
	s.w.journal = newFile(make([]byte, size))
	return simJournal{s.w, s.w.journal}, nil
}

func (s simFolder) Open() (File, error) {
	if s.w.journal == nil {
		return nil, fs.ErrNotExist
	}
	return simJournal{s.w, s.w.journal}, nil
}

func (s simFolder) Remove() error {
	if err := s.w.tell("folder", "remove"); err != nil {
		return err
	}
	s.w.journal = nil
	return nil
}

type simJournal struct {
	w *world
	*file
}

func (j simJournal) Size() int64  { return int64(len(j.visible)) }
func (j simJournal) Close() error { return nil }

func (j simJournal) ReadAt(p []byte, offset int64) (int, error) {
	if err := j.w.tell("journal", "read"); err != nil {
		return 0, err
	}
	return j.read(p, offset)
}

func (j simJournal) WriteAt(p []byte, offset int64) (int, error) {
	if err := j.w.tell("journal", "write"); err != nil {
		return 0, err
	}
	return j.write(p, offset)
}

func (j simJournal) Sync() error {
	if err := j.w.tell("journal", "sync"); err != nil {
		j.pending = nil
		return err
	}
	j.sync()
	return nil
}

// simDescriptor is the world's descriptor: it is renamed into place, and then its
// folder is synced.
type simDescriptor struct{ w *world }

func (d simDescriptor) SetPhase(p Phase) error {
	if err := d.w.tell("descriptor", "rename"); err != nil {
		return err
	}
	d.w.renamed = p
	if err := d.w.tell("descriptor", "sync"); err != nil {
		return err
	}
	d.w.phase, d.w.renamed = p, ""
	return nil
}
