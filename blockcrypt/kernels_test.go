package blockcrypt

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// sectorTweaks are where the number in a tweak could go wrong: a carry from its
// lower half, its sign.
var sectorTweaks = []uint64{0, 1, 1<<32 - 40, 1<<32 - 1, 1<<63 - 40, 1<<63 - 1, 1<<64 - 2000}

// TestEverySectorSize compares the engines with golang.org/x/crypto/xts, where the
// memory on either side of the data cannot be touched.
func TestEverySectorSize(t *testing.T) {
	const maxBlocks, maxCount = 70, 40
	var counts []int // with -short few, for the emulator of scripts/avx512.sh
	for count := 1; count <= maxCount; count++ {
		if !testing.Short() || count <= 2 || count == 5 || count == maxCount {
			counts = append(counts, count)
		}
	}
	space := newGuarded(t, maxBlocks*16*maxCount)
	for _, with := range Engines() {
		t.Run(with.Name(), func(t *testing.T) {
			if with.Missing() != "" {
				t.Skipf("%s: %s", with.Name(), with.Missing())
			}
			for blocks := 1; blocks <= maxBlocks; blocks++ {
				e, err := with.get().new(testKey(), 16*blocks)
				if err != nil {
					t.Fatal(err)
				}
				for _, count := range counts {
					tweak := sectorTweaks[(blocks+count)%len(sectorTweaks)]
					space.compare(t, e, 16*blocks, count, tweak)
				}
				e.wipe()
			}
		})
	}
}

// TestManySectors crosses the number of sectors that the assembly takes at once.
func TestManySectors(t *testing.T) {
	for _, with := range Engines() {
		t.Run(with.Name(), func(t *testing.T) {
			if with.Missing() != "" {
				t.Skipf("%s: %s", with.Name(), with.Missing())
			}
			for _, size := range []int{512, 528, 4096} {
				e, err := with.get().new(testKey(), size)
				if err != nil {
					t.Fatal(err)
				}
				for _, count := range []int{63, 64, 65, 127, 128, 129, 200} {
					plain := random(uint64(count), size*count)
					want := sectorsOf(t, plain, size, 1<<32-100)
					got := bytes.Clone(plain)
					e.encrypt(got, got, 1<<32-100)
					check(t, nil, got, want, fmt.Sprintf("encrypted sectors of %d", size), 0)
					e.decrypt(got, got, 1<<32-100)
					check(t, nil, got, plain, fmt.Sprintf("decrypted sectors of %d", size), 0)
				}
				e.wipe()
			}
		})
	}
}

// sectorsOf encrypts sectors of any size with golang.org/x/crypto/xts.
func sectorsOf(t *testing.T, plain []byte, size int, tweak uint64) []byte {
	t.Helper()
	out := make([]byte, 0, len(plain))
	for at := 0; at < len(plain); at += size {
		out = append(out, referenceSector(t, plain[at:at+size], tweak)...)
		tweak += uint64(size / tweakUnit)
	}
	return out
}

// guarded is memory between pages that may not be touched.
type guarded struct{ source, target []byte }

func newGuarded(t *testing.T, n int) guarded {
	return guarded{guardedPages(t, n), guardedPages(t, n)}
}

// guardedPages gives at least n bytes, with a forbidden page before and after.
func guardedPages(t *testing.T, n int) []byte {
	t.Helper()
	page := unix.Getpagesize()
	n = (n + page - 1) / page * page
	all, err := unix.Mmap(-1, 0, n+2*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(all) })
	for _, guard := range [][]byte{all[:page], all[page+n:]} {
		if err := unix.Mprotect(guard, unix.PROT_NONE); err != nil {
			t.Fatal(err)
		}
	}
	return all[page : page+n]
}

// compare encrypts and decrypts at the lower end of the memory, at the upper one
// and, for odd addresses, one byte from it; in place and apart.
func (g guarded) compare(t *testing.T, e keyedXTS, size, count int, tweak uint64) {
	t.Helper()
	n := size * count
	plain := random(uint64(n), n)
	want := sectorsOf(t, plain, size, tweak)
	top := len(g.source) - n
	for _, start := range []int{0, top, max(top-1, 0)} {
		src, dst := g.source[start:start+n], g.target[start:start+n]
		copy(src, plain)
		what := fmt.Sprintf("%d sectors of %d at %d", count, size, start)
		e.encrypt(dst, src, tweak)
		check(t, nil, dst, want, "encrypted apart: "+what, int64(tweak))
		e.encrypt(src, src, tweak)
		check(t, nil, src, want, "encrypted in place: "+what, int64(tweak))
		e.decrypt(dst, src, tweak)
		check(t, nil, dst, plain, "decrypted apart: "+what, int64(tweak))
		e.decrypt(src, src, tweak)
		check(t, nil, src, plain, "decrypted in place: "+what, int64(tweak))
	}
}

// broken is an engine that can't encrypt, decrypt, or get memory.
type broken struct{ keyedXTS }

func (b broken) encrypt(dst, src []byte, tweak uint64) { b.keyedXTS.encrypt(dst, src, tweak+1) }

type brokenBack struct{ keyedXTS }

func (b brokenBack) decrypt(dst, src []byte, tweak uint64) { b.keyedXTS.decrypt(dst, src, tweak+1) }

// TestFastestPassesOverBrokenEngines puts some in front.
func TestFastestPassesOverBrokenEngines(t *testing.T) {
	sound := implementations
	t.Cleanup(func() { implementations = sound })
	want := fastest(t).Name()
	implementations = append([]implementation{
		{name: "wrong", new: func(key []byte, size int) (keyedXTS, error) {
			e, err := newStandard(key, size)
			return broken{e}, err
		}},
		{name: "one-way", new: func(key []byte, size int) (keyedXTS, error) {
			e, err := newStandard(key, size)
			return brokenBack{e}, err
		}},
	}, sound...)
	e, warning := Fastest()
	if e.Name() != want || warning == nil {
		t.Fatalf("%s, warning %v", e.Name(), warning)
	}
	for _, words := range []string{"wrong: the self-test encrypted", "one-way: the self-test decrypted"} {
		if !strings.Contains(warning.Error(), words) {
			t.Errorf("warning %q, want %q", warning, words)
		}
	}
}
