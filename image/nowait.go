package image

import (
	"sync"

	"golang.org/x/sys/unix"
)

// NoWaitReader is a Disk that can tell what it has in memory.
type NoWaitReader interface {
	// ReadAtNoWait reads len(p) bytes at offset if that needs no waiting for the
	// storage or for other users, and reports whether it did. If not, p may have
	// changed, and ReadAt reads them or says why it can't.
	ReadAtNoWait(p []byte, offset int64) bool
}

var _ NoWaitReader = (*File)(nil)

// ReadAtNoWait reads what is in the page cache, where the file system has
// RWF_NOWAIT (preadv2(2)). Elsewhere it reads nothing.
func (f *File) ReadAtNoWait(p []byte, offset int64) bool {
	if f.within(offset, int64(len(p))) != nil {
		return false
	}
	r := noWaitReads.Get().(*noWaitRead)
	defer noWaitReads.Put(r)
	r.iov[0], r.offset, r.n = p, offset, 0
	err := f.conn.Control(r.control)
	r.iov[0] = nil
	return err == nil && r.n == len(p)
}

// noWaitRead is what a ReadAtNoWait asks the kernel for, kept for others: reads
// are so quick that allocating would be felt.
type noWaitRead struct {
	iov     [1][]byte
	offset  int64
	n       int
	control func(fd uintptr) // read, bound
}

var noWaitReads = sync.Pool{New: func() any {
	r := new(noWaitRead)
	r.control = r.read
	return r
}}

func (r *noWaitRead) read(fd uintptr) {
	r.n, _ = unix.Preadv2(int(fd), r.iov[:], r.offset, unix.RWF_NOWAIT)
}
