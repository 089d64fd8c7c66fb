package image

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// zeros is what Discard writes where holes cannot be punched.
var zeros [1 << 20]byte

// openRaw opens, locks and measures a file of sectors. Flags are added to those
// of the mode.
func openRaw(p place, mode Mode, flags int) (*File, error) {
	file, err := p.open(mode, flags)
	if err != nil {
		return nil, err
	}
	f := newFile(file, mode)
	if err := f.attach(); err != nil {
		return nil, errors.Join(err, f.file.Close())
	}
	return f, nil
}

// openFile opens path, to be called name in errors.
func openFile(path, name string, mode Mode, flags int) (*os.File, error) {
	return finishOpen(name, func() (int, error) { return unix.Open(path, openFlags(mode, flags), 0) })
}

func openFlags(mode Mode, flags int) int {
	flags |= unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC
	if mode == ReadWrite {
		flags |= unix.O_RDWR
	}
	return flags
}

// finishOpen makes a file of what open opens.
func finishOpen(name string, open func() (int, error)) (*os.File, error) {
	fd, err := open()
	for errors.Is(err, unix.EINTR) {
		fd, err = open()
	}
	if err == nil {
		err = unix.SetNonblock(fd, false)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// attach makes a locked disk of an opened file.
func (f *File) attach() error {
	if err := f.identify(); err != nil {
		return err
	}
	if f.device {
		if err := f.claimDevice(); err != nil {
			return err
		}
	}
	if err := f.lock(); err != nil {
		return err
	}
	return f.measure()
}

// identify refuses a file that is of no kind that can hold a disk.
func (f *File) identify() error {
	info, err := f.file.Stat()
	if err != nil {
		return err
	}
	if kind := notDisk(info.Mode()); kind != "" {
		return fmt.Errorf("%s is %s, not a disk image or a block device", f.file.Name(), kind)
	}
	f.device = !info.Mode().IsRegular()
	return nil
}

func (f *File) measure() (err error) {
	f.size, err = f.file.Seek(0, io.SeekEnd)
	return err
}

// notDisk names the kind of a file that holds no disk.
func notDisk(mode fs.FileMode) string {
	switch {
	case mode.IsRegular():
		return ""
	case mode.IsDir():
		return "a directory"
	case mode&fs.ModeNamedPipe != 0:
		return "a named pipe"
	case mode&fs.ModeCharDevice != 0:
		return "a character device"
	case mode&fs.ModeDevice != 0:
		return ""
	}
	return "a special file"
}

// claimDevice opens the same block device once more, as its exclusive user:
// the kernel refuses that while a file system on it is mounted, and then
// refuses to mount one.
func (f *File) claimDevice() error {
	claimed, err := f.reopen(unix.O_EXCL)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%s: %w: it is mounted, part of another device or held by another vmcrypt",
			f.file.Name(), ErrInUse)
	}
	if err != nil {
		return err
	}
	unclaimed := f.file
	f.use(claimed)
	return unclaimed.Close()
}

// control runs do on the file descriptor, which stays open meanwhile.
func (f *File) control(do func(fd int) error) error {
	var failed error
	if err := f.conn.Control(func(fd uintptr) { failed = do(int(fd)) }); err != nil {
		return err
	}
	return failed
}

// ReadAt reads len(p) bytes at offset. A file that became shorter since it was
// opened gives io.ErrUnexpectedEOF, never zeros.
func (f *File) ReadAt(p []byte, offset int64) (int, error) {
	if err := f.within(offset, int64(len(p))); err != nil {
		return 0, err
	}
	n, err := f.file.ReadAt(p, offset)
	if errors.Is(err, io.EOF) {
		err = f.shrunk()
	}
	return n, err
}

func (f *File) shrunk() error {
	return fmt.Errorf("%s became shorter than its %d bytes while in use: %w",
		f.file.Name(), f.size, io.ErrUnexpectedEOF)
}

// WriteAt writes p at offset.
func (f *File) WriteAt(p []byte, offset int64) (int, error) {
	if err := f.writable(offset, int64(len(p))); err != nil {
		return 0, err
	}
	return f.file.WriteAt(p, offset)
}

// Flush makes every completed write durable. The kernel reports lost writes
// once and then forgets them, so a flush that failed fails for ever after.
func (f *File) Flush() error {
	f.flush.Lock()
	defer f.flush.Unlock()
	if f.mode == ReadWrite && f.flushErr == nil {
		f.flushErr = f.sync()
	}
	return f.flushErr
}

// Discard punches a hole, or writes zeros where the file system has no holes.
func (f *File) Discard(offset, length int64) error {
	if err := f.writable(offset, length); err != nil || length == 0 {
		return err
	}
	err := f.control(func(fd int) error {
		return fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, offset, length)
	})
	switch {
	case err == nil:
		return nil
	case cannotFallocate(err):
		return f.writeZeros(offset, length)
	}
	return fmt.Errorf("punch %d bytes at offset %d out of %s: %w", length, offset, f.file.Name(), err)
}

func fallocate(fd int, mode uint32, offset, length int64) error {
	for {
		err := unix.Fallocate(fd, mode, offset, length)
		if err != unix.EINTR {
			return err
		}
	}
}

// cannotFallocate tells the errors of a file system that lacks what was asked
// for.
func cannotFallocate(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL)
}

func (f *File) writeZeros(offset, length int64) error {
	for length > 0 {
		n := min(length, int64(len(zeros)))
		if _, err := f.file.WriteAt(zeros[:n], offset); err != nil {
			return err
		}
		offset, length = offset+n, length-n
	}
	return nil
}

// Extents maps the data and the holes of the file. All is data on a block
// device and where the file system does not tell.
func (f *File) Extents(offset, length int64) ([]Extent, error) {
	if err := f.within(offset, length); err != nil || length == 0 {
		return nil, err
	}
	whole := []Extent{{Offset: offset, Length: length}}
	if f.device {
		return whole, nil
	}
	var extents []Extent
	err := f.control(func(fd int) (err error) {
		extents, err = mapHoles(fd, offset, offset+length)
		return err
	})
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		extents, err = whole, nil
	}
	if err != nil {
		return nil, fmt.Errorf("map the holes of %s: %w", f.file.Name(), err)
	}
	return extents, f.checkLength()
}

// checkLength reports an error if the file became shorter: what it lost looks
// like a hole to mapHoles.
func (f *File) checkLength() error {
	info, err := f.file.Stat()
	if err == nil && info.Size() < f.size {
		err = f.shrunk()
	}
	return err
}

// mapHoles asks the file system for the data and the holes from offset to end.
func mapHoles(fd int, offset, end int64) ([]Extent, error) {
	var extents []Extent
	for hole := true; offset < end; hole = !hole {
		next, err := seek(fd, offset, hole)
		if errors.Is(err, unix.ENXIO) { // no data from here to the end of the file
			next, err = end, nil
		}
		if err != nil {
			return nil, err
		}
		next = min(next, end)
		if next > offset {
			extents = append(extents, Extent{Offset: offset, Length: next - offset, Hole: hole})
		}
		offset = next
	}
	return extents, nil
}

// seek finds the end of the hole, or of the data, that starts at offset.
func seek(fd int, offset int64, hole bool) (int64, error) {
	if hole {
		return unix.Seek(fd, offset, unix.SEEK_DATA)
	}
	return unix.Seek(fd, offset, unix.SEEK_HOLE)
}
