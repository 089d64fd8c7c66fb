package blockcrypt

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/vmcrypt/vmcrypt/image"
)

// kind is a way to encrypt a disk.
type kind struct {
	sector int
	holes  HolePolicy
}

func eachKind(t *testing.T, test func(t *testing.T, k kind)) {
	for _, holes := range []HolePolicy{Preserve, Fill} {
		for _, sector := range []int{512, 4096} {
			t.Run(fmt.Sprintf("%s/%d", holes, sector), func(t *testing.T) { test(t, kind{sector, holes}) })
		}
	}
}

// open gives an encrypted disk of zeros.
func (k kind) open(t *testing.T, size int64) (*Disk, *memory) {
	t.Helper()
	storage := newMemory(size)
	disk := k.over(t, storage)
	if k.holes == Fill {
		if err := disk.Discard(0, size); err != nil {
			t.Fatal(err)
		}
	}
	return disk, storage
}

func (k kind) over(t *testing.T, storage image.Disk) *Disk {
	t.Helper()
	c, err := fastest(t).NewCipher(testKey(), k.sector)
	if err != nil {
		t.Fatal(err)
	}
	disk, err := NewDisk(storage, c, k.holes)
	if err != nil {
		t.Fatal(err)
	}
	return disk
}

func mustWrite(t *testing.T, d image.Disk, p []byte, off int64) {
	t.Helper()
	before := bytes.Clone(p)
	if n, err := d.WriteAt(p, off); n != len(p) || err != nil {
		t.Fatalf("write of %d bytes at %d: %d, %v", len(p), off, n, err)
	}
	if !bytes.Equal(p, before) {
		t.Fatalf("write of %d bytes at %d changed the caller's bytes", len(p), off)
	}
}

func mustRead(t *testing.T, d image.Disk, off int64, n int) []byte {
	t.Helper()
	p := random(77, n) // what was in the buffer must not matter
	if got, err := d.ReadAt(p, off); got != n || err != nil {
		t.Fatalf("read of %d bytes at %d: %d, %v", n, off, got, err)
	}
	return p
}

// model is what a disk should hold: its plaintext, and which sectors are holes.
type model struct {
	kind
	plain []byte
	holes []bool
}

func newModel(k kind, size int64) *model {
	m := &model{k, make([]byte, size), make([]bool, size/int64(k.sector))}
	for i := range m.holes {
		m.holes[i] = k.holes == Preserve
	}
	return m
}

func (m *model) write(p []byte, off int64) {
	copy(m.plain[off:], p)
	for at := off; at < off+int64(len(p)); at = m.next(at) {
		m.holes[at/int64(m.sector)] = false
	}
}

// next is where the sector after that of off begins.
func (m *model) next(off int64) int64 { return off - off%int64(m.sector) + int64(m.sector) }

func (m *model) discard(off, length int64) {
	m.write(make([]byte, length), off)
	first := (off + int64(m.sector) - 1) / int64(m.sector)
	for i := first; m.kind.holes == Preserve && (i+1)*int64(m.sector) <= off+length; i++ {
		m.holes[i] = true
	}
}

// check compares the whole disk with the model: plaintext, map of holes, and the
// ciphertext with another implementation of XTS.
func (m *model) check(t *testing.T, d *Disk, storage *memory) {
	t.Helper()
	if !bytes.Equal(mustRead(t, d, 0, len(m.plain)), m.plain) {
		t.Fatal("plaintext differs from the model")
	}
	m.checkExtents(t, d, 0, int64(len(m.plain)))
	want := reference(t, testKey(), m.plain, m.sector, 0)
	for i, hole := range m.holes {
		if hole {
			clear(want[i*m.sector : (i+1)*m.sector])
		}
	}
	if !bytes.Equal(storage.bytes(), want) {
		t.Fatal("ciphertext differs from the model")
	}
}

// checkExtents wants a map in order, without gaps, and with the model's holes.
func (m *model) checkExtents(t *testing.T, d *Disk, off, length int64) {
	t.Helper()
	extents, err := d.Extents(off, length)
	if err != nil {
		t.Fatal(err)
	}
	at := off
	for _, e := range extents {
		if e.Offset != at || e.Length <= 0 {
			t.Fatalf("extent %+v, want one that begins at %d", e, at)
		}
		for ; at < e.Offset+e.Length; at = min(m.next(at), e.Offset+e.Length) {
			if m.holes[at/int64(m.sector)] != e.Hole {
				t.Fatalf("extent %+v is wrong at %d", e, at)
			}
		}
	}
	if at != off+length {
		t.Fatalf("map of %d bytes at %d ends at %d", length, off, at)
	}
}

// seeds are fixed, so that what failed fails again, and one that is new each
// time.
func seeds(t *testing.T) []uint64 {
	fresh := rand.Uint64()
	t.Logf("fresh seed %d", fresh)
	return []uint64{1, 2, 3, fresh}
}

func TestRandomOperationsEqualTheModel(t *testing.T) {
	// More than one piece, and no multiple of their size.
	const size = pieceSize + 5*4096
	eachKind(t, func(t *testing.T, k kind) {
		for _, seed := range seeds(t) {
			disk, storage := k.open(t, size)
			m := newModel(k, size)
			source := rand.New(rand.NewPCG(seed, 0))
			for range 120 {
				randomOperation(t, source, disk, m)
			}
			m.check(t, disk, storage)
		}
	})
}

func randomOperation(t *testing.T, source *rand.Rand, d *Disk, m *model) {
	t.Helper()
	off, length := randomRange(source, int64(len(m.plain)), int64(m.sector))
	switch source.IntN(5) {
	case 0, 1:
		p := random(source.Uint64(), int(length))
		mustWrite(t, d, p, off)
		m.write(p, off)
	case 2:
		if err := d.Discard(off, length); err != nil {
			t.Fatal(err)
		}
		m.discard(off, length)
	case 3:
		if !bytes.Equal(mustRead(t, d, off, int(length)), m.plain[off:off+length]) {
			t.Fatalf("read of %d bytes at %d differs from the model", length, off)
		}
	case 4:
		m.checkExtents(t, d, off, length)
	}
}

// randomRange gives ranges of all magnitudes from 0 bytes on, half of them
// aligned.
func randomRange(source *rand.Rand, size, sector int64) (off, length int64) {
	off = source.Int64N(size)
	length = min(source.Int64N(int64(1)<<source.IntN(20)), size-off)
	if source.IntN(2) == 0 {
		off, length = off/sector*sector, length/sector*sector
	}
	return off, length
}

func TestEveryAlignmentOfAWrite(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		size := int64(4 * k.sector)
		edges := []int64{0, 1, 15, 16, int64(k.sector) - 1, int64(k.sector), int64(k.sector) + 1, 2*int64(k.sector) - 1, 2 * int64(k.sector), size - 1, size}
		for _, from := range edges {
			for _, to := range edges {
				if from > to {
					continue
				}
				disk, storage := k.open(t, size)
				m := newModel(k, size)
				p := random(uint64(from*7+to), int(to-from))
				mustWrite(t, disk, p, from)
				m.write(p, from)
				m.check(t, disk, storage)
			}
		}
	})
}

func TestLastSectorsOfTheLargestDisk(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		disk := k.over(t, newMemory(MaxDiskSize))
		p := random(4, 3*k.sector)
		off := MaxDiskSize - int64(len(p))
		mustWrite(t, disk, p, off)
		if !bytes.Equal(mustRead(t, disk, off, len(p)), p) {
			t.Error("differs")
		}
	})
}

// TestCostOfAWrite counts calls to the storage: edge sectors are read once.
func TestCostOfAWrite(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		disk, storage := k.open(t, int64(4*k.sector))
		for _, w := range []struct{ off, length, calls int }{
			{k.sector, 2 * k.sector, 1}, {5, 1, 2}, {0, 1, 2}, {k.sector - 1, 1, 2}, {5, k.sector - 5, 2},
			{1, 2*k.sector - 1, 2}, {0, 2*k.sector - 1, 2}, {1, k.sector, 3}, {1, 3 * k.sector, 3},
		} {
			storage.fail(0, false)
			mustWrite(t, disk, random(1, w.length), int64(w.off))
			if got := storage.count(); got != w.calls {
				t.Errorf("%d bytes at %d: %d calls to the storage, want %d", w.length, w.off, got, w.calls)
			}
		}
	})
}

func TestNewDiskRefusals(t *testing.T) {
	for _, bad := range []struct {
		size   int64
		sector int
		holes  HolePolicy
		want   string
	}{
		{0, 512, Preserve, "empty"},
		{1, 512, Preserve, "extend it to 512 bytes"},
		{1025, 4096, Fill, "extend it to 1536 bytes"},
		{4096 + 512, 4096, Preserve, "does not divide"},
		{MaxDiskSize + 512, 512, Preserve, "256 TiB"},
		{MaxDiskSize + 4096, 4096, Fill, "256 TiB"},
		{4096, 512, "", "hole policy"},
		{4096, 512, "Fill", "hole policy"},
	} {
		c, err := fastest(t).NewCipher(testKey(), bad.sector)
		if err != nil {
			t.Fatal(err)
		}
		storage := newMemory(bad.size)
		disk, err := NewDisk(storage, c, bad.holes)
		if disk != nil || err == nil || !strings.Contains(err.Error(), bad.want) {
			t.Errorf("%d bytes, sector %d, %q: error is %v, want %q", bad.size, bad.sector, bad.holes, err, bad.want)
		}
		if storage.closed || c.keyed == nil {
			t.Error("a refused disk closed the storage or wiped the cipher of the caller")
		}
	}
}

func TestRangesOutsideTheDisk(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		size := int64(4 * k.sector)
		disk, storage := k.open(t, size)
		before := storage.bytes()
		for _, r := range []struct{ off, length int64 }{
			{-1, 1}, {-1, 0}, {size, 1}, {size - 1, 2}, {0, size + 1}, {size + 1, 0}, {1<<63 - 1, 1},
		} {
			p := make([]byte, r.length)
			n, readErr := disk.ReadAt(p, r.off)
			m, writeErr := disk.WriteAt(p, r.off)
			_, extentsErr := disk.Extents(r.off, r.length)
			for _, err := range []error{readErr, writeErr, extentsErr, disk.Discard(r.off, r.length)} {
				if err == nil || n+m != 0 {
					t.Errorf("%d bytes at %d: %d and %d done, error %v", r.length, r.off, n, m, err)
				}
			}
		}
		for _, length := range []int64{-1, -1 << 63, 1<<63 - 1} {
			if _, err := disk.Extents(0, length); err == nil || disk.Discard(0, length) == nil {
				t.Errorf("a range of %d bytes is accepted", length)
			}
		}
		if !bytes.Equal(storage.bytes(), before) {
			t.Error("a refused request changed the disk")
		}
	})
}

func TestWrittenZerosAreEncrypted(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		disk, storage := k.open(t, int64(4*k.sector))
		m := newModel(k, storage.size)
		p := make([]byte, 2*k.sector)
		mustWrite(t, disk, p, int64(k.sector))
		m.write(p, int64(k.sector))
		m.check(t, disk, storage)
	})
}

func TestHolePolicyDecidesHowZeroCiphertextReads(t *testing.T) {
	for _, sector := range []int{512, 4096} {
		storage := newMemory(int64(2 * sector))
		mustWrite(t, storage, make([]byte, sector), 0) // zeros as data, then a hole
		preserved := mustRead(t, kind{sector, Preserve}.over(t, storage), 0, 2*sector)
		if !bytes.Equal(preserved, make([]byte, 2*sector)) {
			t.Errorf("sector %d, preserve: zero ciphertext is not read as zeros", sector)
		}
		filled := mustRead(t, kind{sector, Fill}.over(t, storage), 0, 2*sector)
		if !bytes.Equal(reference(t, testKey(), filled, sector, 0), make([]byte, 2*sector)) {
			t.Errorf("sector %d, fill: zero ciphertext is not decrypted", sector)
		}
	}
}

// A hole that ends within a sector is what a torn write leaves; the rest of the
// sector decrypts to something else than zeros, so the sector is data.
func TestHolesWithinSectorsAreData(t *testing.T) {
	storage := newMemory(4 * 4096)
	mustWrite(t, storage, random(1, 512), 4096+1024)
	disk := kind{4096, Preserve}.over(t, storage)
	m := newModel(kind{4096, Preserve}, storage.size)
	m.holes[1] = false
	for _, r := range []struct{ off, length int64 }{{0, storage.size}, {1, 5000}, {4097, 1}, {4096, 4096}, {8000, 300}, {12000, 0}} {
		m.checkExtents(t, disk, r.off, r.length)
	}
}

// TestStorageErrors lets each call of a request to the storage fail in turn, and
// wants the bytes beside the request to be as before, and those that were
// reported as done to be done.
func TestStorageErrors(t *testing.T) {
	const large = pieceSize + 4096
	eachKind(t, func(t *testing.T, k kind) {
		s := int64(k.sector)
		for _, r := range []struct{ size, off, length int64 }{
			{4 * s, s, s}, {4 * s, s + 3, 5}, {4 * s, s + 3, s}, {4 * s, s - 1, 2}, {4 * s, s, s + 7}, {4 * s, 3, 4*s - 6},
			{large, pieceSize - 100, 200}, {large, 1, large - 2},
		} {
			failReads(t, k, r.size, r.off, r.length)
			for _, tear := range []bool{false, true} {
				failWrites(t, k, r.size, r.off, r.length, tear)
				failDiscards(t, k, r.size, r.off, r.length, tear)
			}
		}
	})
}

// full gives a disk full of data, since only where there was data can a sector
// that is half written keep the other half.
func full(t *testing.T, k kind, size int64) (*Disk, *memory, []byte) {
	t.Helper()
	disk, storage := k.open(t, size)
	plain := random(5, int(size))
	mustWrite(t, disk, plain, 0)
	return disk, storage, plain
}

// failEach runs request with each of its calls failing, until it has no more.
func failEach(t *testing.T, storage *memory, tear bool, request func() error, check func()) {
	t.Helper()
	for call := 1; ; call++ {
		storage.fail(call, tear)
		err := request()
		done := storage.count() < call
		storage.fail(0, false)
		if done {
			if err != nil || call == 1 {
				t.Fatalf("no call failed, but after %d calls: %v", call-1, err)
			}
			return
		}
		if !errors.Is(err, errStorage) {
			t.Fatalf("error is %v, want that of the storage", err)
		}
		check()
	}
}

func failWrites(t *testing.T, k kind, size, off, length int64, tear bool) {
	t.Helper()
	disk, storage, plain := full(t, k, size)
	p := random(6, int(length))
	n := 0
	failEach(t, storage, tear, func() (err error) {
		n, err = disk.WriteAt(p, off)
		return err
	}, func() {
		got := mustRead(t, disk, 0, int(size))
		if !bytes.Equal(got[:off], plain[:off]) || !bytes.Equal(got[off+length:], plain[off+length:]) {
			t.Fatalf("a failed write of %d bytes at %d changed bytes beside it", length, off)
		}
		if !bytes.Equal(got[off:off+int64(n)], p[:n]) {
			t.Fatalf("%d bytes were not written, as was said", n)
		}
	})
}

func failDiscards(t *testing.T, k kind, size, off, length int64, tear bool) {
	t.Helper()
	disk, storage, plain := full(t, k, size)
	failEach(t, storage, tear, func() error { return disk.Discard(off, length) }, func() {
		got := mustRead(t, disk, 0, int(size))
		if !bytes.Equal(got[:off], plain[:off]) || !bytes.Equal(got[off+length:], plain[off+length:]) {
			t.Fatalf("a failed discard of %d bytes at %d changed bytes beside it", length, off)
		}
	})
}

func failReads(t *testing.T, k kind, size, off, length int64) {
	t.Helper()
	disk, storage, plain := full(t, k, size)
	p, n := make([]byte, length), 0
	before := storage.bytes()
	failEach(t, storage, false, func() (err error) {
		n, err = disk.ReadAt(p, off)
		return err
	}, func() {
		if !bytes.Equal(p[:n], plain[off:off+int64(n)]) {
			t.Fatalf("%d bytes were not read, as was said", n)
		}
	})
	if !bytes.Equal(storage.bytes(), before) {
		t.Fatal("a read changed the disk")
	}
}

func TestErrorsOfOtherCalls(t *testing.T) {
	disk, storage := kind{512, Preserve}.open(t, 4096)
	extents := func() error { _, err := disk.Extents(0, 4096); return err }
	for _, request := range []func() error{extents, disk.Flush, disk.Close} {
		storage.fail(1, false)
		if err := request(); !errors.Is(err, errStorage) {
			t.Errorf("error is %v, want that of the storage", err)
		}
	}
}

// short is storage that lost its end.
type short struct{ *memory }

func (s short) Size() int64 { return s.memory.size + 4096 }

func TestStorageThatEndsEarly(t *testing.T) {
	disk := kind{512, Preserve}.over(t, short{newMemory(4096)})
	if n, err := disk.ReadAt(make([]byte, 512), 4096); n != 0 || err == nil || !strings.Contains(err.Error(), "unexpected EOF") {
		t.Errorf("read %d bytes, error %v", n, err)
	}
}

func TestClose(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		disk, storage := k.open(t, 4*4096)
		cipher := disk.cipher
		if err := disk.Close(); err != nil || !storage.closed {
			t.Fatalf("storage is closed: %v, error %v", storage.closed, err)
		}
		if cipher.keyed != nil {
			t.Error("the key is not wiped")
		}
		before := storage.bytes()
		_, readErr := disk.ReadAt(make([]byte, 512), 0)
		_, writeErr := disk.WriteAt(make([]byte, 512), 0)
		for _, err := range []error{readErr, writeErr, disk.Discard(0, 4096), disk.Close()} {
			if !errors.Is(err, fs.ErrClosed) {
				t.Errorf("error is %v, want fs.ErrClosed", err)
			}
		}
		if !bytes.Equal(storage.bytes(), before) {
			t.Error("a closed disk was changed")
		}
	})
}

func TestCloseWhileInUse(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		disk, _ := k.open(t, 64*4096)
		var group sync.WaitGroup
		for i := range 4 {
			group.Go(func() {
				p := make([]byte, 3000)
				for {
					_, err := disk.WriteAt(p, int64(i*1000))
					if errors.Is(err, fs.ErrClosed) {
						return
					}
					if err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		if err := disk.Close(); err != nil {
			t.Error(err)
		}
		group.Wait()
	})
}

// TestWritersOfOneSector has eight writers, each with bytes of its own in the
// same few sectors, and none may lose a write to another.
func TestWritersOfOneSector(t *testing.T) {
	const writers, stripe = 8, 131 // stripes cross 16-byte blocks and sectors
	eachKind(t, func(t *testing.T, k kind) {
		size := int64(3 * 4096)
		disk, storage := k.open(t, size)
		m := newModel(k, size)
		var group sync.WaitGroup
		for w := range writers {
			group.Go(func() {
				off := int64(w * stripe)
				for i := range 50 {
					p := random(uint64(w*1000+i), stripe)
					mustWriteIn(t, disk, p, off)
					if got := readIn(t, disk, off, stripe); !bytes.Equal(got, p) {
						t.Errorf("writer %d lost write %d", w, i)
					}
				}
			})
		}
		group.Wait()
		for w := range writers {
			m.write(random(uint64(w*1000+49), stripe), int64(w*stripe))
		}
		m.check(t, disk, storage)
	})
}

// mustWriteIn and readIn are for goroutines, where a test must not stop.
func mustWriteIn(t *testing.T, d *Disk, p []byte, off int64) {
	if _, err := d.WriteAt(p, off); err != nil {
		t.Error(err)
	}
}

func readIn(t *testing.T, d *Disk, off int64, n int) []byte {
	p := make([]byte, n)
	if _, err := d.ReadAt(p, off); err != nil {
		t.Error(err)
	}
	return p
}

// TestAlignedWriteIsNotLost writes a whole sector while one of its bytes is
// written: the others must be those of the whole write.
func TestAlignedWriteIsNotLost(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		disk, _ := k.open(t, int64(k.sector))
		for i := range 100 {
			whole := bytes.Repeat([]byte{byte(i)}, k.sector)
			var group sync.WaitGroup
			group.Go(func() { mustWriteIn(t, disk, whole, 0) })
			group.Go(func() { mustWriteIn(t, disk, []byte{0xff}, 7) })
			group.Wait()
			got := mustRead(t, disk, 0, k.sector)
			if got[7] != 0xff && got[7] != byte(i) {
				t.Fatalf("byte 7 is %#x", got[7])
			}
			got[7] = byte(i)
			if !bytes.Equal(got, whole) {
				t.Fatalf("round %d: the aligned write is lost", i)
			}
		}
	})
}

// TestReadersOfAHoleBeingFilled read the other half of a sector that turns from
// a hole into data, and must see zeros all the time.
func TestReadersOfAHoleBeingFilled(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		disk, _ := k.open(t, int64(k.sector))
		half := k.sector / 2
		var group sync.WaitGroup
		group.Go(func() {
			for range 100 {
				mustWriteIn(t, disk, random(1, half), 0)
				if err := disk.Discard(0, int64(k.sector)); err != nil {
					t.Error(err)
				}
			}
		})
		for range 2 {
			group.Go(func() {
				for range 200 {
					if !bytes.Equal(readIn(t, disk, int64(half), half), make([]byte, half)) {
						t.Error("half of a write was seen")
						return
					}
				}
			})
		}
		group.Wait()
	})
}

// TestWriteOver: it writes what WriteAt writes, and refuses what that refuses.
func TestWriteOver(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		const size = 1 << 20
		a, stored := k.open(t, size)
		b, storedOver := k.open(t, size)
		source := rand.New(rand.NewPCG(3, 4))
		for i := range 100 {
			off, length := randomRange(source, size, int64(k.sector))
			p := random(uint64(i), int(length))
			mustWrite(t, a, p, off)
			if n, err := b.WriteOver(p, off); n != int(length) || err != nil {
				t.Fatalf("%d bytes at %d: %d, %v", length, off, n, err)
			}
		}
		if !bytes.Equal(stored.bytes(), storedOver.bytes()) {
			t.Error("the ciphertexts differ")
		}
		if _, err := b.WriteOver(make([]byte, 512), size-511); err == nil {
			t.Error("it wrote outside the disk")
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := b.WriteOver(make([]byte, 4096), 0); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("write to a closed disk: %v", err)
		}
	})
}
