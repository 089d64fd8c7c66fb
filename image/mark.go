package image

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// mark is the extended attribute that names the encrypted disk a file holds:
// ciphertext has no header to say so.
const mark = "user.vmcrypt.disk"

const uuidLength = 36

// DiskUUID is the UUID of the encrypted disk that the data file is marked to
// hold. There is none where the file is not marked or cannot be; ErrFormat is
// the error for a mark that is no UUID in lower case.
func (f *File) DiskUUID() (id string, ok bool, err error) {
	if f.device {
		return "", false, nil
	}
	var value [uuidLength + 1]byte
	n := 0
	err = f.control(func(fd int) (err error) {
		n, err = unix.Fgetxattr(fd, mark, value[:])
		return err
	})
	switch {
	case errors.Is(err, unix.ENODATA) || noMarks(err):
		return "", false, nil
	case err != nil && !errors.Is(err, unix.ERANGE):
		return "", false, f.markError("read", err)
	case err != nil || !isUUID(string(value[:n])):
		return "", false, fmt.Errorf("%s: %w: attribute %s is no disk UUID", f.DataPath(), ErrFormat, mark)
	}
	return string(value[:n]), true, nil
}

// SetDiskUUID marks the data file as holding the encrypted disk id, a UUID in
// lower case with dashes. A file that cannot be marked stays as it is.
func (f *File) SetDiskUUID(id string) error {
	if !isUUID(id) {
		return fmt.Errorf("%q is no disk UUID", id)
	}
	if f.device {
		return nil
	}
	if err := f.writable(0, 0); err != nil {
		return err
	}
	err := f.control(func(fd int) error { return unix.Fsetxattr(fd, mark, []byte(id), 0) })
	if err != nil && !noMarks(err) {
		return f.markError("write", err)
	}
	return nil
}

// ClearDiskUUID removes the mark, if there is one: the file holds a plain disk.
func (f *File) ClearDiskUUID() error {
	if f.device {
		return nil
	}
	if err := f.writable(0, 0); err != nil {
		return err
	}
	err := f.control(func(fd int) error { return unix.Fremovexattr(fd, mark) })
	if err != nil && !errors.Is(err, unix.ENODATA) && !noMarks(err) {
		return f.markError("remove", err)
	}
	return nil
}

// noMarks tells the errors of a file system without extended attributes.
func noMarks(err error) bool {
	return errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.ENOSYS)
}

func (f *File) markError(verb string, err error) error {
	return fmt.Errorf("%s attribute %s of %s: %w", verb, mark, f.DataPath(), err)
}

// isUUID tells the one valid spelling of a UUID.
func isUUID(s string) bool {
	if len(s) != uuidLength {
		return false
	}
	for i, c := range []byte(s) {
		dash := i == 8 || i == 13 || i == 18 || i == 23
		hex := '0' <= c && c <= '9' || 'a' <= c && c <= 'f'
		if dash && c != '-' || !dash && !hex {
			return false
		}
	}
	return true
}
