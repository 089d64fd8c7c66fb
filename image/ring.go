package image

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// ringSize is how many reads a disk has under way in the kernel at a time, and how
// many more may be complete before a ring loses any: the kernel makes the queue of
// the completions twice as long.
const ringSize = 256

// ring is a thread that has the kernel read a file by io_uring, into the page cache
// and from there: no thread waits for each read, and what is read again is there.
// It alone uses the queues, which is what they are fastest with.
type ring struct {
	file  int // descriptors
	event int // an eventfd, which wakes the thread

	mu     sync.Mutex
	queue  []BackgroundRead // not begun, oldest first
	closed bool

	waiting atomic.Bool // the thread does, or will before it looks at the queue again
	ended   chan struct{}

	// The rest is the thread's.
	kernel *uring
	reads  [ringSize]BackgroundRead // under way, by their number
	free   []uint64                 // numbers
	woken  [8]byte                  // what is read from the eventfd
	after  []func()
}

// wakeID is the number of the read of the eventfd.
const wakeID = ringSize

// openRing makes a ring for a file; nil where there is none to be had: the kernel is
// old, or does not let us, or the file system would only have a few threads wait.
func openRing(f *File) *ring {
	if !f.readsInBackground() {
		return nil
	}
	r := &ring{ended: make(chan struct{})}
	for id := range uint64(ringSize - 1) { // one is for the eventfd
		r.free = append(r.free, id)
	}
	err := f.control(func(fd int) (err error) {
		r.file = fd
		r.event, err = unix.Eventfd(1, unix.EFD_CLOEXEC) // something for the first try
		return err
	})
	if err != nil {
		return nil
	}
	made := make(chan error)
	go r.run(made)
	if <-made != nil {
		unix.Close(r.event)
		return nil
	}
	return r
}

// readsInBackground reports whether the kernel reads such files without a thread that
// waits: block devices, ext2 to 4, XFS and Btrfs.
func (f *File) readsInBackground() bool {
	if f.device {
		return true
	}
	var stat unix.Statfs_t
	if f.control(func(fd int) error { return unix.Fstatfs(fd, &stat) }) != nil {
		return false
	}
	return slices.Contains([]int64{unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC}, int64(stat.Type)) //nolint:unconvert // it has 32 bits elsewhere
}

// begin queues reads, unless the ring is closed.
func (r *ring) begin(batch []BackgroundRead) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	r.queue = append(r.queue, batch...)
	r.wake()
	return true
}

// wake has the thread look at the queue, which the caller has locked.
func (r *ring) wake() {
	if r.waiting.Swap(false) {
		_, _ = unix.Write(r.event, binary.NativeEndian.AppendUint64(nil, 1)) // never full
	}
}

// close waits for the reads under way.
func (r *ring) close() {
	r.mu.Lock()
	r.closed = true
	r.wake()
	r.mu.Unlock()
	<-r.ended
}

// run is the thread, and tells whether it came about.
func (r *ring) run(made chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(r.ended)
	err := r.open()
	made <- err
	if err != nil {
		return
	}
	defer r.kernel.close()
	for r.submit() {
		if err := r.kernel.enter(); err != nil && !errors.Is(err, unix.EINTR) {
			time.Sleep(time.Millisecond) // the kernel lacks memory
		}
		r.waiting.Store(false)
		r.reap()
	}
	unix.Close(r.event)
}

// open makes the queues, and tries them: with the first read of the eventfd.
func (r *ring) open() (err error) {
	if r.kernel, err = openUring(ringSize); err != nil {
		return err
	}
	r.await()
	err = r.kernel.enter()
	for errors.Is(err, unix.EINTR) {
		err = r.kernel.enter()
	}
	if err != nil {
		r.kernel.close()
		return fmt.Errorf("io_uring_enter: %w", err)
	}
	r.reap()
	return nil
}

// await has the kernel tell when somebody writes to the eventfd.
func (r *ring) await() { r.kernel.push(r.event, r.woken[:], 0, wakeID) }

// submit takes from the queue what the kernel has room for, and reports whether
// there is, or may come, anything to wait for.
func (r *ring) submit() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := min(len(r.queue), len(r.free))
	for _, read := range r.queue[:n] {
		id := r.free[len(r.free)-1]
		r.free = r.free[:len(r.free)-1]
		r.reads[id] = read
		r.kernel.push(r.file, read.P, read.Offset, id)
	}
	r.queue = slices.Delete(r.queue, 0, n)
	more := !r.closed || len(r.free) < ringSize-1
	r.waiting.Store(more)
	return more
}

// reap tells of all reads that are complete.
func (r *ring) reap() {
	for c, ok := r.kernel.pop(); ok; c, ok = r.kernel.pop() {
		if c.id == wakeID {
			r.await()
			continue
		}
		read := r.reads[c.id]
		r.reads[c.id] = BackgroundRead{}
		r.free = append(r.free, c.id)
		if after := read.Reader.ReadDone(int(c.result) == len(read.P)); after != nil {
			r.after = append(r.after, after)
		}
	}
	for _, after := range r.after {
		after()
	}
	clear(r.after)
	r.after = r.after[:0]
}
