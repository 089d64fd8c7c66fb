package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

var errFault = errors.New("fault")

// memory is a disk in memory with the holes it is told, that fails where it is
// told, and that counts.
type memory struct {
	data  []byte
	holes []Extent // within [0, len(data)), in order

	readFault, writeFault, discardFault, mapFault, reserveFault int64 // offsets, -1 for none

	unaligned bool // some write or discard was

	mu        sync.Mutex
	busy, top int // calls at once
	discarded int64
	reserved  []Extent
}

func newMemory(size int64, holes ...Extent) *memory {
	m := &memory{data: make([]byte, size), holes: holes, readFault: -1, writeFault: -1, discardFault: -1, mapFault: -1, reserveFault: -1}
	random := rand.NewChaCha8([32]byte{1})
	random.Read(m.data)
	for _, h := range holes {
		clear(m.data[h.Offset : h.Offset+h.Length])
	}
	return m
}

func (m *memory) enter(offset, length, fault int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.busy++
	m.top = max(m.top, m.busy)
	if offset <= fault && fault < offset+length {
		return errFault
	}
	return nil
}

func (m *memory) leave() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.busy--
}

func (m *memory) change(offset, length int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	end := offset + length
	m.unaligned = m.unaligned || offset%copyAlign != 0 || end%copyAlign != 0 && end != int64(len(m.data))
}

func (m *memory) ReadAt(p []byte, offset int64) (int, error) {
	defer m.leave()
	if err := m.enter(offset, int64(len(p)), m.readFault); err != nil {
		return 0, err
	}
	return copy(p, m.data[offset:]), nil
}

func (m *memory) WriteAt(p []byte, offset int64) (int, error) {
	defer m.leave()
	if err := m.enter(offset, int64(len(p)), m.writeFault); err != nil {
		return 0, err
	}
	m.change(offset, int64(len(p)))
	return copy(m.data[offset:], p), nil
}

func (m *memory) Discard(offset, length int64) error {
	defer m.leave()
	if err := m.enter(offset, length, m.discardFault); err != nil {
		return err
	}
	m.change(offset, length)
	clear(m.data[offset : offset+length])
	m.mu.Lock()
	defer m.mu.Unlock()
	m.discarded += length
	return nil
}

func (m *memory) Reserve(offset, length int64) error {
	defer m.leave()
	m.reserved = append(m.reserved, Extent{Offset: offset, Length: length})
	return m.enter(offset, length, m.reserveFault)
}

func (m *memory) Extents(offset, length int64) ([]Extent, error) {
	if offset <= m.mapFault && m.mapFault < offset+length {
		return nil, errFault
	}
	var extents []Extent
	next, end := offset, offset+length
	for _, h := range m.holes {
		start, stop := max(h.Offset, next), min(h.Offset+h.Length, end)
		if start >= stop {
			continue
		}
		if start > next {
			extents = append(extents, Extent{Offset: next, Length: start - next})
		}
		extents = append(extents, Extent{Offset: start, Length: stop - start, Hole: true})
		next = stop
	}
	if next < end {
		extents = append(extents, Extent{Offset: next, Length: end - next})
	}
	return extents, nil
}

func (m *memory) Size() int64  { return int64(len(m.data)) }
func (m *memory) Flush() error { return nil }
func (m *memory) Close() error { return nil }

// oddHoles start and end anywhere.
func oddHoles(size int64) []Extent {
	random := rand.New(rand.NewPCG(3, 4))
	var holes []Extent
	for next := int64(0); ; {
		start := next + random.Int64N(200_000)
		length := 1 + random.Int64N(300_000)
		if start+length > size {
			return append(holes, Extent{Offset: size - 1, Length: 1, Hole: true})
		}
		holes = append(holes, Extent{Offset: start, Length: length, Hole: true})
		next = start + length + 1
	}
}

func TestCopy(t *testing.T) {
	const mib = 1 << 20
	for name, src := range map[string]*memory{
		"empty":     newMemory(0),
		"one byte":  newMemory(1),
		"all data":  newMemory(9*mib + 513),
		"all hole":  newMemory(9*mib+513, Extent{Length: 9*mib + 513, Hole: true}),
		"odd holes": newMemory(20*mib+512, oddHoles(20*mib+512)...),
		"hole at the end": newMemory(3*mib+512,
			Extent{Offset: 2*mib + 1, Length: mib + 511, Hole: true}),
	} {
		dst := newMemory(src.Size())
		clear(dst.data[:len(dst.data)/2]) // what is there must not show through
		var done int64
		err := Copy(t.Context(), dst, src, Transform{}, func(n int64) { done += n })
		if err != nil || !bytes.Equal(dst.data, src.data) {
			t.Errorf("%s: %v, or the copy differs", name, err)
		}
		if done != src.Size() || dst.unaligned {
			t.Errorf("%s: %d of %d bytes reported; unaligned writes: %t", name, done, src.Size(), dst.unaligned)
		}
		if name == "all hole" && dst.discarded != src.Size() {
			t.Errorf("%d bytes discarded", dst.discarded)
		}
		if got, want := fmt.Sprint(dst.reserved), fmt.Sprint(largeRuns(src)); got != want {
			t.Errorf("%s: reserved %s, want %s", name, got, want)
		}
		if dst.top > copyWorkers {
			t.Errorf("%s: %d writes at once", name, dst.top)
		}
	}
}

// largeRuns gives the data of a disk that goes past the page cache.
func largeRuns(m *memory) []Extent {
	var data []Extent
	for _, run := range cut(m.holes, 0, m.Size()) {
		if !run.Hole && run.Length >= directLeast {
			data = append(data, run)
		}
	}
	return data
}

// A transform sees each byte of data once, in whole blocks, and holes only where
// it wants them.
func TestCopyTransforms(t *testing.T) {
	const size = 5<<20 + 512
	for _, holes := range []bool{false, true} {
		src := newMemory(size, oddHoles(size)...)
		dst := newMemory(size)
		err := Copy(t.Context(), dst, src, Transform{Holes: holes, Data: func(p []byte, offset int64) error {
			end := offset + int64(len(p))
			if offset%copyAlign != 0 || end%copyAlign != 0 && end != size {
				t.Errorf("%d bytes at %d are not whole blocks", len(p), offset)
			}
			for i := range p {
				p[i] ^= 0x5a
			}
			return nil
		}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		want := bytes.Clone(src.data)
		for _, run := range cut(src.holes, 0, size) {
			for i := run.Offset; (holes || !run.Hole) && i < run.Offset+run.Length; i++ {
				want[i] ^= 0x5a
			}
		}
		if !bytes.Equal(dst.data, want) {
			t.Errorf("holes %t: the copy differs", holes)
		}
	}
}

func TestCopyEndsWithItsTransform(t *testing.T) {
	fail := Transform{Data: func(_ []byte, offset int64) error {
		if offset == 2<<20 {
			return errFault
		}
		return nil
	}}
	dst := newMemory(3 << 20)
	before := bytes.Clone(dst.data[2<<20:])
	err := Copy(t.Context(), dst, newMemory(3<<20, Extent{Length: 3 << 20, Hole: true}), Transform{Data: fail.Data, Holes: true}, nil)
	if !errors.Is(err, errFault) || !strings.Contains(err.Error(), "offset 2097152") {
		t.Error(err)
	}
	if !bytes.Equal(dst.data[2<<20:], before) {
		t.Error("what could not be transformed was written")
	}
}

func TestCopyFaults(t *testing.T) {
	const size, at = 8 << 20, 5<<20 + 12345
	hole := Extent{Offset: 5 << 20, Length: 1 << 20, Hole: true}
	for name, fault := range map[string]func(dst, src *memory){
		"read":                 func(_, src *memory) { src.readFault = at },
		"write":                func(dst, _ *memory) { dst.writeFault = at },
		"discard":              func(dst, src *memory) { dst.discardFault, src.holes = at, []Extent{hole} },
		"map":                  func(_, src *memory) { src.mapFault = 0 },
		"map of what is there": func(dst, _ *memory) { dst.mapFault = 0 },
		"reserve":              func(dst, _ *memory) { dst.reserveFault = at },
	} {
		dst, src := newMemory(size), newMemory(size)
		fault(dst, src)
		err := Copy(t.Context(), dst, src, Transform{}, nil)
		where := map[string]string{"map": "offset 0", "map of what is there": "map", "reserve": "offset 0"}[name]
		if where == "" {
			where = fmt.Sprintf("offset %d", 5<<20)
		}
		if !errors.Is(err, errFault) || !strings.Contains(err.Error(), where) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCopyEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var done int64
	err := Copy(ctx, newMemory(32<<20), newMemory(32<<20), Transform{}, func(n int64) {
		done += n
		cancel()
	})
	if !errors.Is(err, context.Canceled) || done > 2*copyWorkers*copyPiece {
		t.Errorf("%v after %d bytes", err, done)
	}
}

func TestCopyOfOtherSize(t *testing.T) {
	if err := Copy(t.Context(), newMemory(512), newMemory(1024), Transform{}, nil); err == nil {
		t.Error("a disk of 1024 bytes fits into 512")
	}
}

func TestCopyKeepsHoles(t *testing.T) {
	const size = 1 << 40
	src := mustCreate(t, size)
	for _, offset := range []int64{0, 1<<30 - 2, 77 << 30, size - 4} {
		mustWrite(t, src, []byte("data"), offset)
	}
	dst, err := Create(filepath.Join(t.TempDir(), "copy.img"), size)
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	if err := Copy(t.Context(), dst, src, Transform{}, nil); err != nil {
		t.Fatal(err)
	}
	want, err := src.Extents(0, size)
	if err != nil {
		t.Fatal(err)
	}
	got, err := dst.Extents(0, size)
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("extents %v, %v, want %v", got, err, want)
	}
	for _, e := range want {
		if !e.Hole && !bytes.Equal(mustRead(t, dst, e.Offset, e.Length), mustRead(t, src, e.Offset, e.Length)) {
			t.Errorf("%v differs", e)
		}
	}
}

// The pieces of a window cover it, in order, and hide no data in a hole.
func FuzzCut(f *testing.F) {
	f.Add(int64(0), []byte{1, 2, 3}, int64(4096))
	f.Add(int64(1), []byte{255, 0, 255, 16}, int64(1))
	f.Fuzz(func(t *testing.T, first int64, lengths []byte, scale int64) {
		offset := (first & 0xffff) * copyAlign
		end := offset
		var extents []Extent
		for i, l := range lengths {
			if length := int64(l) * (1 + scale&0x3fff); length > 0 {
				extents = append(extents, Extent{Offset: end, Length: length, Hole: i%2 == 0})
				end += length
			}
		}
		var all []Extent
		for _, run := range cut(extents, offset, end) {
			all = slices.AppendSeq(all, pieces(run))
		}
		checkPieces(t, all, extents, offset, end)
	})
}

func checkPieces(t *testing.T, pieces, extents []Extent, offset, end int64) {
	t.Helper()
	next := offset
	for _, p := range pieces {
		if p.Offset != next || p.Length <= 0 || p.Offset%copyAlign != 0 || !p.Hole && p.Length > copyPiece {
			t.Fatalf("piece %v at %d", p, next)
		}
		next += p.Length
		for _, e := range extents {
			if p.Hole && !e.Hole && e.Offset < p.Offset+p.Length && p.Offset < e.Offset+e.Length {
				t.Fatalf("piece %v discards data %v", p, e)
			}
		}
	}
	if next != end {
		t.Fatalf("pieces end at %d, want %d", next, end)
	}
}

func BenchmarkCopy(b *testing.B) {
	src, dst := newMemory(64<<20), newMemory(64<<20)
	b.SetBytes(src.Size())
	for b.Loop() {
		if err := Copy(b.Context(), dst, src, Transform{}, nil); err != nil {
			b.Fatal(err)
		}
	}
}
