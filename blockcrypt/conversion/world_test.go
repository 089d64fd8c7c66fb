package conversion

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"github.com/vmcrypt/vmcrypt/image"
)

// world is storage whose writes are durable only once they are synced: a disk, a
// journal in its folder, and a descriptor.
type world struct {
	disk, journal *file
	there         cell[bool]  // the journal in its folder
	phase         cell[Phase] // in the descriptor
	holes         []bool      // blocks of the disk that were holes at first

	before func(op) error // is told each operation before it happens; an error fails it
}

// op is an operation on storage.
type op struct {
	on   string // disk, journal, folder, descriptor
	what string // read, map, write, sync, create, remove, rename
}

// changes tells whether what is durable may differ after the operation. A read can
// fail, and a write too, but only these are moments for a crash: between two of
// them a crash leaves less the earlier it comes.
func (o op) changes() bool { return o.what != "read" && o.what != "map" && o.what != "write" }

// cell is a small thing that changes as a whole.
type cell[T comparable] struct{ visible, durable T }

func (c cell[T]) pending() bool { return c.visible != c.durable }
func (c *cell[T]) sync()        { c.durable = c.visible }

// values are those that a crash can leave.
func (c cell[T]) values() []T {
	if c.pending() {
		return []T{c.durable, c.visible}
	}
	return []T{c.visible}
}

// file is what programs see of a file, what is durable of it, and the writes on the
// way from the one to the other.
type file struct {
	visible, durable []*sector
	pending          []write
	fading           []write // visible only, and only until something is written: a sync failed
}

// sector is never changed, so that worlds share what is the same in them.
type sector struct {
	data  [sectorSize]byte
	hash  uint64
	plain bool // whether secretMark is in it
}

const sectorSize = 512

func newSector(data []byte) *sector {
	s := &sector{hash: hashOf(0, data), plain: bytes.Contains(data, []byte(secretMark))}
	copy(s.data[:], data)
	return s
}

// write is one, in whole sectors.
type write struct {
	first   int
	sectors []*sector
}

func newFile(content []byte) *file {
	f := &file{}
	for p := range slices.Chunk(content, sectorSize) {
		f.visible = append(f.visible, newSector(p))
	}
	f.durable = slices.Clone(f.visible)
	return f
}

func (f *file) size() int64 { return int64(len(f.visible)) * sectorSize }

func (f *file) read(p []byte, offset int64) (n int, err error) {
	for n < len(p) {
		i, within := int(offset)/sectorSize, int(offset)%sectorSize
		if i >= len(f.visible) {
			return n, io.EOF
		}
		m := copy(p[n:], f.visible[i].data[within:])
		n, offset = n+m, offset+int64(m)
	}
	return n, nil
}

// write may end within a sector, but not begin there.
func (f *file) write(p []byte, offset int64) (int, error) {
	if offset < 0 || offset+int64(len(p)) > f.size() || offset%sectorSize != 0 {
		return 0, errors.New("write outside the file, or within a sector")
	}
	f.fade()
	w := write{first: int(offset / sectorSize)}
	for q := range slices.Chunk(p, sectorSize) {
		w.sectors = append(w.sectors, f.visible[w.first+len(w.sectors)].with(q))
	}
	copy(f.visible[w.first:], w.sectors)
	f.pending = append(f.pending, w)
	return len(p), nil
}

// with is the sector once p is written to its beginning.
func (s *sector) with(p []byte) *sector {
	if bytes.Equal(s.data[:len(p)], p) {
		return s
	}
	data := s.data
	copy(data[:], p)
	return newSector(data[:])
}

// fade takes pages out of the cache that a failed sync took for clean.
func (f *file) fade() {
	for _, w := range f.fading {
		end := w.first + len(w.sectors)
		copy(f.visible[w.first:end], f.durable[w.first:end])
	}
	f.fading = f.fading[:0]
}

func (f *file) sync() {
	for _, w := range f.pending {
		copy(f.durable[w.first:], w.sectors)
	}
	f.forget()
}

// forget is a sync that failed, all of whose writes are visible and not durable.
func (f *file) forget() { f.pending = f.pending[:0] }

// become makes a copy of g, without its writes on the way.
func (f *file) become(g *file) {
	f.visible = append(f.visible[:0], g.visible...)
	f.durable = append(f.durable[:0], g.durable...)
	f.fading = append(f.fading[:0], g.fading...)
	f.forget()
}

// crash makes f what a crash leaves of g, of the writes on the way nothing.
func (f *file) crash(g *file) {
	f.durable = append(f.durable[:0], g.durable...)
	f.fading = f.fading[:0]
	f.forget()
}

// restart shows what is durable.
func (f *file) restart() { f.visible = append(f.visible[:0], f.durable...) }

// plain tells whether programs see plaintext in the file.
func (f *file) plain() bool {
	return slices.ContainsFunc(f.visible, func(s *sector) bool { return s.plain })
}

// flip changes a bit.
func (f *file) flip(bit int) {
	i := bit / 8 / sectorSize
	data := f.visible[i].data
	data[bit/8%sectorSize] ^= 1 << (bit % 8)
	f.visible[i] = newSector(data[:])
	f.durable[i] = f.visible[i]
}

func newWorld() *world { return &world{disk: new(file), journal: new(file)} }

func (w *world) become(v *world) {
	w.disk.become(v.disk)
	w.journal.become(v.journal)
	w.there, w.phase, w.holes, w.before = v.there, v.phase, v.holes, nil
}

func (w *world) files() [2]*file { return [2]*file{w.disk, w.journal} }

func (w *world) tell(on, what string) error {
	if w.before == nil {
		return nil
	}
	return w.before(op{on, what})
}

// simDisk is the world's disk.
type simDisk struct{ w *world }

var _ image.Disk = simDisk{}

func (d simDisk) Size() int64  { return d.w.disk.size() }
func (d simDisk) Close() error { return nil }

func (d simDisk) ReadAt(p []byte, offset int64) (int, error) {
	if err := d.w.tell("disk", "read"); err != nil {
		return 0, err
	}
	return d.w.disk.read(p, offset)
}

func (d simDisk) WriteAt(p []byte, offset int64) (int, error) {
	return d.w.writeTo("disk", d.w.disk, p, offset)
}

// writeTo may be told to write a part only.
func (w *world) writeTo(on string, f *file, p []byte, offset int64) (int, error) {
	if err := w.tell(on, "write"); err != nil {
		if _, short := errors.AsType[shortWrite](err); short {
			_, _ = f.write(p[:len(p)/3], offset)
		}
		return 0, err
	}
	return f.write(p, offset)
}

// shortWrite is the error of a write that wrote some bytes.
type shortWrite struct{ error }

func (d simDisk) Flush() error {
	if err := d.w.tell("disk", "sync"); err != nil {
		d.w.disk.forget()
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
	return d.w.holes[at/blockSize] && !slices.ContainsFunc(d.w.disk.visible[at/sectorSize:end/sectorSize],
		func(s *sector) bool { return s.data != [sectorSize]byte{} })
}

// simFolder is where the world's journal lies.
type simFolder struct{ w *world }

// Create leaves rubbish in the file, until all is durable.
func (s simFolder) Create(size int64) (File, error) {
	w := s.w
	if err := w.tell("folder", "create"); err != nil {
		return nil, err
	}
	w.journal.become(newFile(bytes.Repeat([]byte{0xa5}, int(size))))
	w.there.visible = true
	if err := w.tell("folder", "sync"); err != nil {
		return nil, err
	}
	w.there.sync()
	w.journal.become(newFile(make([]byte, size)))
	return simJournal{w}, nil
}

func (s simFolder) Open() (File, error) {
	if !s.w.there.visible {
		return nil, fs.ErrNotExist
	}
	return simJournal(s), nil
}

func (s simFolder) Remove() error {
	if err := s.w.tell("folder", "remove"); err != nil {
		return err
	}
	s.w.there.visible = false
	if err := s.w.tell("folder", "sync"); err != nil {
		return err
	}
	s.w.there.sync()
	return nil
}

type simJournal struct{ w *world }

func (j simJournal) Size() int64  { return j.w.journal.size() }
func (j simJournal) Close() error { return nil }

func (j simJournal) ReadAt(p []byte, offset int64) (int, error) {
	if err := j.w.tell("journal", "read"); err != nil {
		return 0, err
	}
	return j.w.journal.read(p, offset)
}

func (j simJournal) WriteAt(p []byte, offset int64) (int, error) {
	return j.w.writeTo("journal", j.w.journal, p, offset)
}

func (j simJournal) Flush() error {
	if err := j.w.tell("journal", "sync"); err != nil {
		j.w.journal.forget()
		return err
	}
	j.w.journal.sync()
	return nil
}

// simDescriptor is the world's descriptor: it is renamed into place, and then its
// folder is synced.
type simDescriptor struct{ w *world }

func (d simDescriptor) SetPhase(p Phase) error {
	if err := d.w.tell("descriptor", "rename"); err != nil {
		return err
	}
	d.w.phase.visible = p
	if err := d.w.tell("descriptor", "sync"); err != nil {
		return err
	}
	d.w.phase.sync()
	return nil
}

// atRest checks that a world is as a conversion leaves it.
func (w *world) atRest(phase Phase, content []byte) error {
	switch {
	case w.phase != cell[Phase]{phase, phase}:
		return fmt.Errorf("the phase is %v, want %s", w.phase, phase)
	case w.there.visible || w.there.durable:
		return errors.New("the journal is still there")
	case len(w.disk.pending) > 0:
		return errors.New("the disk is not durable")
	}
	if err := same(w.disk.visible, content); err != nil {
		return err
	}
	return same(w.disk.durable, content)
}

func same(got []*sector, want []byte) error {
	var wrong []int
	for i, s := range got {
		if at := i * sectorSize; !bytes.Equal(s.data[:], want[at:at+sectorSize]) {
			wrong = append(wrong, at)
		}
	}
	if wrong != nil {
		return fmt.Errorf("wrong content in the sectors at %v", wrong)
	}
	return nil
}
