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
func silent(ctx context.Context, directory string) (*process, error) {
	lock, err := diskserver.HeldLock(directory)
	if err != nil {
		return nil, err
	}
	fd := findHolder(lock)
	if fd < 0 {
		fd = findScoped(ctx, directory)
	}
	if fd < 0 {
		return nil, fmt.Errorf("a disk server has %s, and can't be found", directory)
	}
	return newProcess(fd), nil
}

// findHolder gives a pidfd of the disk server that has a file open, or -1. Only root
// can see what a disk server has open.
func findHolder(file os.FileInfo) int {
	processes, _ := filepath.Glob("/proc/[0-9]*") // the pattern is good
	for _, dir := range processes {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // it has just ended
		}
		if isDiskServer(dir) && isOwn(dir) && hasOpen(dir, file) {
			return fd
		}
		unix.Close(fd)
	}
	return -1
}

// isDiskServer tells what a process is, by its folder in /proc: other programs of the
// own user may look at files, too.
func isDiskServer(dir string) bool {
	text, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	args := strings.Split(string(text), "\x00")
	return err == nil && len(args) > 1 && args[1] == "disk-server"
}

// hasOpen needs CAP_SYS_PTRACE: a disk server can't be dumped.
func hasOpen(dir string, file os.FileInfo) bool {
	opened, _ := filepath.Glob(filepath.Join(dir, "fd/*")) // the pattern is good
	for _, path := range opened {
		if info, err := os.Stat(path); err == nil && os.SameFile(info, file) {
			return true
		}
	}
	return false
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
