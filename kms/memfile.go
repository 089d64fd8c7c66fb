package kms

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// memfile is a file in memory, gone when it is closed.
type memfile struct {
	*os.File
}

func newMemfile() (*memfile, error) {
	fd, err := unix.MemfdCreate("vmcrypt-kms-store", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	return &memfile{os.NewFile(uintptr(fd), "copy of the store in memory")}, nil
}

// path opens the same file once more, as long as this one is open.
func (m *memfile) path() string { return fmt.Sprintf("/proc/self/fd/%d", m.Fd()) }

// content reads the file from its start, and tells its size.
func (m *memfile) content() (io.Reader, int64) {
	size, _ := m.Seek(0, io.SeekEnd) // cannot fail in memory
	return io.NewSectionReader(m, 0, size), size
}

// copyTo writes the content to a new file.
func (m *memfile) copyTo(path string) error {
	r, _ := m.content()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.Copy(f, r); err != nil {
		return err
	}
	return f.Close()
}
