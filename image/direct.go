package image

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// directAlign is the alignment of direct transfers in file and memory. No
	// file system in use asks for more; one that does gets buffered ones.
	directAlign = 4096
	// directLeast is the smallest direct transfer. The page cache joins smaller
	// ones into larger.
	directLeast = 64 << 10
)

// direct is a file whose large transfers go past the page cache, from disk to
// memory and back without the processor's work: O_DIRECT. What is small,
// unaligned or in the page cache anyway takes the usual way; the kernel keeps
// both ways coherent.
type direct struct {
	*File
	past    *os.File    // the same file, opened with O_DIRECT
	refused atomic.Bool // the file system took the flag, but not the transfers
}

// PastCache gives a disk whose large transfers from and to MapBuffers bypass the
// page cache, if it is a file that can, until done is called. The disk itself
// stays open.
func PastCache(d Disk) (disk Disk, done func()) {
	f, ok := d.(*File)
	if !ok {
		return d, func() {}
	}
	past, err := f.reopen(unix.O_DIRECT)
	if err != nil { // tmpfs of old kernels, FUSE, no /proc
		return d, func() {}
	}
	return &direct{File: f, past: past}, func() { past.Close() }
}

// reopen opens the same file once more, with more flags.
func (f *File) reopen(flags int) (again *os.File, err error) {
	err = f.control(func(fd int) (err error) {
		again, err = openFile(fmt.Sprintf("/proc/self/fd/%d", fd), f.file.Name(), f.mode, flags)
		return err
	})
	return again, err
}

func (d *direct) ReadAt(p []byte, offset int64) (int, error) {
	if err := d.within(offset, int64(len(p))); err != nil {
		return 0, err
	}
	if len(p) < directLeast || d.cached(offset, len(p)) {
		return d.File.ReadAt(p, offset)
	}
	return d.transfer(p, offset, d.past.ReadAt, d.File.ReadAt)
}

func (d *direct) WriteAt(p []byte, offset int64) (int, error) {
	if err := d.writable(offset, int64(len(p))); err != nil {
		return 0, err
	}
	return d.transfer(p, offset, d.past.WriteAt, d.File.WriteAt)
}

// transfer moves whole blocks past the cache and the rest through it: the end of
// a disk that is no multiple of the block, what was refused, and what a file
// that became shorter no longer has, so that the error is the usual one.
func (d *direct) transfer(p []byte, offset int64, past, through func([]byte, int64) (int, error)) (n int, err error) {
	blocks := p[:len(p)-len(p)%directAlign]
	if len(blocks) >= directLeast && isAligned(blocks, offset) && !d.refused.Load() {
		n, err = past(blocks, offset)
		switch {
		case errors.Is(err, unix.EINVAL):
			d.refused.Store(true)
		case err != nil && !errors.Is(err, io.EOF):
			return n, err
		}
	}
	if n == len(p) {
		return n, nil
	}
	m, err := through(p[n:], offset+int64(n))
	return n + m, err
}

func isAligned(p []byte, offset int64) bool {
	return offset%directAlign == 0 && uintptr(unsafe.Pointer(unsafe.SliceData(p)))%directAlign == 0
}

// cached reports whether a range of the file is in the page cache, which is then
// the fastest way to it. It is also taken where the kernel won't tell.
func (f *File) cached(offset int64, length int) bool {
	page := int64(os.Getpagesize())
	start := offset - offset%page
	length += int(offset - start)
	resident := make([]byte, (int64(length)+page-1)/page)
	err := f.control(func(fd int) error {
		view, err := unix.Mmap(fd, start, length, unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			return err
		}
		return errors.Join(mincore(view, resident), unix.Munmap(view))
	})
	if err != nil {
		return true
	}
	for _, r := range resident {
		if r&1 == 0 {
			return false
		}
	}
	return true
}

// mincore says in the lowest bits of resident which pages are in memory.
func mincore(view, resident []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(unsafe.SliceData(view))),
		uintptr(len(view)), uintptr(unsafe.Pointer(unsafe.SliceData(resident))))
	if errno != 0 {
		return errno
	}
	return nil
}

// Reserve reserves space for data that is about to be written, in one piece as
// far as the file system can, and notices early that there is none.
func (f *File) Reserve(offset, length int64) error {
	if err := f.writable(offset, length); err != nil {
		return err
	}
	err := f.control(func(fd int) error { return fallocate(fd, 0, offset, length) })
	if err == nil || cannotFallocate(err) {
		return nil
	}
	return fmt.Errorf("reserve %d bytes at offset %d of %s: %w", length, offset, f.file.Name(), err)
}
