package image

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// hugePage is what the memory of buffers is aligned to.
const hugePage = 2 << 20

// MapBuffers gives n buffers of size bytes for direct transfers, and what wipes
// them and gives them back. They hold plaintext, and so are in no core dump and
// known to no garbage collector. In huge pages, where the kernel has them, each
// lies in one place for the disk too, which halves the kernel's work and, for
// reading, the time.
func MapBuffers(n, size int) (buffers [][]byte, wipe func(), err error) {
	mapped, err := unix.Mmap(-1, 0, n*size+hugePage, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, nil, fmt.Errorf("map buffers: %w", err)
	}
	if err := unix.Madvise(mapped, unix.MADV_DONTDUMP); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("keep buffers out of core dumps: %w", err), unix.Munmap(mapped))
	}
	_ = unix.Madvise(mapped, unix.MADV_HUGEPAGE) // small ones do as well
	address := uintptr(unsafe.Pointer(unsafe.SliceData(mapped)))
	used := mapped[-address%hugePage:][:n*size]
	for at := 0; at < len(used); at += size {
		buffers = append(buffers, used[at:at+size:at+size])
	}
	return buffers, func() {
		clear(used)
		_ = unix.Munmap(mapped) // fails for no memory that Mmap gave
	}, nil
}
