package conversion

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/vmcrypt/vmcrypt/blockcrypt"
)

// scenario is a conversion of a small disk.
type scenario struct {
	name       string
	operation  string // encrypt, decrypt, rekey
	sectorSize int
	holes      blockcrypt.HolePolicy
	shape

	from, to *blockcrypt.Cipher
	old, new []byte // content of the disk before and after
	hole     []bool
	key      []byte
	buffers  spareBuffers
}

// shape is that of a disk, and how it is cut.
type shape struct {
	blocks string // d is data, h is a hole
	zone   int
}

// shapes that matter: one run in each step, several, and nothing to do at first.
var (
	single  = shape{"dhdd", blockSize}
	several = shape{"dhdhdd", 2 * blockSize}
	hollow  = shape{"hdd", blockSize}
)

// secretMark is in each block of 16 bytes of plaintext.
const secretMark = "PLAINTXT"

// scenarios gives all combinations for disks of these shapes.
func scenarios(t testing.TB, shapes ...shape) (all []*scenario) {
	t.Helper()
	for _, shape := range shapes {
		for _, operation := range []string{"encrypt", "decrypt", "rekey"} {
			for _, sectorSize := range []int{512, 4096} {
				for _, holes := range []blockcrypt.HolePolicy{blockcrypt.Preserve, blockcrypt.Fill} {
					all = append(all, newScenario(t, operation, sectorSize, holes, shape))
				}
			}
		}
	}
	return all
}

// newScenario makes keys and contents. With small sectors the disk ends within a
// block.
func newScenario(t testing.TB, operation string, sectorSize int, holes blockcrypt.HolePolicy, shape shape) *scenario {
	t.Helper()
	s := &scenario{operation: operation, sectorSize: sectorSize, holes: holes, shape: shape}
	s.name = fmt.Sprintf("%s/%d/%s/%s", operation, sectorSize, holes, shape.blocks)
	size := len(shape.blocks) * blockSize
	if sectorSize == 512 {
		size -= 3 * 512
	}
	plain := plaintext(size)
	for i, block := range shape.blocks {
		s.hole = append(s.hole, block == 'h')
		if block == 'h' {
			clear(plain[i*blockSize : (i+1)*blockSize])
		}
	}
	if operation != "encrypt" {
		s.from = s.cipher(t, 1)
	}
	if operation != "decrypt" {
		s.to = s.cipher(t, 2)
	}
	s.old, s.new = s.content(t, s.from, plain), s.content(t, s.to, plain)
	s.key = bytes.Repeat([]byte{7}, KeySize)
	return s
}

func plaintext(size int) []byte {
	plain := make([]byte, size)
	for at := 0; at < size; at += 16 {
		copy(plain[at:], secretMark)
		binary.BigEndian.PutUint64(plain[at+8:], uint64(at)*0x9e3779b97f4a7c15+1)
	}
	return plain
}

func (s *scenario) cipher(t testing.TB, seed byte) *blockcrypt.Cipher {
	t.Helper()
	key := make([]byte, blockcrypt.KeySize)
	for i := range key {
		key[i] = byte(i) * seed
	}
	engine, err := blockcrypt.Fastest()
	if err != nil {
		t.Fatal(err)
	}
	c, err := engine.NewCipher(key, s.sectorSize)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// content is how a disk with this plaintext looks under a key.
func (s *scenario) content(t testing.TB, c *blockcrypt.Cipher, plain []byte) []byte {
	t.Helper()
	if c == nil {
		return plain
	}
	out := bytes.Clone(plain)
	if err := c.Encrypt(out, out, 0); err != nil {
		t.Fatal(err)
	}
	if s.holes == blockcrypt.Preserve {
		for i, hole := range s.hole {
			if hole {
				clear(out[i*blockSize : (i+1)*blockSize])
			}
		}
	}
	return out
}

// begin is the world before the conversion, its keys being in the descriptor.
func (s *scenario) begin() *world {
	w := &world{disk: newFile(s.old), journal: new(file), holes: s.hole}
	w.phase = cell[Phase]{Preparing, Preparing}
	return w
}

// job is a conversion in a world.
func (s *scenario) job(w *world, backward bool) Job {
	return Job{
		Disk: simDisk{w}, From: s.from, To: s.to, SectorSize: s.sectorSize, Holes: s.holes,
		DiskUUID: uuid.UUID{1}, UUID: uuid.UUID{2}, Key: s.key, Zone: s.zone,
		Phase: w.phase.visible, Backward: backward,
		Journal: simFolder{w}, Descriptor: simDescriptor{w}, memory: s.buffers.take, serial: recordFirst, nonce: nonceOf,
	}
}

// spareBuffers are quicker to have than those of image.MapBuffers.
type spareBuffers struct{ sync.Pool }

func (b *spareBuffers) take(n, size int) ([][]byte, func(), error) {
	spare, ok := b.Get().(*[][]byte)
	if !ok || len(*spare) != n || len((*spare)[0]) != size {
		spare = new([][]byte)
		for range n {
			*spare = append(*spare, make([]byte, size))
		}
	}
	return *spare, func() { b.Put(spare) }, nil
}

// nonceOf gives the same nonce to the same data, so that no two worlds differ in a
// random number only.
func nonceOf(data []byte) (n nonce) {
	binary.LittleEndian.PutUint64(n[:], hashOf(1, data))
	return n
}

// end is what a run in this world and direction ends with.
func (s *scenario) end(w *world, backward bool) (Phase, []byte) {
	switch phase := w.phase.visible; {
	case phase == Converted, phase != Reverted && !backward:
		return Converted, s.new
	default:
		return Reverted, s.old
	}
}

// finish takes a conversion to its end and checks what came of it.
func (s *scenario) finish(w *world, j Job) error {
	want, content := s.end(w, j.Backward)
	phase, err := Run(context.Background(), j)
	if err != nil {
		return err
	}
	if phase != want {
		return fmt.Errorf("the phase is %s, want %s", phase, want)
	}
	return w.atRest(want, content)
}

// errEnough stops a run that is to be aborted.
var errEnough = errors.New("enough steps")

// start does some steps of a conversion.
func (s *scenario) start(w *world, steps int, change func(*Job)) error {
	ctx, cancel := context.WithCancelCause(context.Background())
	j := s.job(w, false)
	if change != nil {
		change(&j)
	}
	j.observe = func(marker, []*step) {
		if steps--; steps < 0 {
			cancel(errEnough)
		}
	}
	if _, err := Run(ctx, j); !errors.Is(err, errEnough) {
		return fmt.Errorf("before the turn: %w", err)
	}
	return nil
}

// TestScenarios converts, and aborts after each step.
func TestScenarios(t *testing.T) {
	for _, s := range scenarios(t, single, several) {
		for _, serial := range []order{sideBySide, applyFirst, recordFirst} {
			for steps := range 4 {
				set := func(j *Job) { j.serial, j.nonce = serial, nil }
				w := s.begin()
				if err := s.start(w, steps, set); err != nil {
					t.Fatalf("%s, order %d, step %d: %v", s.name, serial, steps, err)
				}
				for _, backward := range []bool{true, false} {
					w, from := newWorld(), w
					w.become(from)
					j := s.job(w, backward)
					set(&j)
					if err := s.finish(w, j); err != nil {
						t.Errorf("%s, order %d, step %d, backward %t: %v", s.name, serial, steps, backward, err)
					}
				}
			}
		}
	}
}
