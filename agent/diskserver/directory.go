package diskserver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// listen makes the sockets in the directory, which becomes the process's own, so
// that names without a path are enough for them, whatever its root is. Sockets that
// a process left that is no more are replaced.
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
	return s.folder.Chown(int(s.SocketUser.UID), int(s.SocketUser.GID))
}

// claimDirectory makes the directory, or takes over what an earlier process left. It
// is locked as long as the process lives.
func (s *server) claimDirectory() (err error) {
	if err := os.Mkdir(s.Directory, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if s.folder, err = os.OpenFile(s.Directory, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0); err != nil {
		return err
	}
	err = unix.Flock(int(s.folder.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("%s belongs to another disk server", s.Directory)
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", s.Directory, err)
	}
	if err := errors.Join(s.folder.Chown(os.Geteuid(), os.Getegid()), s.folder.Chmod(0o700)); err != nil {
		return err
	}
	return s.folder.Chdir()
}

func listenAt(name string) (net.Listener, error) {
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return new(net.ListenConfig).Listen(context.Background(), "unix", name)
}
