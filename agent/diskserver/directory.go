package diskserver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// listen makes the sockets in the directory, which becomes the process's own, so
// that names without a path are enough for them, whatever its root is.
//
// The directory is given to the user of the sockets last: until then nobody else can
// change what is in it, connect, or have another file's owner changed.
func (s *server) listen() (err error) {
	if err := s.claimDirectory(); err != nil {
		return err
	}
	defer unix.Umask(unix.Umask(0o177))
	if s.control, err = listenAt(controlSocket); err != nil {
		return err
	}
	for _, d := range s.disks {
		if d.listener, err = listenAt(d.socket()); err != nil {
			return err
		}
		if err := os.Lchown(d.socket(), int(s.SocketUser.UID), int(s.SocketUser.GID)); err != nil {
			return err
		}
	}
	return os.Chown(".", int(s.SocketUser.UID), int(s.SocketUser.GID))
}

func listenAt(name string) (net.Listener, error) {
	return new(net.ListenConfig).Listen(context.Background(), "unix", name)
}

// claimDirectory makes the directory. It is locked as long as the process lives. What
// an earlier process left there is in the hand of the user of the sockets, and not used.
func (s *server) claimDirectory() (err error) {
	if s.lock, err = claim(s.Directory); err != nil {
		return err
	}
	if err := clearAway(s.Directory); err != nil {
		return err
	}
	if err := os.Mkdir(s.Directory, 0o700); err != nil {
		return err
	}
	return os.Chdir(s.Directory)
}

// claim locks a directory until the file is closed. The lock is on a file beside the
// directory: the user of the sockets could hold one on the directory itself.
func claim(directory string) (*os.File, error) {
	for {
		f, err := os.OpenFile(directory+lockSuffix, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && isThere(f) {
			return f, nil
		}
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s belongs to another disk server", directory)
		}
		if err != nil {
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
	}
}

// isThere tells whether a file still has its name: who had it locked before may have
// removed it.
func isThere(f *os.File) bool {
	own, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Lstat(f.Name())
	return err == nil && os.SameFile(own, there)
}

// HeldLock gives the file that the disk server of a directory has open and locked. The
// error is fs.ErrNotExist if no process serves there.
func HeldLock(directory string) (fs.FileInfo, error) {
	f, err := os.OpenFile(directory+lockSuffix, unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return f.Stat()
	}
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	// A program that is being started may have the file open a moment longer.
	_ = unix.Flock(int(f.Fd()), unix.LOCK_UN) // it can't fail for one that is locked
	return nil, fs.ErrNotExist
}

// RemoveDirectory removes the directory of a disk server that is no more. What can't
// be removed is logged, and put aside under another name: the user of the sockets owned
// the directory, and has nothing to say about whether a VM is locked.
func RemoveDirectory(directory string) {
	if err := remove(directory); err != nil {
		slog.Warn("what a disk server left can't be removed", "directory", directory, "error", err)
	}
}

func remove(directory string) error {
	lock, err := claim(directory)
	if err != nil {
		return err
	}
	defer lock.Close()
	return errors.Join(clearAway(directory), os.Remove(lock.Name()))
}

// clearAway leaves nothing under the name of a directory that the caller has locked.
func clearAway(directory string) error {
	uncover(directory)
	removeSockets(directory)
	err := os.Remove(directory)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	slog.Warn("what somebody put beside a disk server's sockets is put aside", "directory", directory, "error", err)
	return putAside(directory)
}

// uncover takes away what was mounted over a directory, by FUSE for one. It needs
// CAP_SYS_ADMIN; without it the directory can't be moved.
func uncover(directory string) {
	for unix.Unmount(directory, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) == nil {
		continue
	}
}

// removeSockets leaves folders alone: what is below them may be deep. Errors are seen
// when the directory is not empty then.
func removeSockets(directory string) {
	folder, err := os.OpenFile(directory, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return
	}
	defer folder.Close()
	names, _ := folder.Readdirnames(maxRemoved)
	for _, name := range names {
		_ = unix.Unlinkat(int(folder.Fd()), name, 0)
	}
}

// putAside gives a directory a name that no other has.
func putAside(directory string) error {
	name, err := os.MkdirTemp(filepath.Dir(directory), filepath.Base(directory)+aside)
	if err != nil {
		return err
	}
	if err := unix.Rename(directory, name); err != nil { // os.Rename replaces no folder
		return errors.Join(fmt.Errorf("rename to %s: %w", name, err), os.Remove(name))
	}
	return nil
}
