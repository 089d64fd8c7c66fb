package blockcrypt

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/vmcrypt/vmcrypt/image"
)

// patient is storage whose background reads end when the test wants.
type patient struct {
	*memory
	begun []image.BackgroundRead
}

func (p *patient) OpenBackground() bool { return true }

func (p *patient) BeginReads(batch []image.BackgroundRead) { p.begun = append(p.begun, batch...) }

// finish ends all reads, as a success or not.
func (p *patient) finish(ok bool) {
	begun := p.begun
	p.begun = nil
	for _, r := range begun {
		_, _ = p.ReadAt(r.P, r.Offset) // which may be io.EOF at the end
		if after := r.Reader.ReadDone(ok); after != nil {
			after()
		}
	}
}

// outcome is a Reader that remembers what it was told.
type outcome []bool

func (o *outcome) ReadDone(ok bool) func() {
	*o = append(*o, ok)
	return nil
}

// background begins a read.
func background(d *Disk, off int64, length int) ([]byte, *outcome) {
	p, o := make([]byte, length), new(outcome)
	d.BeginReads([]image.BackgroundRead{{P: p, Offset: off, Reader: o}})
	return p, o
}

// TestBeginReads: it reads what ReadAt reads, if that is whole sectors.
func TestBeginReads(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		const size = 64 << 10
		_, m := k.open(t, size)
		storage := &patient{memory: m}
		d := k.over(t, storage)
		mustWrite(t, d, bytes.Repeat([]byte("sector.."), size/16), 0)
		source := rand.New(rand.NewPCG(1, 2))
		for range 200 {
			off, length := randomRange(source, size, int64(k.sector))
			whole := off%int64(k.sector) == 0 && length%int64(k.sector) == 0
			p, o := background(d, off, int(length))
			storage.finish(true)
			if !slices.Equal(*o, []bool{whole}) || whole && !bytes.Equal(p, mustRead(t, d, off, len(p))) {
				t.Fatalf("%d bytes at %d: told %v", length, off, *o)
			}
		}
		if len(d.claims.queue) != 0 {
			t.Errorf("%d claims are left", len(d.claims.queue))
		}
	})
}

// TestBeginReadsRefuses what is being written, lies outside, or is of a closed disk.
func TestBeginReadsRefuses(t *testing.T) {
	k := kind{512, Preserve}
	_, m := k.open(t, 64<<10)
	storage := &patient{memory: m}
	d := k.over(t, storage)
	writing := d.claims.begin(4096, 8192, true)
	for off, want := range map[int64]int{4096: 0, 8192: 1, 64<<10 - 512: 0, -512: 0} {
		_, o := background(d, off, 1024)
		if len(storage.begun) != want || want == 0 && !slices.Equal(*o, []bool{false}) {
			t.Errorf("at %d: %d reads begun, told %v", off, len(storage.begun), *o)
		}
		storage.finish(true)
	}
	d.claims.end(writing)
	_, o := background(d, 0, 512)
	storage.finish(false)
	if !slices.Equal(*o, []bool{false}) {
		t.Errorf("told %v of a read that failed", *o)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, o := background(d, 0, 512); !slices.Equal(*o, []bool{false}) || len(storage.begun) > 0 {
		t.Errorf("told %v by a closed disk", *o)
	}
}

// TestBeginReadsClaims: nobody writes what is being read, until it is decrypted, nor
// is the key wiped.
func TestBeginReadsClaims(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := kind{512, Preserve}
		_, m := k.open(t, 64<<10)
		storage := &patient{memory: m}
		d := k.over(t, storage)
		mustWrite(t, d, bytes.Repeat([]byte{1}, 1024), 0)
		p, o := background(d, 0, 1024)
		written, closed := false, false
		go func() {
			mustWrite(t, d, []byte{2}, 512)
			written = true
			_ = d.Close()
			closed = true
		}()
		synctest.Wait()
		if written {
			t.Error("it did not wait for the read")
		}
		storage.finish(true)
		synctest.Wait()
		if !slices.Equal(*o, []bool{true}) || !bytes.Equal(p, bytes.Repeat([]byte{1}, 1024)) || !written || !closed {
			t.Errorf("told %v, read %x, written %v, closed %v", *o, p[512:514], written, closed)
		}
	})
}
