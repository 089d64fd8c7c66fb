package diskserver

import "golang.org/x/sys/unix"

// refusedHere are the older forms of what is refused, and access to ports.
var refusedHere = []uint32{
	unix.SYS_OPEN, unix.SYS_CREAT, unix.SYS_MKNOD, unix.SYS_USELIB,
	unix.SYS_FORK, unix.SYS_VFORK, unix.SYS_IOPL, unix.SYS_IOPERM, unix.SYS_MODIFY_LDT,
}
