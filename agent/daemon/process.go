package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmcrypt/vmcrypt/agent/diskserver"
)

// process is a disk server, whoever started it.
type process struct{ *os.File } // a pidfd: pidfd_open(2)

// newProcess takes a pidfd, or -1 for none.
func newProcess(fd int) *process {
	if fd < 0 {
		return &process{nil}
	}
	_ = unix.SetNonblock(fd, true) // to wait for it without a thread; it can't fail for one that is open
	return &process{os.NewFile(uintptr(fd), "disk server")}
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
	p := newProcess(fd)
	// Another process may have got the number in between; then this one is gone.
	if again, err := statusOfServer(ctx, directory); err != nil || again.PID != status.PID {
		p.Close()
		return nil, nil, errors.Join(errors.New("the disk server has just ended"), err)
	}
	return p, status, nil
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
		if err == nil && os.SameFile(works, want) && ownedBySelf(dir) {
			return fd
		}
		unix.Close(fd)
	}
	return -1
}

func ownedBySelf(path string) bool {
	var stat unix.Stat_t
	return unix.Stat(path, &stat) == nil && int(stat.Uid) == os.Geteuid()
}

func statusOfServer(ctx context.Context, directory string) (*diskserver.Status, error) {
	client, err := diskserver.Connect(ctx, directory)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	return client.Status(ctx)
}

// wait returns when the process has ended, or ctx.
func (p *process) wait(ctx context.Context) error {
	raw, err := p.SyscallConn()
	if err != nil {
		return err
	}
	interrupted := context.AfterFunc(ctx, func() { _ = p.SetReadDeadline(time.Unix(1, 0)) }) // fails for a closed one
	err = raw.Read(p.hasEnded)
	if !interrupted() && errors.Is(err, os.ErrDeadlineExceeded) {
		return ctx.Err()
	}
	return err
}

// hasEnded tells whether there is something to read: the end.
func (p *process) hasEnded(fd uintptr) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return n > 0 && err == nil
}

// end has the process end, if it has not: asked to, and then by force.
func (p *process) end(patience time.Duration) error {
	for _, signal := range []unix.Signal{0, unix.SIGTERM, unix.SIGKILL} {
		if err := p.signal(signal); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		err := p.wait(ctx)
		cancel()
		if err == nil {
			return nil
		}
		_ = p.SetReadDeadline(time.Time{}) // it worked to set one
	}
	return errors.New("the disk server does not end: its storage hangs; the keys go with it")
}

func (p *process) signal(s unix.Signal) error {
	raw, err := p.SyscallConn()
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
