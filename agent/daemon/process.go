package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmcrypt/vmcrypt/agent/diskserver"
)

// process is a disk server, whoever started it.
type process struct {
	pidfd *os.File      // pidfd_open(2); closed once nobody refers to it
	ended chan struct{} // closed when it has ended
	since time.Time     // when it was found, or started
}

// newProcess takes a pidfd.
func newProcess(fd int) *process {
	_ = unix.SetNonblock(fd, true) // to wait for it without a thread; it can't fail for one that is open
	p := &process{os.NewFile(uintptr(fd), "disk server"), make(chan struct{}), time.Now()}
	go p.await()
	return p
}

// await notices the end: then there is something to read.
func (p *process) await() {
	defer close(p.ended)
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Read(func(fd uintptr) bool { // there is nothing to fail
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0 && err == nil
	})
}

// lives tells whether there is a process that has not ended.
func (p *process) lives() bool {
	if p == nil {
		return false
	}
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// termTime is how long a disk server has to end after a signal.
const termTime = 10 * time.Second

// end has the process end, if it has not: asked to, and then by force.
func (p *process) end() error {
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		if err := p.signal(signal); err != nil {
			return err
		}
		select {
		case <-p.ended:
			return nil
		case <-time.After(termTime):
		}
	}
	return errors.New("the disk server does not end: its storage hangs; the keys go with it")
}

func (p *process) signal(s unix.Signal) error {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = raw.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), s, nil, 0) })
	if errors.Is(sent, unix.ESRCH) {
		sent = nil // it has ended
	}
	return errors.Join(err, sent)
}

// serving finds the process that serves in a directory.
func serving(ctx context.Context, directory string) (*process, *diskserver.Status, error) {
	status, err := statusOfServer(ctx, directory)
	if err != nil {
		return nil, nil, err
	}
	fd, err := unix.PidfdOpen(status.PID, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("pidfd_open", err)
	}
	// Another process may have got the number in between; then this one is gone.
	if again, err := statusOfServer(ctx, directory); err != nil || again.PID != status.PID {
		unix.Close(fd)
		return nil, nil, errors.Join(errors.New("the disk server has just ended"), err)
	}
	return newProcess(fd), status, nil
}

// askTime is how long a disk server may take to tell its status.
const askTime = 5 * time.Second

func statusOfServer(ctx context.Context, directory string) (*diskserver.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	client, err := diskserver.Connect(ctx, directory)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	return client.Status(ctx)
}

// silent finds the process of a directory that can't be asked: QEMU's user may have
// removed its control socket. The error is os.ErrNotExist where there is none.
func silent(directory string) (*process, error) {
	folder, err := os.Open(directory)
	if err != nil {
		return nil, err
	}
	defer folder.Close()
	if unix.Flock(int(folder.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		return nil, os.ErrNotExist
	}
	fd := findIn(folder)
	if fd < 0 {
		return nil, fmt.Errorf("a disk server has %s, and can't be found", directory)
	}
	return newProcess(fd), nil
}

// findIn gives a pidfd of the process of the own user that works in a folder, or -1.
// Only root can see where a disk server works.
func findIn(folder *os.File) int {
	want, err := folder.Stat()
	if err != nil {
		return -1
	}
	processes, _ := filepath.Glob("/proc/[0-9]*") // the pattern is good
	for _, dir := range processes {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // it has just ended
		}
		// Who owns the folder can work in it, too, but not as the own user.
		works, err := os.Stat(filepath.Join(dir, "cwd"))
		if err == nil && os.SameFile(works, want) && isOwn(dir) {
			return fd
		}
		unix.Close(fd)
	}
	return -1
}

// isOwn tells whether a process, by its folder in /proc, was started by the own user
// and runs as that: one that others started may be root's, and the folder's owner is
// root if the process can't be dumped.
func isOwn(dir string) bool {
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return false
	}
	uid := strconv.Itoa(os.Geteuid())
	return strings.Contains(string(status), "\nUid:\t"+uid+"\t"+uid+"\t")
}
