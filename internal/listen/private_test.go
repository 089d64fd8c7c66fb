package listen

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// TestPrivate: the umask does not matter to who can connect.
func TestPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	defer unix.Umask(unix.Umask(0))
	l, err := Private(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("%v, %v", info, err)
	}
}

// TestListenOneOfMany: of those that find a dead server's socket at the same time one
// takes its place, and no other takes that away.
func TestListenOneOfMany(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	for range 200 {
		leaveSocket(t, path)
		var mu sync.Mutex
		var listeners []net.Listener
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				l, err := Private(t.Context(), path)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					listeners = append(listeners, l)
				} else if !errors.Is(err, fs.ErrExist) {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if len(listeners) != 1 {
			t.Fatalf("%d listen", len(listeners))
		}
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		listeners[0].Close()
	}
}

// leaveSocket makes a socket on which nobody listens.
func leaveSocket(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
}
