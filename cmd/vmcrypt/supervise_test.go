package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// fileCall is a system call on a file of a process, which waits for a verdict.
type fileCall struct {
	name string // as in syscalls(2)
	path string // of the file, as far as it can be told; of two names the first
	args [6]uint64
	pid  uint32 // of the thread
}

// verdict is what a call returns. The zero verdict has the kernel do it.
type verdict struct {
	done  bool // n and errno count, and the kernel does nothing
	n     int64
	errno unix.Errno
}

func failed(errno unix.Errno) verdict { return verdict{done: true, errno: errno} }

// watched are the system calls that are supervised, and which argument names their
// file: a file descriptor, or a path in a folder given by one.
var watched = []struct {
	name   string
	number uint32
	path   bool
}{
	{"openat", unix.SYS_OPENAT, true},
	{"openat2", unix.SYS_OPENAT2, true},
	{"fstatat", map[string]uint32{"amd64": 262, "arm64": 79}[runtime.GOARCH], true},
	{"readlinkat", unix.SYS_READLINKAT, true},
	{"mkdirat", unix.SYS_MKDIRAT, true},
	{"unlinkat", unix.SYS_UNLINKAT, true},
	{"renameat", unix.SYS_RENAMEAT, true},
	{"renameat2", unix.SYS_RENAMEAT2, true},
	{"linkat", unix.SYS_LINKAT, true},
	{"fchmodat", unix.SYS_FCHMODAT, true},
	{"read", unix.SYS_READ, false},
	{"write", unix.SYS_WRITE, false},
	{"pread", unix.SYS_PREAD64, false},
	{"pwrite", unix.SYS_PWRITE64, false},
	{"lseek", unix.SYS_LSEEK, false},
	{"fsync", unix.SYS_FSYNC, false},
	{"fdatasync", unix.SYS_FDATASYNC, false},
	{"ftruncate", unix.SYS_FTRUNCATE, false},
	{"fallocate", unix.SYS_FALLOCATE, false},
	{"fstat", unix.SYS_FSTAT, false},
	{"fchmod", unix.SYS_FCHMOD, false},
	{"fchown", unix.SYS_FCHOWN, false},
	{"fsetxattr", unix.SYS_FSETXATTR, false},
	{"fgetxattr", unix.SYS_FGETXATTR, false},
	{"fremovexattr", unix.SYS_FREMOVEXATTR, false},
	{"close", unix.SYS_CLOSE, false},
	{"fcntl", unix.SYS_FCNTL, false}, // of locks
}

// supervise runs a command whose file calls wait for the verdicts of judge, which
// is asked about one at a time. The kernel has them wait: seccomp_unotify(2). The
// test is skipped where it can't.
func supervise(t *testing.T, cmd *exec.Cmd, judge func(fileCall) verdict) {
	t.Helper()
	listener, start := filtered(t, cmd)
	defer unix.Close(listener)
	var ended atomic.Bool
	served := make(chan error, 1)
	go func() { served <- attend(listener, judge, &ended) }()
	if err := <-start; err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // who looks at how it ended finds that in cmd
	ended.Store(true)
	if err := <-served; err != nil {
		t.Fatal(err)
	}
}

// filtered has a thread start a command once its calls, which the command inherits,
// go to a listener. The thread is no good for anything else.
func filtered(t *testing.T, cmd *exec.Cmd) (listener int, started <-chan error) {
	t.Helper()
	type result struct {
		listener int
		err      error
	}
	installed, start := make(chan result), make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine
		fd, err := installFilter()
		installed <- result{fd, err}
		if err == nil {
			start <- cmd.Start()
		}
	}()
	r := <-installed
	if r.err != nil {
		t.Skipf("the kernel does not let a process supervise another: %v", r.err)
	}
	return r.listener, start
}

// installFilter has the watched calls of this thread wait, of which cmd.Start makes
// none between fork and exec.
func installFilter() (listener int, err error) {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return 0, err
	}
	code := filterCode()
	program := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	fd, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return 0, errno
	}
	return int(fd), nil
}

// filterCode looks at the number of a call and, of fcntl, at the command.
func filterCode() []unix.SockFilter {
	const number, command = 0, 16 + 8 // in struct seccomp_data
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	give := func(action uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: action}
	}
	unless := func(value uint32, skip uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: value, Jf: skip}
	}
	wait := give(unix.SECCOMP_RET_USER_NOTIF)
	code := []unix.SockFilter{load(number)}
	for _, w := range watched {
		if w.number != unix.SYS_FCNTL {
			code = append(code, unless(w.number, 1), wait)
		}
	}
	return append(code,
		unless(unix.SYS_FCNTL, 5), load(command),
		unless(unix.F_OFD_SETLK, 1), wait, unless(unix.F_OFD_GETLK, 1), wait,
		give(unix.SECCOMP_RET_ALLOW))
}

// notification and response are the kernel's struct seccomp_notif and struct
// seccomp_notif_resp.
type notification struct {
	id    uint64
	pid   uint32
	flags uint32
	nr    int32
	arch  uint32
	ip    uint64
	args  [6]uint64
}

type response struct {
	id    uint64
	value int64
	errno int32
	flags uint32
}

// attend answers calls until all who might make them are gone.
func attend(listener int, judge func(fileCall) verdict, ended *atomic.Bool) error {
	for !ended.Load() {
		poll := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
		if n, err := unix.Poll(poll, 100); n <= 0 {
			if err != nil && !errors.Is(err, unix.EINTR) {
				return err
			}
			continue
		}
		if poll[0].Revents&unix.POLLIN == 0 {
			return nil
		}
		if err := attendOne(listener, judge); err != nil {
			return err
		}
	}
	return nil
}

// attendOne answers a call, if its process has not been killed meanwhile.
func attendOne(listener int, judge func(fileCall) verdict) error {
	var call notification
	if err := ioctl(listener, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&call)); err != nil {
		return unlessGone(err)
	}
	v := judge(call.decode())
	r := response{id: call.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
	if v.done {
		r = response{id: call.id, value: v.n, errno: -int32(v.errno)}
	}
	return unlessGone(ioctl(listener, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&r)))
}

func unlessGone(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

func ioctl(fd int, request uintptr, arg unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return errno
		}
	}
}

func (n *notification) decode() fileCall {
	c := fileCall{args: n.args, pid: n.pid}
	for _, w := range watched {
		if w.number != uint32(n.nr) {
			continue
		}
		c.name = w.name
		if c.path = c.open(n.args[0]); w.path {
			c.path = c.named(c.path, n.args[1])
		}
	}
	return c
}

// open is the path of an open file.
func (c *fileCall) open(fd uint64) string {
	if int32(fd) == unix.AT_FDCWD {
		return ""
	}
	path, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", c.pid, int32(fd)))
	return strings.TrimSuffix(path, " (deleted)")
}

// named is the path that a pointer leads to. One to an open file is that file's.
func (c *fileCall) named(folder string, pointer uint64) string {
	name, _, _ := strings.Cut(string(c.memory(pointer, unix.PathMax)), "\x00")
	if fd, ok := strings.CutPrefix(name, "/proc/self/fd/"); ok {
		name, _ = os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", c.pid, fd))
	}
	if filepath.IsAbs(name) {
		return filepath.Clean(name)
	}
	return filepath.Join(folder, name)
}

// memory reads memory of the process, or less where there is no more.
func (c *fileCall) memory(pointer, length uint64) []byte {
	f, err := os.Open(fmt.Sprintf("/proc/%d/mem", c.pid))
	if err != nil {
		return nil
	}
	defer f.Close()
	data := make([]byte, length)
	n, _ := f.ReadAt(data, int64(pointer))
	return data[:n]
}

// writePart does the first half of a pwrite, in whole blocks if there are any, and
// returns its length.
func (c *fileCall) writePart() (int64, error) {
	half := c.args[2] / 2
	if whole := half &^ 4095; whole > 0 {
		half = whole
	}
	f, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/%d", c.pid, c.args[0]), os.O_WRONLY, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	data := c.memory(c.args[1], half)
	if uint64(len(data)) < half {
		return 0, errors.New("the data of a write can't be read")
	}
	n, err := f.WriteAt(data, int64(c.args[3]))
	return int64(n), err
}
