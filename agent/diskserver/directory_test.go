package diskserver

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// names gives the names in a folder.
func names(t *testing.T, folder string) (out []string) {
	t.Helper()
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// makeAll makes files and, where the name ends with a slash, folders.
func makeAll(t *testing.T, folder string, names ...string) {
	t.Helper()
	for _, name := range names {
		path := filepath.Join(folder, name)
		err := os.MkdirAll(filepath.Dir(path), 0o700)
		if err == nil && strings.HasSuffix(name, "/") {
			err = os.MkdirAll(path, 0o700)
		} else if err == nil {
			err = os.WriteFile(path, nil, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestLockOutOfReach: the user of the sockets can neither have the lock nor make the
// agent believe that somebody has it.
func TestLockOutOfReach(t *testing.T) {
	m := testMachine(t)
	cmd, ended := m.launch(t)
	info, err := os.Lstat(m.Directory + lockSuffix)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("the lock is %v: %v", info, err)
	}
	if held, err := HeldLock(m.Directory); err != nil || !os.SameFile(held, info) {
		t.Errorf("while it is served: %v, %v", held, err)
	}
	folder, err := os.Open(m.Directory)
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	cmd.Process.Kill()
	waitFor(t, ended)
	if err := unix.Flock(int(folder.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	if _, err := HeldLock(m.Directory); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after its end: %v", err)
	}
	m.launch(t)
	connect(t, m.Directory)
}

// TestStartsAmidRubbish: nothing that the user of the sockets leaves keeps the next
// server from starting.
func TestStartsAmidRubbish(t *testing.T) {
	m := testMachine(t)
	elsewhere := t.TempDir()
	for name, make := range map[string]func() error{
		"folders": func() error {
			makeAll(t, m.Directory, "control.sock/x", "scsi0:0.sock/a/b/c/", "file")
			return nil
		},
		"link": func() error { return os.Symlink(elsewhere, m.Directory) },
		"file": func() error { return os.WriteFile(m.Directory, nil, 0o600) },
		"mount": func() error {
			makeAll(t, m.Directory, "file")
			t.Cleanup(func() { _ = unix.Unmount(m.Directory, unix.MNT_DETACH) }) // if it is there still
			return unix.Mount("none", m.Directory, "tmpfs", 0, "")
		},
	} {
		if err := make(); errors.Is(err, unix.EPERM) {
			t.Logf("no %s: %v", name, err)
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		cmd, ended := m.launch(t)
		m.qemuIO(t, "scsi0:0", "read -P 1 0 1M")
		if got := names(t, m.Directory); len(got) != 3 {
			t.Errorf("%s: beside the sockets: %v", name, got)
		}
		cmd.Process.Kill()
		waitFor(t, ended)
		RemoveDirectory(m.Directory)
	}
	if len(names(t, elsewhere)) > 0 {
		t.Error("a link was followed")
	}
}

// TestRemoveDirectory: the name is free afterwards, whatever is there, and what can't be
// removed is kept, once.
func TestRemoveDirectory(t *testing.T) {
	deep := strings.Repeat("d/", 2000)
	for name, c := range map[string]struct {
		there []string
		left  int
	}{
		"nothing":       {nil, 0},
		"empty":         {[]string{"vm/"}, 0},
		"sockets":       {[]string{"vm/control.sock", "vm/scsi0:0.sock"}, 0},
		"lock":          {[]string{"vm.lock", "vm/control.sock"}, 0},
		"lock only":     {[]string{"vm.lock"}, 0},
		"folder":        {[]string{"vm/control.sock/x", "vm/scsi0:0.sock"}, 1},
		"deep":          {[]string{"vm/" + deep}, 1},
		"file":          {[]string{"vm"}, 0},
		"other VMs":     {[]string{"vm/", "vm2/", "vm2.lock"}, 2},
		"aside already": {[]string{"vm.aside-1/x/", "vm/x/"}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			folder := t.TempDir()
			makeAll(t, folder, c.there...)
			for range 2 { // as the next agent does
				for _, name := range append(names(t, folder), "vm") {
					if !strings.HasPrefix(name, "vm2") {
						RemoveDirectory(filepath.Join(folder, name))
					}
				}
				if _, err := os.Lstat(filepath.Join(folder, "vm")); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("it is there: %v", err)
				}
				if left := names(t, folder); len(left) != c.left {
					t.Errorf("left is %v", left)
				}
			}
		})
	}
}

// The directory of a server that lives is not removed.
func TestRemoveDirectoryInUse(t *testing.T) {
	m := testMachine(t)
	m.launch(t)
	RemoveDirectory(m.Directory)
	if _, err := HeldLock(m.Directory); err != nil {
		t.Error(err)
	}
	m.qemuIO(t, "scsi0:0", "read -P 1 0 1M")
	connect(t, m.Directory)
}

// TestClaimOfOne: though locks come and go, who has one has that which others meet.
func TestClaimOfOne(t *testing.T) {
	directory := filepath.Join(t.TempDir(), "vm")
	var claims atomic.Int32
	var running sync.WaitGroup
	for range 8 {
		running.Go(func() {
			for i := range 2000 {
				lock, err := claim(directory)
				if err != nil {
					continue // another has it
				}
				claims.Add(1)
				if _, err := HeldLock(directory); err != nil {
					t.Errorf("another could have it, too: %v", err)
				}
				if i%2 == 0 {
					err = os.Remove(lock.Name())
				}
				if lock.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	running.Wait()
	if claims.Load() == 0 {
		t.Error("nobody had the lock")
	}
}

// TestConnectFollowsNoLink: who owns the directory leads the agent to no other socket.
func TestConnectFollowsNoLink(t *testing.T) {
	directory, other := t.TempDir(), filepath.Join(t.TempDir(), "other.sock")
	l, err := net.Listen("unix", other)
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		accepted <- err
	}()
	if err := os.Symlink(other, filepath.Join(directory, controlSocket)); err != nil {
		t.Fatal(err)
	}
	if _, err := Connect(t.Context(), directory); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("connect: %v", err)
	}
	l.Close()
	if err := <-accepted; err == nil {
		t.Error("there was a connection")
	}
}

// Where nobody serves, the error says so, and where.
func TestConnectToNobody(t *testing.T) {
	directory := t.TempDir()
	if _, err := Connect(t.Context(), directory); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a socket: %v", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(directory, controlSocket), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if _, err := Connect(t.Context(), directory); !errors.Is(err, unix.ECONNREFUSED) || !strings.Contains(err.Error(), directory) {
		t.Errorf("without a server: %v", err)
	}
	makeAll(t, directory, "folder/control.sock")
	if _, err := Connect(t.Context(), filepath.Join(directory, "folder")); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("to a file: %v", err)
	}
}
