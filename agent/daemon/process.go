package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
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
	lock, err := diskserver.HeldLock(directory)
	if err != nil {
		return nil, err
	}
	fd := findHolder(lock)
	if fd < 0 {
		return nil, fmt.Errorf("a disk server has %s, and can't be found", directory)
	}
	return newProcess(fd), nil
}

// findHolder gives a pidfd of the process that has a file locked, or -1. Nobody but disk
// servers lock the file of a directory, which is the own user's.
func findHolder(file os.FileInfo) int {
	pid := holder(file)
	if pid <= 0 || pid == os.Getpid() {
		return -1
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1 // it has just ended
	}
	// Another process may have got the number in between; then this one is gone.
	if holder(file) != pid {
		unix.Close(fd)
		return -1
	}
	return fd
}

// holder is the process that has a file locked by flock(2), or 0. The kernel tells it of
// processes that others can't look into: proc(5), /proc/locks.
func holder(file os.FileInfo) int {
	stat, ok := file.Sys().(*syscall.Stat_t)
	locks, err := os.ReadFile("/proc/locks")
	if !ok || err != nil {
		return 0
	}
	where := fmt.Sprintf("%02x:%02x:%d", unix.Major(stat.Dev), unix.Minor(stat.Dev), stat.Ino)
	for line := range strings.Lines(string(locks)) {
		// 1: FLOCK ADVISORY WRITE 4711 00:1a:123 0 EOF
		f := strings.Fields(line)
		if len(f) == 8 && f[1] == "FLOCK" && f[5] == where {
			pid, _ := strconv.Atoi(f[4]) // 0 or -1 for one that can't be told
			return pid
		}
	}
	return 0
}
