package conversion

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/uuid"

	"github.com/vmcrypt/vmcrypt/blockcrypt"
	"github.com/vmcrypt/vmcrypt/image"
)

// moments are worlds that a crash left somewhere on the way: with nothing, all, or
// the first halves of the writes that were not yet durable.
func (s *scenario) moments(t testing.TB) (all []*world) {
	t.Helper()
	w := s.begin()
	w.before = func(o op) error {
		if o.changes() {
			for _, f := range []form{lost, kept, halves} {
				all = append(all, w.crashed(f))
			}
		}
		return nil
	}
	if err := s.start(w, 3, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.finish(w, s.job(w, true)); err != nil {
		t.Fatal(err)
	}
	return all
}

// halves is a form of all writes: the journal's are whole, the disk's torn in the
// middle.
const halves form = -5

func (w *world) crashed(f form) *world {
	v := newWorld()
	v.become(w)
	v.phase.visible, v.there.visible = v.phase.durable, v.there.durable
	for i, to := range v.files() {
		for _, p := range w.files()[i].pending {
			form := f
			switch {
			case f == halves && i == 0:
				form = firstHalf(p)
			case f == halves:
				form = kept
			}
			form.apply(to.durable, p)
		}
		to.fading = nil
		to.restart()
	}
	return v
}

// every is how many of the cases a test looks at: one in so many, by the value of
// VMCRYPT_CRASH.
func every(plain, long, full int) int {
	return map[string]int{"": plain, "long": long, "full": full}[os.Getenv("VMCRYPT_CRASH")]
}

// fault makes the operation after some others fail.
type fault struct {
	after int
	err   error
	hit   op   // what failed
	late  []op // changes and writes after a failed sync
}

func (f *fault) before(o op) error {
	switch {
	case f.hit != op{}:
		if f.hit.what == "sync" && (o.changes() || o.what == "write") {
			f.late = append(f.late, o)
		}
		return nil
	case f.after > 0:
		f.after--
		return nil
	}
	f.hit = o
	return f.err
}

// TestFaults lets each operation fail in turn, from many moments; then the
// conversion goes on, at once or after a crash.
func TestFaults(t *testing.T) {
	n, step := 0, every(307, 5, 1)
	for _, s := range scenarios(t, single, several) {
		for i, w := range s.moments(t) {
			for _, serial := range []order{applyFirst, recordFirst} {
				for after := (i + n) % step; ; after += step {
					f := fault{after: after}
					f.err = []error{syscall.EIO, syscall.ENOSPC, shortWrite{syscall.ENOSPC}}[(i+after)%3]
					v := newWorld()
					v.become(w)
					hit, err := s.withFault(v, &f, serial, after%2 == 1)
					if err != nil {
						t.Fatalf("%s, moment %d, order %d: %v", s.name, i, serial, err)
					}
					if !hit {
						break
					}
					n++
				}
			}
		}
	}
	t.Logf("%d faults", n)
}

func (s *scenario) withFault(w *world, f *fault, serial order, backward bool) (hit bool, err error) {
	j := s.job(w, backward)
	j.serial = serial
	w.before = f.before
	_, err = Run(context.Background(), j)
	w.before = nil
	switch {
	case f.hit == op{}:
		return false, err
	case !errors.Is(err, f.err):
		return true, fmt.Errorf("%v of %v gives %v", f.err, f.hit, err)
	case f.late != nil:
		return true, fmt.Errorf("after the failed %v: %v", f.hit, f.late)
	}
	return true, s.goesOn(w, f)
}

// goesOn ends what failed: with all that was visible then, or only what was durable.
func (s *scenario) goesOn(w *world, f *fault) error {
	for _, left := range []*world{w.asVisible(), w.crashed(lost), w.crashed(kept), w.crashed(halves)} {
		for _, backward := range []bool{false, true} {
			v := newWorld()
			v.become(left)
			if err := s.finish(v, s.job(v, backward)); err != nil {
				return fmt.Errorf("after %v of %v, backward %t: %w", f.err, f.hit, backward, err)
			}
		}
	}
	return nil
}

// asVisible is the world to a program that starts now. What is on its way to be
// durable may get there.
func (w *world) asVisible() *world {
	v := newWorld()
	v.become(w)
	for i, f := range v.files() {
		f.pending = slices.Clone(w.files()[i].pending)
	}
	return v
}

// part is one of a journal: bytes that mean something.
type part struct {
	offset, length int
	twice          bool // there is another one that tells the same
	often          int  // how much more often its bits are flipped than others
}

func (s *scenario) parts() []part {
	l := layout{int64(s.zone)}
	all := []part{{0, 160, false, 20}, {blockSize, 60, true, 200}, {2 * blockSize, 60, true, 200}}
	for i := range uint64(2) {
		at := int(l.record(i))
		all = append(all, part{at, 1200, true, 1}, part{at + blockSize, 1200, true, 1}, part{at + 2*blockSize, s.zone, false, 1})
	}
	return all
}

// TestFlips flips the bits of a journal in turn, at many moments: the conversion
// ends with every byte right, or is refused and nothing is written. It is refused
// for the header, and for data that were on their way to the disk: there are two of
// all the rest.
func TestFlips(t *testing.T) {
	n, refused, step := 0, 0, every(60013, 2003, 1)
	v := newWorld()
	for _, s := range scenarios(t, single, several) {
		for i, w := range s.moments(t) {
			if !w.there.visible || w.phase.visible == Preparing {
				continue
			}
			for _, p := range s.parts() {
				step := max(step/p.often, 1)
				for bit := n % step; bit < 8*p.length; bit += step {
					v.become(w)
					v.journal.flip(8*p.offset + bit)
					no, err := s.survives(v, (i+bit)%2 == 1, p.twice)
					if err != nil {
						t.Fatalf("%s, moment %d, bit %d of byte %d: %v", s.name, i, bit%8, p.offset+bit/8, err)
					}
					if n++; no {
						refused++
					}
				}
			}
		}
	}
	t.Logf("%d flips, of which %d were refused", n, refused)
}

func (s *scenario) survives(w *world, backward, never bool) (refused bool, err error) {
	wrote := false
	w.before = func(o op) error {
		wrote = wrote || o.changes() || o.what == "write"
		return nil
	}
	err = s.finish(w, s.job(w, backward))
	switch {
	case !errors.Is(err, ErrJournal):
		return false, err
	case wrote:
		return true, fmt.Errorf("refused, but something was written: %w", err)
	case never:
		return true, fmt.Errorf("refused, though there are two: %w", err)
	}
	return true, nil
}

// TestMissingRecord: a record that must be there and is not was removed.
func TestMissingRecord(t *testing.T) {
	found := 0
	for _, s := range scenarios(t, single) {
		for i, w := range s.moments(t) {
			at, heads := s.position(t, w)
			next := heads[at.Sequence%2]
			if next == nil || next.After.Sequence != at.Sequence+2 {
				continue
			}
			found++
			for n := range int64(2) {
				w.journal.flip(8 * int((layout{int64(s.zone)}).record(at.Sequence+1)+n*blockSize))
			}
			switch refused, err := s.survives(w, false, false); {
			case err != nil:
				t.Fatalf("%s, moment %d: %v", s.name, i, err)
			case !refused:
				t.Fatalf("%s, moment %d: a record is missing, and nobody cares", s.name, i)
			}
		}
	}
	if found == 0 {
		t.Error("no record to remove")
	}
}

// position is what a journal tells; nothing if it tells nothing yet.
func (s *scenario) position(t *testing.T, w *world) (at marker, heads [2]*head) {
	t.Helper()
	j := s.job(w, false)
	journal, err := newJournal(simJournal{w}, &j)
	if err != nil {
		t.Fatal(err)
	}
	c := &converter{Job: &j, journal: journal}
	if !w.there.visible || journal.open(&j) != nil {
		return at, heads
	}
	if heads, err = c.heads(); err != nil {
		t.Fatal(err)
	}
	if at, err = c.latest(heads); err != nil {
		t.Fatal(err)
	}
	return at, heads
}

// TestForeignJournal: a journal belongs to one conversion of one disk.
func TestForeignJournal(t *testing.T) {
	foreign := map[string]func(*Job){
		"disk":        func(j *Job) { j.DiskUUID = uuid.UUID{9} },
		"conversion":  func(j *Job) { j.UUID = uuid.UUID{9} },
		"sector size": func(j *Job) { j.SectorSize = 512 },
		"holes":       func(j *Job) { j.Holes = blockcrypt.Fill },
		"operation":   func(j *Job) { j.From = j.To },
		"key":         func(j *Job) { j.Key = bytes.Repeat([]byte{8}, KeySize) },
		"old state":   func(j *Job) { j.Phase = Preparing },
		"old, undone": func(j *Job) { j.Phase, j.Backward = Preparing, true },
		"older":       func(j *Job) { j.Phase, j.UUID, j.Key = Preparing, uuid.UUID{9}, bytes.Repeat([]byte{8}, KeySize) },
		"old and damaged": func(j *Job) {
			j.Phase = Preparing
			j.Journal.(simFolder).w.journal.flip(20 * 8)
		},
		"removed": func(j *Job) { _ = j.Journal.Remove() },
	}
	s := newScenario(t, "encrypt", 4096, blockcrypt.Preserve, single)
	for name, change := range foreign {
		w := s.begin()
		if err := s.start(w, 1, nil); err != nil {
			t.Fatal(err)
		}
		j := s.job(w, false)
		change(&j)
		w.before = func(o op) error {
			if o.changes() || o.what == "write" {
				t.Errorf("%s: %v", name, o)
			}
			return nil
		}
		if err := Check(j); !errors.Is(err, ErrJournal) {
			t.Errorf("%s: checked, %v", name, err)
		}
		if _, err := Run(context.Background(), j); !errors.Is(err, ErrJournal) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCheck: it finds nothing wrong at any moment of a conversion, and writes
// nothing.
func TestCheck(t *testing.T) {
	for _, s := range scenarios(t, several) {
		for steps := range 4 {
			w := s.begin()
			if err := s.start(w, steps, nil); err != nil {
				t.Fatal(err)
			}
			w.before = func(o op) error {
				if o.changes() || o.what == "write" {
					t.Errorf("%s: %v", s.name, o)
				}
				return nil
			}
			if err := Check(s.job(w, false)); err != nil {
				t.Errorf("%s, step %d: %v", s.name, steps, err)
			}
		}
	}
}

// badDisk has one sector that can't be read.
type badDisk struct {
	image.Disk
	at int64
}

func (d badDisk) ReadAt(p []byte, offset int64) (int, error) {
	if offset <= d.at && d.at < offset+int64(len(p)) {
		return 0, syscall.EIO
	}
	return d.Disk.ReadAt(p, offset)
}

// TestUnreadableSector is named, and not taken for zeros.
func TestUnreadableSector(t *testing.T) {
	s := newScenario(t, "encrypt", 4096, blockcrypt.Fill, several)
	j := s.job(s.begin(), false)
	j.Disk = badDisk{j.Disk, 3*blockSize + 512}
	_, err := Run(context.Background(), j)
	if !errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), "offset 12288") {
		t.Error(err)
	}
}

// FuzzJournal takes any bytes as the journal of a conversion whose first step is
// about to go to the disk. What it does not authenticate, nothing is written of.
func FuzzJournal(f *testing.F) {
	s := newScenario(f, "decrypt", 512, blockcrypt.Preserve, single)
	from := s.begin()
	if err := s.start(from, 1, nil); err != nil {
		f.Fatal(err)
	}
	good := make([]byte, from.journal.size())
	_, _ = from.journal.read(good, 0)
	f.Add([]byte{}, uint16(0))
	f.Add(good[:blockSize], uint16(0))
	f.Add(good[3*blockSize:], uint16(3*blockSize))
	f.Add([]byte("not what was there"), uint16(blockSize))
	f.Fuzz(func(t *testing.T, p []byte, at uint16) {
		w := newWorld()
		w.become(from)
		w.journal = newFile(patched(good, p, int(at)))
		if _, err := s.survives(w, len(p)%2 == 1, false); err != nil {
			t.Fatal(err)
		}
		w.become(from)
		w.journal = newFile(p[:len(p)/sectorSize*sectorSize])
		if _, err := s.survives(w, false, false); err != nil {
			t.Fatal(err)
		}
	})
}

func patched(p, patch []byte, at int) []byte {
	out := bytes.Clone(p)
	copy(out[min(at, len(out)):], patch)
	return out
}
