package image

import (
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What follows is of io_uring(7), from include/uapi/linux/io_uring.h.

const (
	setupDisabled     = 1 << 6  // IORING_SETUP_R_DISABLED
	setupSubmitAll    = 1 << 7  // IORING_SETUP_SUBMIT_ALL
	setupSingleIssuer = 1 << 12 // IORING_SETUP_SINGLE_ISSUER, Linux 6.0
	setupDeferTaskrun = 1 << 13 // IORING_SETUP_DEFER_TASKRUN, Linux 6.1

	enterGetEvents = 1 << 0 // IORING_ENTER_GETEVENTS

	registerRestrictions = 11 // IORING_REGISTER_RESTRICTIONS
	registerEnableRings  = 12 // IORING_REGISTER_ENABLE_RINGS
	restrictionSQEOp     = 1  // IORING_RESTRICTION_SQE_OP

	opRead = 22 // IORING_OP_READ

	offsetRings   = 0          // IORING_OFF_SQ_RING, which has both queues since Linux 5.4
	offsetEntries = 0x10000000 // IORING_OFF_SQES
)

// uringParams is struct io_uring_params.
type uringParams struct {
	submissions, completions uint32 // how many entries the queues have
	flags                    uint32
	_                        [2]uint32
	features                 uint32
	_                        [4]uint32
	submission               struct {
		head, tail, mask, entries, flags, dropped, array uint32
		_                                                uint32
		_                                                uint64
	}
	completion struct {
		head, tail, mask, entries, overflow, cqes, flags uint32
		_                                                uint32
		_                                                uint64
	}
}

// submission is struct io_uring_sqe: what the kernel is to do.
type submission struct {
	opcode, flags uint8
	_             uint16
	fd            int32
	offset        uint64
	address       uint64
	length        uint32
	_             uint32
	id            uint64 // user_data
	_             [3]uint64
}

// completion is struct io_uring_cqe: what it did.
type completion struct {
	id     uint64
	result int32 // bytes, or a negative errno
	_      uint32
}

// uring is the kernel's pair of queues. One thread uses it, that which made it.
type uring struct {
	fd                 int
	rings, entries     []byte // mapped
	submissions        []submission
	completions        []completion
	head, tail         *uint32 // of the submissions: the kernel moves the head
	doneHead, doneTail *uint32 // of the completions: the kernel moves the tail
}

// openUring makes queues of size entries, a power of two, that can do nothing but
// read, whoever has them: what goes by them escapes the filters of system calls.
func openUring(size uint32) (*uring, error) {
	p := uringParams{flags: setupDisabled | setupSubmitAll | setupSingleIssuer | setupDeferTaskrun}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(size), uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return nil, fmt.Errorf("io_uring_setup: %w", errno)
	}
	u := &uring{fd: int(fd)}
	if err := errors.Join(u.restrict(), u.mapQueues(&p)); err != nil {
		u.close()
		return nil, err
	}
	return u, nil
}

// restrict allows reads, without flags, and no io_uring_register, for good.
func (u *uring) restrict() error {
	restriction := struct {
		kind    uint16
		operand uint8
		_       [13]uint8
	}{kind: restrictionSQEOp, operand: opRead}
	if err := u.register(registerRestrictions, unsafe.Pointer(&restriction), 1); err != nil {
		return err
	}
	return u.register(registerEnableRings, nil, 0)
}

func (u *uring) register(operation uintptr, argument unsafe.Pointer, n uintptr) error {
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(u.fd), operation, uintptr(argument), n, 0, 0)
	if errno != 0 {
		return fmt.Errorf("io_uring_register: %w", errno)
	}
	return nil
}

func (u *uring) mapQueues(p *uringParams) (err error) {
	const access, flags = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED | unix.MAP_POPULATE
	size := max(p.submission.array+4*p.submissions, p.completion.cqes+p.completions*uint32(unsafe.Sizeof(completion{})))
	if u.rings, err = unix.Mmap(u.fd, offsetRings, int(size), access, flags); err != nil {
		return fmt.Errorf("map the queues of io_uring: %w", err)
	}
	u.entries, err = unix.Mmap(u.fd, offsetEntries, int(p.submissions)*int(unsafe.Sizeof(submission{})), access, flags)
	if err != nil {
		return fmt.Errorf("map the queues of io_uring: %w", err)
	}
	u.head, u.tail = u.word(p.submission.head), u.word(p.submission.tail)
	u.doneHead, u.doneTail = u.word(p.completion.head), u.word(p.completion.tail)
	u.submissions = unsafe.Slice((*submission)(unsafe.Pointer(unsafe.SliceData(u.entries))), p.submissions)
	u.completions = unsafe.Slice((*completion)(unsafe.Pointer(&u.rings[p.completion.cqes])), p.completions)
	for i := range p.submissions {
		*u.word(p.submission.array + 4*i) = i // each place of the queue has its own entry
	}
	return nil
}

func (u *uring) word(at uint32) *uint32 { return (*uint32)(unsafe.Pointer(&u.rings[at])) }

// push has a read begin with the next enter. There must be room.
func (u *uring) push(fd int, p []byte, offset int64, id uint64) {
	tail := *u.tail
	u.submissions[tail%uint32(len(u.submissions))] = submission{
		opcode: opRead, fd: int32(fd), offset: uint64(offset), id: id,
		address: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(p)))), length: uint32(len(p)),
	}
	atomic.StoreUint32(u.tail, tail+1)
}

// enter begins what was pushed, and waits until something is complete.
func (u *uring) enter() error {
	begin := *u.tail - atomic.LoadUint32(u.head)
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(u.fd), uintptr(begin), 1, enterGetEvents, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// pop gives what is complete next.
func (u *uring) pop() (c completion, ok bool) {
	head := *u.doneHead
	if head == atomic.LoadUint32(u.doneTail) {
		return completion{}, false
	}
	c = u.completions[head%uint32(len(u.completions))]
	atomic.StoreUint32(u.doneHead, head+1)
	return c, true
}

func (u *uring) close() {
	for _, mapped := range [][]byte{u.rings, u.entries} {
		if mapped != nil {
			_ = unix.Munmap(mapped) // fails for no memory that Mmap gave
		}
	}
	unix.Close(u.fd)
}
