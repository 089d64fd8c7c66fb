package blockcrypt

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// ready is storage that may have everything in memory.
type ready struct {
	*memory
	is bool
}

func (r *ready) ReadAtNoWait(p []byte, offset int64) bool {
	if !r.is {
		return false
	}
	n, _ := r.ReadAt(p, offset) // which may be io.EOF at the end
	return n == len(p)
}

// TestReadAtNoWait: what it says it read is what ReadAt reads, and it refuses where
// that would wait or fail.
func TestReadAtNoWait(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		const size = 64 << 10
		_, m := k.open(t, size)
		storage := &ready{memory: m, is: true}
		d := k.over(t, storage)
		mustWrite(t, d, bytes.Repeat([]byte("sector.."), size/16), 0)
		source := rand.New(rand.NewPCG(1, 2))
		for range 200 {
			off, length := randomRange(source, size, int64(k.sector))
			p := make([]byte, length)
			if !d.ReadAtNoWait(p, off) || !bytes.Equal(p, mustRead(t, d, off, len(p))) {
				t.Fatalf("%d bytes at %d", length, off)
			}
		}
		writing := d.claims.begin(4096, 8192, true)
		if p := make([]byte, 512); d.ReadAtNoWait(p, 7000) || !d.ReadAtNoWait(p, 8192) {
			t.Error("it read what is being written, or nothing else")
		}
		d.claims.end(writing)
		if p := make([]byte, 512); d.ReadAtNoWait(p, size-511) || d.ReadAtNoWait(p, -1) {
			t.Error("it read outside the disk")
		}
		storage.is = false
		if d.ReadAtNoWait(make([]byte, 512), 0) {
			t.Error("it read what is not in memory")
		}
		storage.is = true
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if d.ReadAtNoWait(make([]byte, 512), 0) {
			t.Error("it read from a closed disk")
		}
	})
}
