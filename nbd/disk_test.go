package nbd

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/vmcrypt/vmcrypt/image"
)

// memDisk is the simplest disk, and the model for others. It has no holes.
type memDisk struct {
	mu   sync.Mutex
	data []byte
	// before, unless nil, is called before each operation, which fails with its
	// error.
	before  func(operation string, offset int64, length int) error
	flushes int
	hot     bool // all of it can be read without waiting
	// background has it read in the background, where a fifth of the reads fail.
	background bool
}

func newMemDisk(size int) *memDisk {
	d := &memDisk{data: make([]byte, size)}
	for i := range d.data {
		d.data[i] = byte(i*31 + i>>8)
	}
	return d
}

func (d *memDisk) enter(operation string, offset int64, length int) (p []byte, leave func(), err error) {
	if d.before != nil {
		if err := d.before(operation, offset, length); err != nil {
			return nil, nil, err
		}
	}
	if offset < 0 || length < 0 || offset > int64(len(d.data)-length) {
		return nil, nil, fmt.Errorf("%s of %d bytes at %d", operation, length, offset)
	}
	d.mu.Lock()
	return d.data[offset:][:length], d.mu.Unlock, nil
}

func (d *memDisk) ReadAt(p []byte, offset int64) (int, error) {
	data, leave, err := d.enter("read", offset, len(p))
	if err != nil {
		return 0, err
	}
	defer leave()
	return copy(p, data), nil
}

func (d *memDisk) ReadAtNoWait(p []byte, offset int64) bool {
	if !d.hot {
		return false
	}
	_, err := d.ReadAt(p, offset)
	return err == nil
}

func (d *memDisk) OpenBackground() bool { return d.background }

func (d *memDisk) BeginReads(batch []image.BackgroundRead) {
	batch = slices.Clone(batch)
	go func() {
		var all []func()
		for i, r := range batch {
			_, err := d.ReadAt(r.P, r.Offset)
			if after := r.Reader.ReadDone(err == nil && i%5 != 4); after != nil {
				all = append(all, after)
			}
		}
		for _, after := range all {
			after()
		}
	}()
}

func (d *memDisk) WriteAt(p []byte, offset int64) (int, error) {
	data, leave, err := d.enter("write", offset, len(p))
	if err != nil {
		return 0, err
	}
	defer leave()
	return copy(data, p), nil
}

func (d *memDisk) Discard(offset, length int64) error {
	data, leave, err := d.enter("discard", offset, int(length))
	if err != nil {
		return err
	}
	defer leave()
	clear(data)
	return nil
}

func (d *memDisk) Extents(offset, length int64) ([]image.Extent, error) {
	_, leave, err := d.enter("extents", offset, int(length))
	if err != nil {
		return nil, err
	}
	defer leave()
	return []image.Extent{{Offset: offset, Length: length}}, nil
}

func (d *memDisk) Flush() error {
	_, leave, err := d.enter("flush", 0, 0)
	if err != nil {
		return err
	}
	defer leave()
	d.flushes++
	return nil
}

// content is a copy of n bytes at offset.
func (d *memDisk) content(offset, n int) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return bytes.Clone(d.data[offset:][:n])
}

// flushed is how often the disk was flushed.
func (d *memDisk) flushed() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.flushes
}

func (d *memDisk) Size() int64 { return int64(len(d.data)) }

func (d *memDisk) Close() error { return errors.New("the disk is not the server's") }

// coldFile is a disk that has nothing in memory.
type coldFile struct{ *image.File }

func (coldFile) ReadAtNoWait([]byte, int64) bool { return false }

// workersOnly hides all but the methods that a disk must have.
type workersOnly struct{ image.Disk }

// fileDisk gives a new disk in a file, all hole.
func fileDisk(t testing.TB, size int64) *image.File {
	t.Helper()
	f, err := image.Create(t.TempDir()+"/disk", size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}
