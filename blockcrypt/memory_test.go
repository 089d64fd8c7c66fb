package blockcrypt

import (
	"errors"
	"io"
	"runtime"
	"sync"

	"github.com/vmcrypt/vmcrypt/image"
)

// memory is storage for tests: sparse, and able to fail. Only its blocks are
// atomic: reads and writes of several blocks mix with others, as they do in a
// kernel.
type memory struct {
	size int64

	mu     sync.Mutex
	blocks map[int64]*[memoryBlock]byte // by number; holes are absent
	calls  int
	failAt int  // the call that fails, counted from 1; 0 for none
	tear   bool // the failing write does half of its work first
	closed bool
}

// memoryBlock is smaller than the larger of the sectors, so that these can tear.
const memoryBlock = 512

var errStorage = errors.New("storage failed")

var _ image.Disk = (*memory)(nil)

func newMemory(size int64) *memory {
	return &memory{size: size, blocks: map[int64]*[memoryBlock]byte{}}
}

// fail arms the nth call from now on, and disarms it if n is 0.
func (m *memory) fail(n int, tear bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls, m.failAt, m.tear = 0, n, tear
}

// count gives the number of calls since fail.
func (m *memory) count() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.calls
}

// call counts a call and gives the error it is to fail with.
func (m *memory) call() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls++
	if m.calls == m.failAt {
		return errStorage
	}
	return nil
}

// each runs do under the lock for every block that a range touches.
func (m *memory) each(p []byte, off int64, do func(part []byte, block, from int64)) {
	for len(p) > 0 {
		from := off % memoryBlock
		n := min(int64(len(p)), memoryBlock-from)
		m.mu.Lock()
		do(p[:n], off/memoryBlock, from)
		m.mu.Unlock()
		runtime.Gosched()
		p, off = p[n:], off+n
	}
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	if err := m.call(); err != nil {
		return 0, err
	}
	if off < 0 || off+int64(len(p)) > m.size {
		return 0, io.EOF
	}
	m.each(p, off, func(part []byte, block, from int64) {
		if stored := m.blocks[block]; stored != nil {
			copy(part, stored[from:])
		} else {
			clear(part)
		}
	})
	if off+int64(len(p)) == m.size {
		return len(p), io.EOF // as io.ReaderAt allows
	}
	return len(p), nil
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	err := m.call()
	if err != nil {
		if !m.tear {
			return 0, err
		}
		p = p[:len(p)/2/memoryBlock*memoryBlock]
	}
	if off < 0 || off+int64(len(p)) > m.size {
		return 0, errors.New("write outside the storage")
	}
	m.each(p, off, func(part []byte, block, from int64) {
		if m.blocks[block] == nil {
			m.blocks[block] = new([memoryBlock]byte)
		}
		copy(m.blocks[block][from:], part)
	})
	return len(p), err
}

func (m *memory) Discard(off, length int64) error {
	if err := m.call(); err != nil {
		return err
	}
	if off%memoryBlock != 0 || length%memoryBlock != 0 || length == 0 {
		return errors.New("discard of no whole blocks")
	}
	for block := off / memoryBlock; block < (off+length)/memoryBlock; block++ {
		m.mu.Lock()
		delete(m.blocks, block)
		m.mu.Unlock()
		runtime.Gosched()
	}
	return nil
}

func (m *memory) Extents(off, length int64) ([]image.Extent, error) {
	if err := m.call(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []image.Extent
	for at := off; at < off+length; {
		next := min(at-at%memoryBlock+memoryBlock, off+length)
		hole := m.blocks[at/memoryBlock] == nil
		if last := len(out) - 1; last >= 0 && out[last].Hole == hole {
			out[last].Length += next - at
		} else {
			out = append(out, image.Extent{Offset: at, Length: next - at, Hole: hole})
		}
		at = next
	}
	return out, nil
}

func (m *memory) Size() int64 { return m.size }

func (m *memory) Flush() error { return m.call() }

func (m *memory) Close() error {
	m.closed = true
	return m.call()
}

// bytes gives the whole ciphertext.
func (m *memory) bytes() []byte {
	p := make([]byte, m.size)
	m.each(p, 0, func(part []byte, block, _ int64) {
		if stored := m.blocks[block]; stored != nil {
			copy(part, stored[:])
		}
	})
	return p
}
