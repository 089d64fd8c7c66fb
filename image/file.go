package image

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Format says how a disk lies in its file.
type Format string

// The formats.
const (
	Raw  Format = "raw"  // the sectors as they are, in a regular file or a block device
	VMDK Format = "vmdk" // a text descriptor beside one flat extent
)

// Mode says what an opened disk is for, and so what others may do meanwhile.
type Mode int

// The modes.
const (
	ReadOnly  Mode = iota // others may read the disk, nobody may change it
	ReadWrite             // nobody else may use the disk
)

var (
	// ErrInUse is the error for a disk that another process holds in a way
	// that the wanted mode does not bear.
	ErrInUse = errors.New("the disk is in use")
	// ErrFormat is the error for a descriptor or a mark that is damaged or of
	// a kind that vmcrypt does not know.
	ErrFormat = errors.New("unsupported or damaged disk format")
)

var _ Disk = (*File)(nil)

// File is a disk in the file system. It stays locked until it is closed.
// Its methods may be called concurrently.
type File struct {
	file   *os.File        // holds the sectors
	conn   syscall.RawConn // the same file
	format Format
	mode   Mode
	size   int64
	vmdk   *VMDKDescriptor // nil but for VMDK that was opened by it
	beyond int64           // see Beyond
	device bool            // a block device: it has no holes and takes no mark

	sync     func() error // file.Sync, or what a test puts in its place
	flush    sync.Mutex
	flushErr error // of the first flush that failed

	ringOnce sync.Once
	ring     *ring // nil but for OpenBackground
}

// FormatOf guesses the format of the disk at path from its name alone. The
// flat extent of a VMDK is raw: it holds what the guest wrote, and must not
// be taken for a descriptor.
func FormatOf(path string) Format {
	name := strings.ToLower(path)
	if strings.HasSuffix(name, ".vmdk") && !strings.HasSuffix(name, "-flat.vmdk") {
		return VMDK
	}
	return Raw
}

// Open opens and locks the disk at path, the image itself or, for VMDK, its
// descriptor. The error is ErrInUse where another process stands in the way,
// ErrFormat where a descriptor is not understood, and otherwise says what the
// file system said.
func Open(path string, format Format, mode Mode) (*File, error) {
	return place{name: path}.openDisk(format, mode)
}

func (p place) openDisk(format Format, mode Mode) (*File, error) {
	switch format {
	case Raw:
		return openRaw(p, mode, 0)
	case VMDK:
		return openVMDK(p, mode)
	}
	return nil, fmt.Errorf("%s: %w: %q is not one of raw, vmdk", p.path(), ErrFormat, format)
}

// Create makes a raw file of size bytes at path, all hole, readable by its
// owner only, and opens it for writing. What exists is never replaced: then
// the error is fs.ErrExist.
func Create(path string, size int64) (*File, error) {
	if size < 0 {
		return nil, fmt.Errorf("%s: a disk cannot have %d bytes", path, size)
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	f := newFile(file, ReadWrite)
	f.size = size
	err = f.lock()
	if err == nil {
		err = file.Truncate(size)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(path))
	}
	return f, nil
}

func newFile(file *os.File, mode Mode) *File {
	f := &File{format: Raw, mode: mode}
	f.use(file)
	return f
}

// use has the disk lie in an open file.
func (f *File) use(file *os.File) {
	f.file, f.sync = file, file.Sync
	f.conn, _ = file.SyscallConn() // there is a file
	_ = f.control(noAccessTime)    // only its owner may
}

// noAccessTime spares the kernel the time of each read: those are a guest's, not a
// user's of the file.
func noAccessTime(fd int) error {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags|unix.O_NOATIME)
	}
	return err
}

// Format is the format that the disk was opened with.
func (f *File) Format() Format { return f.format }

// DataPath is the path of the file that holds the sectors: the image itself,
// or the extent of a VMDK.
func (f *File) DataPath() string { return f.file.Name() }

// IsDevice tells a block device from a file.
func (f *File) IsDevice() bool { return f.device }

// Links is the number of names that the data file has.
func (f *File) Links() (n uint64, err error) {
	err = f.control(func(fd int) error {
		var stat unix.Stat_t
		err := unix.Fstat(fd, &stat)
		n = uint64(stat.Nlink) //nolint:unconvert // it has 32 bits on arm64
		return err
	})
	return n, err
}

// VMDK is the descriptor that the disk was opened by, nil where it is no VMDK or was
// adopted.
func (f *File) VMDK() *VMDKDescriptor { return f.vmdk }

// Beyond is how many bytes a VMDK's extent has after those that its descriptor
// declares. They do not belong to the disk.
func (f *File) Beyond() int64 { return f.beyond }

// Size is the size of the disk in bytes.
func (f *File) Size() int64 { return f.size }

// Close releases the disk and its lock, once BeginReads has read. It does not flush.
func (f *File) Close() error {
	f.ringOnce.Do(func() {}) // there won't be one any more
	if f.ring != nil {
		f.ring.close()
	}
	return f.file.Close()
}

// within reports an error unless length bytes at offset lie on the disk.
func (f *File) within(offset, length int64) error {
	if offset < 0 || length < 0 || offset > f.size-length {
		return fmt.Errorf("%s: %d bytes at offset %d are outside the disk of %d bytes: %w",
			f.file.Name(), length, offset, f.size, io.ErrUnexpectedEOF)
	}
	return nil
}

// writable reports an error unless length bytes at offset may be changed.
func (f *File) writable(offset, length int64) error {
	if f.mode != ReadWrite {
		return fmt.Errorf("%s: %w: opened for reading only", f.file.Name(), os.ErrPermission)
	}
	return f.within(offset, length)
}
