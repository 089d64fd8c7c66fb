package nbd

import (
	"fmt"

	"golang.org/x/sys/unix"
)

const (
	// pieceSize is how much of a request is in memory at a time. It is small
	// enough to stay in a CPU's own cache from the disk's file to the socket, and
	// is what blockcrypt works on at a time.
	pieceSize = 256 << 10
	// headroom lies before the data, for a header that ends where a page begins.
	headroom = 4096
	// batchSize is for replies that are sent together: several pieces, each with
	// its header. The client is woken less often.
	batchSize = 4 * (pieceSize + dataSize)
)

// buffer holds data with a header before them, from its first use. Its pages are
// the kernel's: aligned, in no core dump since they hold plaintext, and resident
// only as far as used.
type buffer struct{ mem []byte }

// get gives the memory, headroom and size, which is always the same, in bytes.
func (b *buffer) get(size int) ([]byte, error) {
	if b.mem != nil {
		return b.mem, nil
	}
	mem, err := unix.Mmap(-1, 0, headroom+size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("map a buffer: %w", err)
	}
	if err := unix.Madvise(mem, unix.MADV_DONTDUMP); err != nil {
		_ = unix.Munmap(mem) // fails for no memory that Mmap gave
		return nil, fmt.Errorf("keep a buffer out of core dumps: %w", err)
	}
	b.mem = mem
	return mem, nil
}

// release gives the memory back; the kernel clears it before anyone has it next.
func (b *buffer) release() {
	if b.mem != nil {
		_ = unix.Munmap(b.mem) // see get
		b.mem = nil
	}
}
