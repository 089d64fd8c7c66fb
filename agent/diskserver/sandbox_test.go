package diskserver

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The kernel's view of a disk server at work, thread by thread.
func TestConfined(t *testing.T) {
	m := testMachine(t)
	cmd, _ := m.launch(t)
	m.qemuIO(t, "scsi0:0", "read -P 1 0 1M")
	proc := fmt.Sprintf("/proc/%d/", cmd.Process.Pid)
	tasks, err := os.ReadDir(proc + "task")
	if err != nil || len(tasks) < 2 {
		t.Fatalf("threads: %v, %v", tasks, err)
	}
	wanted := []string{`NoNewPrivs:\t1`, `Seccomp:\t2`}
	if os.Getuid() == 0 && !cgo {
		wanted = append(wanted, `CapPrm:\t0+1002`, `CapEff:\t0+1002`, `CapInh:\t0+`, `CapAmb:\t0+`)
	}
	for _, task := range tasks {
		status, err := os.ReadFile(proc + "task/" + task.Name() + "/status")
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range wanted {
			if !regexp.MustCompile(`(?m)^` + want + `$`).Match(status) {
				t.Errorf("thread %s is not %s:\n%s", task.Name(), want, status)
			}
		}
	}
	limits, err := os.ReadFile(proc + "limits")
	if err != nil || !regexp.MustCompile(`Max core file size +0 +0`).Match(limits) {
		t.Errorf("limits: %v\n%s", err, limits)
	}
	if root, err := os.Readlink(proc + "root"); os.Getuid() == 0 && root != m.Directory {
		t.Errorf("it sees %q: %v", root, err)
	}
	if session, err := unix.Getsid(cmd.Process.Pid); session != cmd.Process.Pid {
		t.Errorf("its session is %d: %v", session, err)
	}
}

// TestColdReads: what is not in memory is read in the sandbox, too, by the ring if
// there is one.
func TestColdReads(t *testing.T) {
	m := testMachine(t)
	m.launch(t)
	f, err := os.Open(m.Disks[0].DataPath)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := errors.Join(f.Sync(), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)); err != nil {
		t.Fatal(err)
	}
	for at := 0; at < testSize; at += 256 << 10 { // not sequential, which the kernel reads ahead for
		m.qemuIO(t, m.Disks[0].Node, fmt.Sprintf("read -P 1 %d 4096", at))
	}
}

// attempts are what the probe tries, in the sandbox.
var attempts = map[string]func() error{
	"socket": func() error { _, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0); return err },
	"unix":   func() error { _, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0); return err },
	"execve": func() error { return unix.Exec("/bin/true", []string{"true"}, nil) },
	"ptrace": func() error { return unix.PtraceAttach(os.Getppid()) },
	"open":   func() error { _, err := os.Open("."); return err },
	"kill":   func() error { return unix.Kill(os.Getppid(), 0) },
	"tgkill": func() error { return unix.Tgkill(os.Getppid(), os.Getppid(), 0) },
	"bpf": func() error {
		_, _, errno := unix.RawSyscall(unix.SYS_BPF, 0, 0, 0)
		return errno
	},
	"io_uring": func() error {
		var params [120]byte // of io_uring_setup(2)
		_, _, errno := unix.RawSyscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&params)), 0)
		return errno
	},
	"io_uring_register": func() error {
		_, _, errno := unix.RawSyscall6(unix.SYS_IO_URING_REGISTER, 0, 0, 0, 0, 0, 0)
		return errno
	},
	"fork": func() error {
		pid, _, errno := unix.RawSyscall(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0)
		if errno == 0 && pid == 0 {
			unix.Exit(0)
		}
		return errno
	},
	"mount": func() error { return unix.Unshare(unix.CLONE_NEWNS) },
}

// probe tries all in a thread that was there before the sandbox, and in a new one.
func probe() error {
	old, start := make(chan bool), make(chan bool)
	go func() {
		runtime.LockOSThread()
		<-start
		attemptAll("old thread")
		old <- true
	}()
	if err := os.Chdir(os.Args[1]); err != nil {
		return err
	}
	if err := confine(); err != nil {
		return err
	}
	close(start)
	<-old
	go func() {
		runtime.LockOSThread() // it ends with the goroutine
		attemptAll("new thread")
		old <- true
	}()
	<-old
	if dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); dumpable != 0 || err != nil {
		return fmt.Errorf("it can be dumped: %d, %w", dumpable, err)
	}
	if err := unix.Tgkill(os.Getpid(), unix.Gettid(), 0); err != nil {
		return fmt.Errorf("signal a thread of its own: %w", err)
	}
	return nil
}

func attemptAll(where string) {
	for name, attempt := range attempts {
		fmt.Printf("%s: %s: %v\n", where, name, attempt())
	}
}

func TestSystemCalls(t *testing.T) {
	dir := t.TempDir()
	out, err := roleCommand("probe", dir).Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if lines := bytes.Count(out, []byte("\n")); lines != 2*len(attempts) {
		t.Errorf("%d attempts", lines)
	}
	for line := range strings.Lines(string(out)) {
		if !strings.HasSuffix(line, "operation not permitted\n") {
			t.Error(line)
		}
	}
}
