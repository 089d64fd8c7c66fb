package diskserver

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// refused are the system calls that fail with EPERM, on every architecture: all that
// opens files, starts programs, reaches the network or other processes, or changes
// the system. Sockets and files that are open can be used.
var refused = []uint32{
	// Files
	unix.SYS_OPENAT, unix.SYS_OPENAT2, unix.SYS_NAME_TO_HANDLE_AT, unix.SYS_OPEN_BY_HANDLE_AT,
	unix.SYS_IOCTL, unix.SYS_MKNODAT, unix.SYS_QUOTACTL, unix.SYS_FANOTIFY_INIT,
	// Programs and processes
	unix.SYS_EXECVE, unix.SYS_EXECVEAT, unix.SYS_UNSHARE, unix.SYS_SETNS,
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PROCESS_MADVISE,
	unix.SYS_KCMP, unix.SYS_PIDFD_OPEN, unix.SYS_PIDFD_GETFD, unix.SYS_PIDFD_SEND_SIGNAL,
	unix.SYS_KILL, unix.SYS_TKILL, unix.SYS_RT_SIGQUEUEINFO, unix.SYS_RT_TGSIGQUEUEINFO,
	// The network, and what could do any of this beside the filter. The disks' rings
	// can be used, which can only read.
	unix.SYS_SOCKET, unix.SYS_CONNECT,
	unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_REGISTER,
	// Mounts
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_MOUNT_SETATTR,
	unix.SYS_OPEN_TREE, unix.SYS_MOVE_MOUNT, unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK,
	// The kernel
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD,
	unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY,
	unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD,
	unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_ACCT, unix.SYS_REBOOT, unix.SYS_SYSLOG, unix.SYS_PERSONALITY,
	unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_CLOCK_ADJTIME, unix.SYS_ADJTIMEX,
	unix.SYS_SETHOSTNAME, unix.SYS_SETDOMAINNAME,
}

// architectures are those that the filter is for: it compares numbers.
var architectures = map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}

// The offsets in bytes of what a filter looks at, struct seccomp_data of seccomp(2).
// The low half of the first argument is first: both architectures are little-endian.
const (
	dataNumber   = 0
	dataArch     = 4
	dataArgument = 16
)

const (
	allow     = unix.SECCOMP_RET_ALLOW
	refuse    = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	notThere  = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	otherABIs = 0x40000000 // and above, system calls of x32
)

// filterCalls installs the filter in all threads, and with it that no program that is
// executed has more privileges. The mitigations of speculation that a filter once
// brought with it are for who runs foreign code.
func filterCalls() error {
	arch, ok := architectures[runtime.GOARCH]
	if !ok {
		return errors.ErrUnsupported
	}
	filter := filterFor(arch, uint32(os.Getpid()))
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	runtime.LockOSThread() // the first call is for a thread, and the second spreads it
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_TSYNC|unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return errno
	}
	if thread != 0 {
		return fmt.Errorf("thread %d has another filter", thread)
	}
	return nil
}

// filterFor makes the filter of the process pid.
func filterFor(arch, pid uint32) []unix.SockFilter {
	f := []unix.SockFilter{
		load(dataArch),
		jump(unix.BPF_JEQ, arch, 1, 0),
		give(refuse),
		load(dataNumber),
		jump(unix.BPF_JGE, otherABIs, 0, 1),
		give(refuse),
	}
	for _, number := range append(refused, refusedHere...) {
		f = append(f, jump(unix.BPF_JEQ, number, 0, 1), give(refuse))
	}
	return append(f,
		// The C library starts a thread by clone3, and by clone if there is none. Of
		// that one, the filter sees the flags.
		jump(unix.BPF_JEQ, unix.SYS_CLONE3, 0, 1),
		give(notThere),
		// Threads, no processes
		jump(unix.BPF_JEQ, unix.SYS_CLONE, 0, 3),
		load(dataArgument),
		jump(unix.BPF_JSET, unix.CLONE_THREAD, 4, 0),
		give(refuse),
		// Go's runtime signals its own threads.
		jump(unix.BPF_JEQ, unix.SYS_TGKILL, 0, 2),
		load(dataArgument),
		jump(unix.BPF_JEQ, pid, 0, 1),
		give(allow),
		give(refuse),
	)
}

func load(offset uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
}

// jump skips as many instructions, depending on how the value compares with k.
func jump(how uint16, k uint32, ifTrue, ifFalse uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | how | unix.BPF_K, Jt: ifTrue, Jf: ifFalse, K: k}
}

func give(action uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: action}
}
