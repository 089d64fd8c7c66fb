package conversion

import (
	"bytes"
	"errors"
	"fmt"
	"hash/maphash"
	"os"
	"runtime"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"
)

// explorer runs a scenario, and looks at everything that a crash could leave of it.
type explorer struct {
	*scenario
	effort
	seen  map[uint64]bool // crash states, by their hash
	total *atomic.Int64
}

// effort says how much is looked at.
type effort struct {
	blocks int  // of the disk
	pairs  bool // tear two writes at a time, not only one
	again  int  // crash again in one of so many recoveries; 0 for never
	every  int  // of the torn forms of a write, one of so many
}

// Efforts, by the value of VMCRYPT_CRASH.
var efforts = map[string]effort{
	"":     {blocks: 3, again: 64, every: 12},
	"long": {blocks: 4, again: 16, every: 1},
	"full": {blocks: 5, again: 16, every: 1, pairs: true},
}

// TestCrash is the crash model: docs/conversion.md.
func TestCrash(t *testing.T) {
	e, ok := efforts[os.Getenv("VMCRYPT_CRASH")]
	if !ok {
		t.Fatalf("VMCRYPT_CRASH is long, full, or nothing")
	}
	var total, next atomic.Int64
	all := scenarios(t, e.blocks)
	var workers errgroup.Group
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() error {
			for i := next.Add(1) - 1; i < int64(len(all)) && !t.Failed(); i = next.Add(1) - 1 {
				x := explorer{scenario: all[i], effort: e, seen: map[uint64]bool{}, total: &total}
				if err := x.explore(); err != nil {
					t.Errorf("%s: %v", x.name, err)
				}
			}
			return nil
		})
	}
	_ = workers.Wait()
	t.Logf("%d distinct crash states of %d scenarios", total.Load(), len(all))
}

// explore runs the scenario once, with a look at each crash of it.
func (x *explorer) explore() error {
	w := x.begin()
	var failed error
	w.before = func(o op) error {
		if failed == nil {
			failed = x.at(w, o, true)
		}
		return failed
	}
	if err := x.run(w); err != nil {
		return err
	}
	x.total.Add(int64(len(x.seen)))
	return x.crashes(w, true)
}

// at is called before each operation. Between two syncs, a crash can leave less the
// earlier it comes, so it is enough to look before syncs and changes of folders.
func (x *explorer) at(w *world, o op, first bool) error {
	if o.what == "read" || o.what == "write" || o.what == "map" {
		return nil
	}
	if err := x.noPlaintext(w); err != nil {
		return err
	}
	if err := x.crashes(w, first); err != nil {
		return fmt.Errorf("crash before %s of %s: %w", o.what, o.on, err)
	}
	return nil
}

// noPlaintext: the journal of an encryption or a rekey holds none, until it is
// aborted.
func (x *explorer) noPlaintext(w *world) error {
	secret := x.operation == "rekey" || x.operation == "encrypt" && x.turnAfter == 0
	if w.journal != nil && secret && bytes.Contains(w.journal.visible, []byte(secretMark)) {
		return errors.New("there is plaintext in the journal")
	}
	return nil
}

// crashes looks at every state that a crash now could leave.
func (x *explorer) crashes(w *world, first bool) error {
	var writes []pendingWrite
	for _, f := range []*file{w.disk, w.journal} {
		if f != nil {
			for _, p := range f.pending {
				writes = append(writes, pendingWrite{f, p})
			}
		}
	}
	forms := make([]form, len(writes))
	return x.choose(w, writes, forms, 0, 0, first)
}

type pendingWrite struct {
	*file
	write
}

// choose gives each write a form, of which few are torn, and looks at the result.
func (x *explorer) choose(w *world, writes []pendingWrite, forms []form, i, torn int, first bool) error {
	if i == len(writes) {
		for _, phase := range []Phase{w.phase, w.renamed} {
			if phase == "" {
				continue
			}
			if err := x.look(w.after(writes, forms, phase), w, first); err != nil {
				return fmt.Errorf("phase %s, writes %v: %w", phase, describe(writes, forms), err)
			}
		}
		return nil
	}
	most := 1
	if x.pairs {
		most = 2
	}
	if !first {
		most = 0
	}
	for _, f := range []form{lost, kept} {
		forms[i] = f
		if err := x.choose(w, writes, forms, i+1, torn, first); err != nil {
			return err
		}
	}
	if torn == most {
		return nil
	}
	for n := i % x.every; n < tornForms(len(writes[i].data)); n += x.every {
		forms[i] = form(n)
		if err := x.choose(w, writes, forms, i+1, torn+1, first); err != nil {
			return err
		}
	}
	return nil
}

// form is how much of a write becomes durable: all, nothing, or one of its torn
// forms.
type form int

const (
	lost form = -1
	kept form = -2
)

// Torn forms of a write: for each place where it may be cut, what comes before or
// what comes after is lost; and for each sector, it alone or all but it. Cuts are at
// the borders of sectors and within them.
const (
	tornSector = 512
	tornAt     = 200 // within a sector
)

func tornForms(length int) int { return 6 * (length / tornSector) }

// apply brings a write in some form to a file.
func (f form) apply(to []byte, w write) {
	part := func(from, end int) { copy(to[w.offset+int64(from):w.offset+int64(end)], w.data[from:end]) }
	n := len(w.data)
	sector := int(f) / 6 * tornSector
	switch {
	case f == lost:
	case f == kept:
		part(0, n)
	case f%6 == 0:
		part(0, sector)
	case f%6 == 1:
		part(sector, n)
	case f%6 == 2:
		part(0, sector+tornAt)
	case f%6 == 3:
		part(sector+tornAt, n)
	case f%6 == 4:
		part(sector, sector+tornSector)
	case f%6 == 5:
		part(0, sector)
		part(sector+tornSector, n)
	}
}

func describe(writes []pendingWrite, forms []form) (out []string) {
	for i, w := range writes {
		out = append(out, fmt.Sprintf("%d+%d:%d", w.offset, len(w.data), forms[i]))
	}
	return out
}

// after is the world once a crash has left each write in its form.
func (w *world) after(writes []pendingWrite, forms []form, phase Phase) *world {
	image := func(f *file) *file {
		if f == nil {
			return nil
		}
		content := bytes.Clone(f.durable)
		for i, p := range writes {
			if p.file == f {
				forms[i].apply(content, p.write)
			}
		}
		return &file{visible: content, durable: bytes.Clone(content)}
	}
	return &world{disk: image(w.disk), journal: image(w.journal), phase: phase, holes: w.holes}
}

func (w *world) clone() *world {
	return w.after(nil, nil, w.phase)
}

var seed = maphash.MakeSeed()

func (w *world) hash() uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	h.Write(w.disk.durable)
	if w.journal != nil {
		h.Write(w.journal.durable)
	}
	h.WriteString(string(w.phase))
	return h.Sum64()
}

// look checks the state that a crash left. It came from a world in which the
// conversion had durably reached some position.
func (x *explorer) look(crashed, from *world, first bool) error {
	h := crashed.hash()
	if x.seen[h] {
		return nil
	}
	x.seen[h] = true
	if err := x.readable(crashed, from); err != nil {
		return err
	}
	for _, backward := range x.directions(h) {
		w := crashed.clone()
		if first && x.again > 0 && h%uint64(x.again) == 0 {
			var failed error
			w.before = func(o op) error {
				if failed == nil {
					failed = x.at(w, o, false)
				}
				return failed
			}
		}
		if err := x.end(w, backward); err != nil {
			return fmt.Errorf("recovery, backward %t: %w", backward, err)
		}
	}
	return nil
}

// directions are where users may go from here.
func (x *explorer) directions(h uint64) []bool {
	if x.turnAfter == 0 {
		return []bool{false}
	}
	return []bool{h&1 == 0}
}

// end takes a conversion to its end, wherever it has come to.
func (x *explorer) end(w *world, backward bool) error {
	switch w.phase {
	case Converted:
		backward = false
	case Reverted:
		backward = true
	}
	return x.finish(w, backward)
}

// readable checks that every sector can be read now, by what the journal tells.
func (x *explorer) readable(crashed, from *world) error {
	switch crashed.phase {
	case Preparing, Reverted:
		return same(crashed.disk.durable, x.old)
	case Converted:
		return same(crashed.disk.durable, x.new)
	}
	w := crashed.clone()
	j := x.job(w, false)
	f, err := j.Journal.Open()
	if err != nil {
		return err
	}
	journal, err := newJournal(f, &j)
	if err != nil {
		return err
	}
	c := &converter{Job: &j, journal: journal}
	if err := journal.open(&j); err != nil {
		return err
	}
	for i := range c.buffers {
		c.buffers[i] = make([]byte, journal.zone+2*blockSize)
	}
	pending, err := c.recover()
	if err != nil {
		return err
	}
	if c.at.Sequence < from.reached.Sequence {
		return fmt.Errorf("step %d was durable, and the journal tells of %d", from.reached.Sequence, c.at.Sequence)
	}
	read := bytes.Clone(w.disk.visible)
	want := bytes.Clone(x.old)
	copy(want, x.new[:c.at.Position])
	if pending != nil {
		_ = pending.eachRun(func(p []byte, offset int64) error {
			copy(read[offset:], p)
			if c.at.Backward {
				copy(want[offset:offset+int64(len(p))], x.old[offset:])
			} else {
				copy(want[offset:offset+int64(len(p))], x.new[offset:])
			}
			return nil
		})
	}
	return same(read, want)
}

func same(got, want []byte) error {
	if bytes.Equal(got, want) {
		return nil
	}
	return fmt.Errorf("wrong content %s", differences(got, want))
}
