package diskserver

import (
	"errors"
	"fmt"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// confine takes from the process, for good, what it has no more use for. What it
// needs it has open, and its current directory is that of its sockets.
func confine() error {
	_ = time.Local.String() // has the time zone read, for the log
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"keep it out of core dumps and debuggers", hide},
		{"confine it to its directory", confineFiles},
		{"drop capabilities", dropCapabilities},
		{"filter system calls", filterCalls},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("confine the disk server: %s: %w", step.name, err)
		}
	}
	return nil
}

func hide() error {
	return errors.Join(
		unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0),
		unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}))
}

// confineFiles makes the directory of the sockets all that the process sees of the
// file system. Where it may not do that it has the rights of an ordinary user, and
// the filter of system calls has to do.
func confineFiles() error {
	if err := unix.Chroot("."); err != nil && !errors.Is(err, unix.EPERM) {
		return err
	}
	return nil
}

// kept are the capabilities that root's process keeps: to remove its sockets, which
// lie in a directory of another user, and to give connections large buffers. The
// filter leaves nothing else to do with them.
const kept = 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_NET_ADMIN

// dropCapabilities drops those of all threads. Key memory that is locked later needs
// the limit that it raises before.
func dropCapabilities() error {
	const unlimited = unix.RLIM_INFINITY
	_ = unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: unlimited, Max: unlimited}) // as far as we may
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData // 32 capabilities each
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return err
	}
	sets = [2]unix.CapUserData{{Effective: sets[0].Effective & kept, Permitted: sets[0].Permitted & kept}}
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET,
		uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&sets)), 0)
	if errno != 0 && errno != unix.ENOTSUP { // a build with cgo, for the race detector, can't
		return errno
	}
	return nil
}
