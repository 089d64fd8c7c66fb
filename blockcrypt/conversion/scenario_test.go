package conversion

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
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
	zone       int
	serial     order
	turnAfter  int // steps until it is aborted; 0 for never

	from, to       *blockcrypt.Cipher
	old, new       []byte // content of the disk before and after
	hole           []bool
	key            []byte
	disk, identity uuid.UUID
}

// secretMark is in each block of 16 bytes of plaintext.
const secretMark = "PLAINTXT"

// scenarios gives all combinations for a disk of some blocks.
func scenarios(t testing.TB, blocks int) (all []*scenario) {
	t.Helper()
	for _, operation := range []string{"encrypt", "decrypt", "rekey"} {
		for _, sectorSize := range []int{512, 4096} {
			for _, holes := range []blockcrypt.HolePolicy{blockcrypt.Preserve, blockcrypt.Fill} {
				for _, serial := range []order{applyFirst, recordFirst} {
					for turn := range 3 {
						s := &scenario{
							operation: operation, sectorSize: sectorSize, holes: holes,
							zone: blockSize, serial: serial, turnAfter: turn,
						}
						s.name = fmt.Sprintf("%s/%d/%s/order%d/turn%d", operation, sectorSize, holes, serial, turn)
						s.prepare(t, blocks)
						all = append(all, s)
					}
				}
			}
		}
	}
	return all
}

// prepare makes keys and contents. The second block is a hole. With small sectors
// the disk ends within a block.
func (s *scenario) prepare(t testing.TB, blocks int) {
	t.Helper()
	size := blocks * blockSize
	if s.sectorSize == 512 {
		size -= 3 * 512
	}
	plain := make([]byte, size)
	for at := 0; at < size; at += 16 {
		copy(plain[at:], secretMark)
		binary.BigEndian.PutUint64(plain[at+8:], uint64(at)*0x9e3779b97f4a7c15+1)
	}
	s.hole = make([]bool, blocks)
	s.hole[1] = true
	clear(plain[blockSize : 2*blockSize])
	a, b := s.cipher(t, 1), s.cipher(t, 2)
	switch s.operation {
	case "encrypt":
		s.to = b
	case "decrypt":
		s.from = a
	case "rekey":
		s.from, s.to = a, b
	}
	s.old, s.new = s.content(t, s.from, plain), s.content(t, s.to, plain)
	s.key = bytes.Repeat([]byte{7}, KeySize)
	s.disk, s.identity = uuid.New(), uuid.New()
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
	return &world{disk: newFile(s.old), phase: Preparing, holes: s.hole}
}

// job is a conversion in a world.
func (s *scenario) job(w *world, backward bool) Job {
	phase := w.phase
	if w.renamed != "" {
		phase = w.renamed
	}
	return Job{
		Disk: simDisk{w}, From: s.from, To: s.to, SectorSize: s.sectorSize, Holes: s.holes,
		DiskUUID: s.disk, UUID: s.identity, Key: s.key, Zone: s.zone, Phase: phase, Backward: backward,
		Journal: simFolder{w}, Descriptor: simDescriptor{w}, serial: s.serial,
		reached: func(m marker) { w.reached = m },
	}
}

// errEnough stops a run that is to be aborted.
var errEnough = errors.New("enough steps")

// run is the conversion, and its abortion if the scenario has one.
func (s *scenario) run(w *world) error {
	if s.turnAfter > 0 {
		ctx, cancel := context.WithCancelCause(context.Background())
		j, steps := s.job(w, false), 0
		j.reached = func(m marker) {
			w.reached = m
			if steps++; steps == s.turnAfter {
				cancel(errEnough)
			}
		}
		if _, err := Run(ctx, j); !errors.Is(err, errEnough) {
			return fmt.Errorf("before the turn: %w", err)
		}
	}
	return s.finish(w, s.turnAfter > 0)
}

// finish takes a conversion to its end and checks what came of it.
func (s *scenario) finish(w *world, backward bool) error {
	want, content := Converted, s.new
	if backward {
		want, content = Reverted, s.old
	}
	switch phase, err := Run(context.Background(), s.job(w, backward)); {
	case err != nil:
		return err
	case phase != want:
		return fmt.Errorf("the phase is %s, want %s", phase, want)
	case w.journal != nil:
		return errors.New("the journal is still there")
	case len(w.disk.pending) > 0:
		return errors.New("the disk is not durable")
	case !bytes.Equal(w.disk.durable, content):
		return fmt.Errorf("wrong content %s", differences(w.disk.durable, content))
	}
	return nil
}

// differences names the sectors that differ.
func differences(got, want []byte) string {
	var out string
	for at := 0; at < len(want); at += 512 {
		if !bytes.Equal(got[at:at+512], want[at:at+512]) {
			out += fmt.Sprintf(" %d", at)
		}
	}
	return "in the sectors at" + out
}

func TestScenarios(t *testing.T) {
	for _, s := range scenarios(t, 5) {
		if err := s.run(s.begin()); err != nil {
			t.Errorf("%s: %v", s.name, err)
		}
	}
}
