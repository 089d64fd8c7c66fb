package image

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Handover gives the open data file once more, to be inherited by another process,
// which makes a disk of it with Adopt. The locks belong to the open file: they last
// until f, the handover and what the other process has are all closed.
func (f *File) Handover() (file *os.File, err error) {
	err = f.control(func(fd int) error {
		again, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err == nil {
			file = os.NewFile(uintptr(again), f.DataPath())
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("hand %s over: %w", f.DataPath(), err)
	}
	return file, nil
}

// Adopt makes a disk of what Handover gave to another process, opened in the same
// mode. It has size bytes: all of a raw file, the beginning of the extent of a VMDK,
// whose descriptor the disk does not know. The disk owns file from then on. If Adopt
// fails, with ErrInUse where the file was not locked and another process has it, file
// stays the caller's.
func Adopt(file *os.File, format Format, mode Mode, size int64) (*File, error) {
	if format != Raw && format != VMDK {
		return nil, fmt.Errorf("%s: %w: %q is not one of raw, vmdk", file.Name(), ErrFormat, format)
	}
	f := newFile(file, mode)
	if err := f.identify(); err != nil {
		return nil, err
	}
	if err := f.checkMode(); err != nil {
		return nil, err
	}
	if err := f.lock(); err != nil { // again, which changes nothing
		return nil, err
	}
	if err := f.measure(); err != nil {
		return nil, err
	}
	if f.size < size || f.size > size && format == Raw || size < 0 {
		return nil, fmt.Errorf("%s has %d bytes, but is to be a disk of %d", file.Name(), f.size, size)
	}
	f.format, f.size = format, size
	return f, nil
}

// checkMode compares the file with its mode.
func (f *File) checkMode() error {
	return f.control(func(fd int) error {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		if err == nil && flags&unix.O_ACCMODE != openFlags(f.mode, 0)&unix.O_ACCMODE {
			err = fmt.Errorf("%s is open in another mode than was said", f.file.Name())
		}
		return err
	})
}
