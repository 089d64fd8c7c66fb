package listen

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// MaxPath is how many bytes the path of a unix socket may have: unix(7).
const MaxPath = 107

// Private listens on a unix socket that only processes of its owner can connect
// to. The socket of a server that is no more is replaced; anything else in its place
// is an fs.ErrExist.
func Private(ctx context.Context, path string) (net.Listener, error) {
	folder, err := claimFolder(ctx, filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer folder.Close()
	if err := removeStale(ctx, path); err != nil {
		return nil, err
	}
	return (&net.ListenConfig{Control: ownerOnly}).Listen(ctx, "unix", path)
}

// ownerOnly gives a socket its mode before it has a name. Linux takes that over, so
// there is no moment at which others can connect.
func ownerOnly(_, _ string, socket syscall.RawConn) error {
	failed := error(nil)
	err := socket.Control(func(fd uintptr) { failed = unix.Fchmod(int(fd), 0o600) })
	return errors.Join(err, failed)
}

// claimTime is how long others may need to make their sockets.
const claimTime = 5 * time.Second

// claimFolder locks a folder until it is closed, against others who are about to
// listen in it: each could take the other's new socket for one of the past.
func claimFolder(ctx context.Context, path string) (*os.File, error) {
	folder, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	soon, cancel := context.WithTimeout(ctx, claimTime)
	defer cancel()
	for {
		err := unix.Flock(int(folder.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return folder, nil
		}
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = wait(soon)
		}
		if err != nil {
			folder.Close()
			return nil, fmt.Errorf("lock %s to make a socket there: %w", path, err)
		}
	}
}

// wait lets a moment pass.
func wait(ctx context.Context) error {
	select {
	case <-time.After(10 * time.Millisecond):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// removeStale removes a socket on which nobody listens.
func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s: %w, and is no socket", path, fs.ErrExist)
	}
	c, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err == nil {
		c.Close()
		return fmt.Errorf("%s: %w, and a server listens on it", path, fs.ErrExist)
	}
	if errors.Is(err, unix.ECONNREFUSED) {
		return os.Remove(path)
	}
	return fmt.Errorf("%s: %w, and whether a server listens on it can't be told: %w", path, fs.ErrExist, err)
}
