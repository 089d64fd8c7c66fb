// Package secret keeps key bytes where they do least harm: in memory that is
// locked (never swapped), left out of core dumps and of child processes, wiped
// before it is given back, and never printed.
//
//	key, err := secret.Random(64)
//	if err != nil {
//		return err
//	}
//	defer key.Destroy()
//	use(key.Bytes())
//
// Key bytes that another library hands over as a []byte go through Take, which
// wipes the slice it copied from. Where a short-lived copy cannot be avoided,
// Wipe it as soon as it is used.
package secret

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// placeholder is what every way of printing a Buffer gives.
const placeholder = "[secret]"

// Buffer is a run of key bytes of fixed length. Its memory lies outside the Go
// heap, so it must be given back with Destroy. Copies of a Buffer share the
// same bytes. All methods are safe for concurrent use, but whoever holds the
// slice of Bytes must be done with it before Destroy.
type Buffer struct {
	pages *pages
}

// pages is memory of its own, straight from the kernel.
type pages struct {
	mu sync.Mutex
	// nil once destroyed. Behind a second pointer: fmt cannot call the methods
	// of an unexported field, and for a verb like %s it follows the first.
	mem *[]byte
}

// New gives n zero bytes; n must be at least 1. It fails where the memory cannot
// be locked, mostly because RLIMIT_MEMLOCK is too low: a key that could reach
// the swap device is not worth having.
func New(n int) (*Buffer, error) {
	if n < 1 {
		return nil, fmt.Errorf("secret of %d bytes: want at least 1", n)
	}
	mem, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("memory for a secret of %d bytes: %w", n, err)
	}
	if err := protect(mem); err != nil {
		return nil, errors.Join(err, unmap(mem))
	}
	return &Buffer{&pages{mem: &mem}}, nil
}

// protect keeps mem out of core dumps, child processes and the swap device.
func protect(mem []byte) error {
	for _, advice := range []int{unix.MADV_DONTDUMP, unix.MADV_DONTFORK} {
		if err := unix.Madvise(mem, advice); err != nil {
			return fmt.Errorf("keep key memory out of core dumps and children: %w", err)
		}
	}
	if err := unix.Mlock(mem); err != nil {
		return fmt.Errorf("lock %d bytes of key memory: %w; raise RLIMIT_MEMLOCK (ulimit -l, or LimitMEMLOCK= of the systemd unit)", len(mem), err)
	}
	return nil
}

// unmap gives memory back to the kernel; a test looks at the bytes first.
var unmap = unix.Munmap

// Random gives n bytes from the operating system's random number generator.
func Random(n int) (*Buffer, error) {
	b, err := New(n)
	if err != nil {
		return nil, err
	}
	if _, err := rand.Read(b.Bytes()); err != nil {
		b.Destroy()
		return nil, fmt.Errorf("random bytes for a secret: %w", err)
	}
	return b, nil
}

// Take copies p into a new Buffer and wipes p, even if it fails.
func Take(p []byte) (*Buffer, error) {
	defer Wipe(p)
	b, err := New(len(p))
	if err != nil {
		return nil, err
	}
	copy(b.Bytes(), p)
	return b, nil
}

// Bytes gives the key bytes themselves, not a copy. The slice must not be used
// after Destroy: the memory behind it is gone, and touching it kills the
// process. Bytes panics if b is nil or destroyed.
func (b *Buffer) Bytes() []byte {
	p := b.peek()
	if p == nil {
		panic("secret: use of a nil or destroyed buffer")
	}
	return p
}

// Len is the number of key bytes: 0 if b is nil or destroyed.
func (b *Buffer) Len() int { return len(b.peek()) }

// peek gives the bytes, or nil where there are none.
func (b *Buffer) peek() []byte {
	if b == nil || b.pages == nil {
		return nil
	}
	b.pages.mu.Lock()
	defer b.pages.mu.Unlock()
	if b.pages.mem == nil {
		return nil
	}
	return *b.pages.mem
}

// Equal reports whether b and o hold the same bytes. The time it takes depends
// on their lengths only. It panics if one of them is nil or destroyed.
func (b *Buffer) Equal(o *Buffer) bool {
	return subtle.ConstantTimeCompare(b.Bytes(), o.Bytes()) == 1
}

// Destroy wipes the bytes and gives their memory back. It may be called on nil
// and more than once.
func (b *Buffer) Destroy() {
	if b == nil || b.pages == nil {
		return
	}
	b.pages.mu.Lock()
	defer b.pages.mu.Unlock()
	if b.pages.mem == nil {
		return
	}
	Wipe(*b.pages.mem)
	// This fails only for memory that is not a mapping; the bytes are wiped.
	_ = unmap(*b.pages.mem)
	b.pages.mem = nil
}

// Wipe overwrites p with zeros.
func Wipe(p []byte) {
	clear(p)
	runtime.KeepAlive(p) // no later compiler may find the zeros unused
}

// The ways of printing. They have value receivers so that they also serve
// structs that hold a Buffer itself.

// Format implements fmt.Formatter for every verb.
func (b Buffer) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, placeholder) }

// String implements fmt.Stringer.
func (b Buffer) String() string { return placeholder }

// GoString implements fmt.GoStringer.
func (b Buffer) GoString() string { return placeholder }

// MarshalJSON implements json.Marshaler.
func (b Buffer) MarshalJSON() ([]byte, error) { return json.Marshal(placeholder) }

// MarshalText implements encoding.TextMarshaler; XML and YAML use it.
func (b Buffer) MarshalText() ([]byte, error) { return []byte(placeholder), nil }

// LogValue implements slog.LogValuer.
func (b Buffer) LogValue() slog.Value { return slog.StringValue(placeholder) }
