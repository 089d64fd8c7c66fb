package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vmcrypt/vmcrypt/image"
)

// lockSuffix makes the name of the lock file of a descriptor's name. The file is
// never removed or replaced: who waits for one that is gone locks nothing.
const lockSuffix = ".vmcrypt-lock"

// lock keeps other conversions away from the disks of the target's descriptor, which
// need not exist, until the file is closed. ErrInUse is the error where there is one.
func (t *Target) lock() (*os.File, error) {
	f, err := t.openLock()
	if err != nil {
		return nil, err
	}
	if err := lockFile(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// isLocked tells whether a conversion runs on the target, as far as can be seen.
func (t *Target) isLocked() bool {
	path := t.Descriptor + lockSuffix
	if t.beneath == nil {
		path = resolved(t.Descriptor) + lockSuffix
	}
	f, err := t.openOwn(path)
	if err != nil {
		return false
	}
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	err = unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock)
	return err == nil && lock.Type != unix.F_UNLCK
}

// openLock opens the lock file, or makes it.
func (t *Target) openLock() (*os.File, error) {
	path := resolved(t.Descriptor) + lockSuffix
	f, err := openRegular(path, os.O_RDWR|os.O_CREATE|os.O_EXCL)
	if errors.Is(err, fs.ErrExist) {
		return openRegular(path, os.O_RDWR)
	}
	if err == nil {
		t.giveToOwner(f)
	}
	return f, err
}

// giveToOwner gives a new file, made by root perhaps, to who owns the descriptor or
// the image: it must not keep them out. Who may not do that needs not.
func (t *Target) giveToOwner(f *os.File) {
	var stat unix.Stat_t
	if unix.Stat(t.Descriptor, &stat) == nil || unix.Stat(t.Path, &stat) == nil {
		_ = f.Chown(int(stat.Uid), int(stat.Gid))
	}
}

// resolved is the path without symbolic links, so that each way to a file leads to
// the same names beside it.
func resolved(path string) string {
	if to, err := filepath.EvalSymlinks(path); err == nil {
		return to
	}
	folder, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return path
	}
	return filepath.Join(folder, filepath.Base(path))
}

// openRegular opens a file of vmcrypt's own. A link or something else in its place
// is refused: it was put there to have another file written.
func openRegular(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("%w: %s is a symbolic link", errOddFile, path)
	}
	if err != nil {
		return nil, err
	}
	if err := checkRegular(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// errOddFile is for something in the place of a file of vmcrypt's own.
var errOddFile = errors.New("not the file of vmcrypt that it should be")

func checkRegular(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	var stat unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &stat); err != nil {
		return err
	}
	if !info.Mode().IsRegular() || stat.Nlink > 1 {
		return fmt.Errorf("%w: %s is no regular file, or has other names too", errOddFile, f.Name())
	}
	return nil
}

// lockFile takes the lock of the open file description, which goes with it.
func lockFile(f *os.File) error {
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("%w: another vmcrypt is at work on it and holds %s", image.ErrInUse, f.Name())
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return nil
}
