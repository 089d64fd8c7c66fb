package durable

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	tempSuffix  = ".vmcrypt-tmp"
	maxTempBase = 200 // bytes; keeps a temporary name below the 255 of Linux
)

// TempName gives an unused temporary name beside path, for a file that somebody
// else creates (with O_EXCL) and that [Publish] then moves to path.
func TempName(path string) string {
	base := filepath.Base(path)
	base = base[:min(len(base), maxTempBase)]
	name := "." + base + "." + rand.Text()[:16] + tempSuffix
	return filepath.Join(filepath.Dir(path), name)
}

// MkdirTemp makes a temporary folder beside path, with perm less the umask, to
// be filled and moved to path by [Publish], or removed by its caller.
func MkdirTemp(path string, perm fs.FileMode) (string, error) {
	tmp := TempName(path)
	return tmp, os.Mkdir(tmp, perm)
}

// Publish makes the file or folder tmp durable, with all that is in it, and
// renames it to path on the same filesystem. It fails with [fs.ErrExist] if
// something has that name already, a dangling symbolic link included. tmp is
// left alone on failure, except that when only the last step fails, making the
// new name durable, path is there: the error is ErrNotDurable then.
//
// Not replacing is atomic for files wherever the filesystem knows
// RENAME_NOREPLACE or hard links, and for folders wherever it knows the former.
// Elsewhere (a folder on NFS, say) the name is looked up before the rename, and
// whoever takes it in between loses an empty folder or a file.
func Publish(tmp, path string) error {
	if err := SyncTree(tmp); err != nil {
		return err
	}
	if err := renameNew(tmp, path); err != nil {
		return err
	}
	return syncName(path)
}

// syncName makes a name durable that a file just got.
func syncName(path string) error {
	if err := SyncDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("%w: %w", ErrNotDurable, err)
	}
	return nil
}

// renameNew renames without replacing, by the best means the filesystem has.
func renameNew(tmp, path string) error {
	err := renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
	if unsupported(err) {
		err = linkNew(tmp, path)
	}
	if unsupported(err) {
		err = checkNew(tmp, path)
	}
	if errno := syscall.Errno(0); errors.As(err, &errno) {
		return &fs.PathError{Op: "create", Path: path, Err: errno}
	}
	return err
}

// linkNew moves a file: link(2) never replaces. It knows nothing of folders.
func linkNew(tmp, path string) error {
	if err := link(tmp, path); err != nil {
		return err
	}
	return os.Remove(tmp)
}

// checkNew looks before it renames, and can lose a race.
func checkNew(tmp, path string) error {
	_, err := os.Lstat(path)
	switch {
	case err == nil:
		return unix.EEXIST
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	return os.Rename(tmp, path)
}

// unsupported tells a filesystem that has no such operation from one that
// refuses this one. link(2) says EPERM for a folder and where there are no
// hard links.
func unsupported(err error) bool {
	for _, e := range []error{unix.EINVAL, unix.ENOSYS, unix.EOPNOTSUPP, unix.EPERM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// SyncDir makes the names in a folder durable: those created, renamed and
// removed. A filesystem that has no fsync for folders is left to its own order.
func SyncDir(dir string) error {
	if err := syncPath(dir); err != nil && !errors.Is(err, unix.EINVAL) {
		return err
	}
	return nil
}

// SyncTree makes a file durable, or a folder with every file and folder in it.
// Symbolic links are not followed.
func SyncTree(root string) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			return SyncDir(path)
		case d.Type().IsRegular():
			return syncPath(path)
		}
		return nil
	})
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return fsync(f)
}
