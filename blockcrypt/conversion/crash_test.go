package conversion

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// effort says how much the crash model looks at.
type effort struct {
	shapes []shape
	faults int // torn writes and failed syncs, over all crashes of a history
	forms  int // of the torn forms of a write, one in so many
	whole  int // faults up to which all histories are looked at
	later  int // of those with more faults, one in so many

	sequences uint16 // steps and turns of a history up to which crashes are looked at
}

// Efforts, by the value of VMCRYPT_CRASH.
var efforts = map[string]effort{
	"":     {shapes: []shape{single}, faults: 1, forms: 9, whole: 1, sequences: 3},
	"long": {shapes: []shape{single, several}, faults: 2, forms: 1, whole: 1, later: 150, sequences: 5},
	"full": {shapes: []shape{single, several, hollow}, faults: 3, forms: 1, whole: 2, later: 170, sequences: 7},
}

// TestCrash is the crash model: docs/conversion.md.
func TestCrash(t *testing.T) {
	e, ok := efforts[os.Getenv("VMCRYPT_CRASH")]
	if !ok {
		t.Fatalf("VMCRYPT_CRASH is long, full, or nothing")
	}
	defer debug.SetGCPercent(debug.SetGCPercent(1000)) // there is more to do than to collect
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(4 << 30))
	var all []*explorer
	for _, s := range scenarios(t, e.shapes...) {
		all = append(all, newExplorer(s, e))
	}
	total := exploreAll(t, all)
	t.Logf("%d distinct crash states, %d recoveries, %d scenarios", total.states.Load(), total.recoveries.Load(), len(all))
}

// tally counts what was looked at.
type tally struct{ states, recoveries atomic.Int64 }

func exploreAll(t *testing.T, all []*explorer) *tally {
	total := new(tally)
	var next atomic.Int64
	var workers errgroup.Group
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() error {
			for i := next.Add(1) - 1; i < int64(len(all)) && !t.Failed(); i = next.Add(1) - 1 {
				start := time.Now()
				x := all[i]
				if err := x.explore(total); err != nil {
					t.Errorf("%s: %v", x.name, err)
				}
				progress("%s: %d states in %.0f s; %d so far", x.name, len(x.seen), time.Since(start).Seconds(), total.states.Load())
				x.seen, x.known = nil, nil // memory for the next
			}
			return nil
		})
	}
	_ = workers.Wait()
	return total
}

// progress is told at once, unlike what a test logs.
func progress(format string, args ...any) {
	if os.Getenv("VMCRYPT_CRASH") != "" {
		fmt.Fprintf(os.Stderr, format+"\n", args...)
	}
}

// explorer looks at everything that crashes can leave of a scenario: of a run, of
// the run that recovers, and so on until there is nothing new. Crashes may be as
// many as they like; faults, which are torn writes and failed syncs, are bounded.
// From each state the conversion is ended in both directions.
type explorer struct {
	*scenario
	effort
	total  *tally
	seen   map[uint64]visit // worlds, by their hash
	known  map[uint64]int8  // where runs have been to, with which faults left, plus 1
	queues [4][]*visitor    // worlds to look at, by the faults that are left
	spare  []*visitor
}

// visitor is a world that waits for its runs, or a run in it.
type visitor struct {
	*world
	hash   uint64
	faults int            // left
	writes []pendingWrite // at the crash that is looked at
	how    *trail
}

// trail tells how a world came to be.
type trail struct {
	before *trail
	op     op
	failed bool
	writes []pendingWrite
}

func (t *trail) String() string {
	if t == nil {
		return ""
	}
	what := "crash before"
	if t.failed {
		what = "failed"
	}
	out := fmt.Sprintf("%s\n%s %s of %s:", t.before, what, t.op.what, t.op.on)
	for _, w := range t.writes {
		out += fmt.Sprintf(" file %d %d+%d form %d", w.file, w.first, len(w.sectors), w.form)
	}
	return out
}

// visit is what is known of a world.
type visit struct {
	faults   int8   // that were left, plus 1
	sequence uint16 // of the marker that it recovers to, plus 1
	reached  uint16 // the most that it had to recover to
}

// atEnd is after all sequences: the journal is not looked at any more.
const atEnd = 1 << 15

func (v visit) check() error {
	if v.sequence != 0 && v.sequence <= v.reached {
		return fmt.Errorf("step %d was durable, and the journal tells of %d", v.reached, v.sequence-1)
	}
	return nil
}

func newExplorer(s *scenario, e effort) *explorer {
	return &explorer{scenario: s, effort: e, seen: map[uint64]visit{}, known: map[uint64]int8{}}
}

func (x *explorer) explore(total *tally) error {
	x.total = total
	v := x.visitor()
	v.become(x.begin())
	if _, err := x.visit(v, x.faults, 0); err != nil {
		return err
	}
	return x.drain(x.faults)
}

func (x *explorer) visitor() *visitor {
	if n := len(x.spare); n > 0 {
		v := x.spare[n-1]
		x.spare = x.spare[:n-1]
		return v
	}
	return &visitor{world: newWorld()}
}

func (x *explorer) done(v *visitor) { x.spare = append(x.spare, v) }

// visit takes a world to be looked at, from which the conversion had durably
// reached some marker.
func (x *explorer) visit(v *visitor, faults int, reached uint16) (explored bool, err error) {
	v.hash, v.faults = v.world.hash(), faults
	seen := x.seen[v.hash]
	if seen.faults == 0 {
		x.total.states.Add(1)
	}
	explored = int(seen.faults) > faults
	seen.faults, seen.reached = max(seen.faults, int8(faults+1)), max(seen.reached, reached)
	x.seen[v.hash] = seen
	if explored {
		x.done(v)
		return true, seen.check()
	}
	x.queues[faults] = append(x.queues[faults], v)
	return false, nil
}

// drain looks at all worlds with some faults left.
func (x *explorer) drain(faults int) error {
	for n := len(x.queues[faults]); n > 0; n = len(x.queues[faults]) {
		v := x.queues[faults][n-1]
		x.queues[faults] = x.queues[faults][:n-1]
		for _, backward := range x.directions(v.hash, faults) {
			if err := x.run(v, backward); err != nil {
				return fmt.Errorf("%w, backward %t, after%s", err, backward, v.how)
			}
		}
		x.done(v)
	}
	return nil
}

// recovers notes which marker a world recovers to.
func (x *explorer) recovers(h uint64, sequence uint16) error {
	v := x.seen[h]
	v.sequence = sequence + 1
	x.seen[h] = v
	return v.check()
}

// directions are where users may go from here: both, but where there are no faults
// left one of them, by chance.
func (x *explorer) directions(h uint64, faults int) []bool {
	if faults == 0 {
		return []bool{h>>40&1 == 0}
	}
	return []bool{false, true}
}

// errKnown stops a run that has come to where another was before.
var errKnown = errors.New("known from here")

// run takes a copy of a world to the end, and looks at each crash on the way.
func (x *explorer) run(from *visitor, backward bool) error {
	v := x.visitor()
	defer x.done(v)
	v.become(from.world)
	w, h := v.world, from.hash
	v.hash, v.faults, v.how = h, from.faults, from.how
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	var failed error
	at, first := uint16(0), true // at is what the run knows to be durable
	w.before = func(o op) error {
		if failed == nil && o.changes() && at <= x.sequences {
			failed = x.at(v, o, at)
		}
		return failed
	}
	j := x.job(w, backward)
	j.durable = func(m marker) { at = uint16(m.Sequence) }
	j.observe = func(m marker, pending []*step) {
		if at = uint16(m.Sequence); first {
			first, failed = false, cmp.Or(failed, x.recovers(h, at), x.readable(w, m, pending))
		}
		if x.enter(w.hashWith(m, pending, backward), v.faults) {
			cancel(errKnown)
		}
	}
	x.total.recoveries.Add(1)
	err := x.toEnd(ctx, w, j)
	if first {
		failed = cmp.Or(failed, x.recovers(h, atEnd))
	}
	return cmp.Or(failed, err)
}

// enter notes that a run has come somewhere, and tells whether one was there before.
func (x *explorer) enter(h uint64, faults int) (known bool) {
	if int(x.known[h]) > faults {
		return true
	}
	x.known[h] = int8(faults + 1)
	return false
}

// toEnd is finish for a run that may be stopped.
func (x *explorer) toEnd(ctx context.Context, w *world, j Job) error {
	want, content := x.end(w, j.Backward)
	if j.Phase != Converting {
		before := x.old
		if j.Phase == Converted {
			before = x.new
		}
		if err := same(w.disk.visible, before); err != nil {
			return fmt.Errorf("phase %s: %w", j.Phase, err)
		}
	}
	switch phase, err := Run(ctx, j); {
	case errors.Is(err, errKnown):
		return nil
	case err != nil:
		return err
	case phase != want:
		return fmt.Errorf("the phase is %s, want %s", phase, want)
	}
	return w.atRest(want, content)
}

// readable checks that every sector can be read now, by what the journal tells: at
// the start of a run, before the disk has changed.
func (x *explorer) readable(w *world, at marker, pending []*step) error {
	if x.secret(at) && w.journal.plain() {
		return errors.New("there is plaintext in the journal")
	}
	want := func(offset, end int64, position int64) []byte {
		if offset < position {
			return x.new[offset:end]
		}
		return x.old[offset:end]
	}
	position := at.Position
	for i, read := range w.disk.visible {
		offset := int64(i * sectorSize)
		if slices.ContainsFunc(pending, func(s *step) bool { return s != nil && s.has(offset) }) {
			continue
		}
		if !bytes.Equal(read.data[:], want(offset, offset+sectorSize, position)) {
			return fmt.Errorf("wrong content at %d, the position being %d", offset, position)
		}
	}
	for _, step := range pending {
		err := step.eachRun(func(p []byte, offset int64) error {
			if !bytes.Equal(p, want(offset, offset+int64(len(p)), step.After.Position)) {
				return fmt.Errorf("wrong content in the record of %d, the position being %d", offset, position)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// secret tells whether the journal may hold no plaintext: that it gets none from
// here on, and has none of before.
func (x *explorer) secret(at marker) bool {
	switch x.operation {
	case "encrypt":
		return !at.Backward
	case "decrypt":
		return at.Backward
	default:
		return true
	}
}

func (s *step) has(offset int64) bool {
	return slices.ContainsFunc(s.runs(), func(r run) bool { return offset >= r.Offset && offset < r.Offset+r.Length })
}

// at looks at every state that a crash now could leave, before an operation, and at
// what is left when it fails.
func (x *explorer) at(v *visitor, o op, reached uint16) error {
	v.writes = v.writes[:0]
	for i, f := range v.files() {
		for _, p := range f.pending {
			v.writes = append(v.writes, pendingWrite{i, p, lost})
		}
	}
	if err := x.choose(v, 0, choice{op: o, faults: v.faults, reached: reached}); err != nil {
		return err
	}
	if o.what != "sync" || v.faults == 0 {
		return nil
	}
	return x.fail(v, 0, choice{op: o, failed: true, faults: v.faults - 1, reached: reached})
}

// pendingWrite is a write on the way, and what becomes of it.
type pendingWrite struct {
	file int // in a world
	write
	form form
}

// choice is what was chosen so far.
type choice struct {
	op      op
	failed  bool
	faults  int // left
	reached uint16
	hash    uint64 // of the forms
}

// choose gives each write a form, and visits the result.
func (x *explorer) choose(v *visitor, i int, c choice) error {
	if i == len(v.writes) {
		return x.crash(v, c)
	}
	for _, f := range []form{lost, kept} {
		v.writes[i].form = f
		if err := x.choose(v, i+1, c); err != nil {
			return err
		}
	}
	if c.faults == 0 {
		return nil
	}
	torn := c
	torn.faults--
	one := x.oneIn(torn, x.forms)
	for n := c.with(v, i, 0).pick(one); n < tornForms(v.writes[i].write); n += one {
		torn.hash = c.with(v, i, form(n)).hash
		v.writes[i].form = form(n)
		if err := x.choose(v, i+1, torn); err != nil {
			return err
		}
	}
	return nil
}

// with notes that a write got a form.
func (c choice) with(v *visitor, i int, f form) choice {
	c.hash = mix(c.hash^uint64(i)<<32^uint64(f)^v.hash, 0x9e3779b97f4a7c15)
	return c
}

// oneIn tells of how many faults one is looked at: of the later ones of a history
// not all are, and of its first ones as many as there should be.
func (x *explorer) oneIn(c choice, first int) int {
	if x.faults-c.faults > x.whole {
		return x.later
	}
	return first
}

// pick draws one of so many, always the same.
func (c choice) pick(of int) int { return int(c.hash >> 7 % uint64(of)) }

// crash visits what is left, once per value of what changes as a whole.
func (x *explorer) crash(w *visitor, c choice) error {
	for _, phase := range w.phase.values() {
		for _, there := range w.there.values() {
			v := x.visitor()
			v.phase, v.there, v.holes = cell[Phase]{phase, phase}, cell[bool]{there, there}, w.holes
			for i, f := range v.files() {
				f.crash(w.files()[i])
			}
			for _, p := range w.writes {
				p.form.apply(v.files()[p.file].durable, p.write)
			}
			for _, f := range v.files() {
				f.restart()
			}
			if err := x.next(w, v, c); err != nil {
				return err
			}
		}
	}
	return nil
}

// next visits what came of a crash. Where it took a fault, all that follows is
// looked at now, so that no more worlds wait than need be.
func (x *explorer) next(from, v *visitor, c choice) error {
	explored, err := x.visit(v, c.faults, c.reached)
	if err != nil || explored {
		return err
	}
	v.how = &trail{from.how, c.op, c.failed, slices.Clone(from.writes)}
	for faults := c.faults; faults < from.faults; faults++ {
		if err := x.drain(faults); err != nil {
			return err
		}
	}
	return nil
}

// fail visits what is left by a failed sync: each write to the file is durable, or
// is lost with or without being visible, for now or until something else is written.
// What changes as a whole is visible, and not durable.
func (x *explorer) fail(w *visitor, i int, c choice) error {
	if i < len(w.writes) {
		forms := []form{kept, lost, ghost, fading}
		if w.files()[w.writes[i].file] != w.on(c.op) {
			forms = []form{kept, lost}
		}
		for _, f := range forms {
			w.writes[i].form = f
			if err := x.fail(w, i+1, c.with(w, i, f)); err != nil {
				return err
			}
		}
		return nil
	}
	if c.pick(x.oneIn(c, 1)) != 0 {
		return nil
	}
	v := x.visitor()
	v.become(w.world)
	for _, p := range w.writes {
		p.form.fail(v.files()[p.file], p.write)
	}
	return x.next(w, v, c)
}

// on is the file that is operated on, if any.
func (w *world) on(o op) *file {
	switch o.on {
	case "disk":
		return w.disk
	case "journal":
		return w.journal
	}
	return nil
}

// form is what becomes of a write: all of it is durable, or nothing, or one of its
// torn forms.
type form int

const (
	lost   form = -1
	kept   form = -2
	ghost  form = -3 // visible, but not durable
	fading form = -4 // likewise, until the next write
)

// Torn forms of a write: for each place where it may be cut, what comes before or
// what comes after is lost; and for each sector, it alone or all but it. Cuts are at
// the borders of sectors and within them.
const (
	formsPerSector = 8

	early = 24 // within a marker, and its sector
	late  = 300
)

func tornForms(w write) int { return formsPerSector * len(w.sectors) }

// firstHalf is torn in the middle.
func firstHalf(w write) form { return form(formsPerSector * (len(w.sectors) / 2)) }

// apply brings a write in some form to a file.
func (f form) apply(to []*sector, w write) {
	to = to[w.first : w.first+len(w.sectors)]
	if f == kept {
		copy(to, w.sectors)
	}
	if f < 0 {
		return
	}
	i, old := int(f)/formsPerSector, to[int(f)/formsPerSector]
	before, after := f%2 == 0, f%2 == 1 // what is kept of the other sectors
	switch f % formsPerSector {
	case 0: // up to here
	case 1: // from here
		old = w.sectors[i]
	case 2:
		old = tear(w.sectors[i], old, early)
	case 3:
		old = tear(old, w.sectors[i], early)
	case 4:
		old = tear(w.sectors[i], old, late)
	case 5:
		old = tear(old, w.sectors[i], late)
	case 6: // all but this
		before, after = true, true
	case 7: // this alone
		before, after = false, false
		old = w.sectors[i]
	}
	if before {
		copy(to[:i], w.sectors[:i])
	}
	if after {
		copy(to[i+1:], w.sectors[i+1:])
	}
	to[i] = old
}

// tear is the beginning of one sector, and the rest of another.
func tear(begin, rest *sector, at int) *sector { return rest.with(begin.data[:at]) }

// fail is apply where the sync failed, and the program goes on.
func (f form) fail(to *file, w write) {
	end := w.first + len(w.sectors)
	switch f {
	case kept:
		copy(to.durable[w.first:], w.sectors)
	case lost:
		copy(to.visible[w.first:end], to.durable[w.first:end])
	case fading:
		to.fading = append(to.fading, w)
	}
}

// hash tells worlds apart.
func (w *world) hash() uint64 {
	h := mix(uint64(len(w.phase.visible))<<8|uint64(len(w.phase.durable)), 0xd1b54a32d192ed03)
	h = w.disk.hash(h)
	if w.there.visible || w.there.durable {
		h = w.journal.hash(h ^ 1)
	}
	if w.there.pending() {
		h = mix(h, 0xa0761d6478bd642f)
	}
	return h
}

// hash adds up what is in each place, so that none waits for the one before.
func (f *file) hash(h uint64) uint64 {
	sum, at := h, uint64(0)
	for i, s := range f.visible {
		at += 0xe7037ed1a0b428db
		sum += mix(s.hash^at, 0x589965cc75374cc3)
		if d := f.durable[i]; d != s {
			sum += mix(d.hash^at, 0x8ebc6af09c88c6e3)
		}
	}
	h = mix(sum, 0xd1b54a32d192ed03)
	for _, w := range f.fading {
		h = mix(h^uint64(w.first), 0xa0761d6478bd642f)
	}
	return h
}

// hashWith tells apart worlds with what a run in them knows.
func (w *world) hashWith(at marker, pending []*step, backward bool) uint64 {
	h := mix(w.hash()^at.Sequence, uint64(at.Position)|1)
	if at.Backward {
		h++
	}
	if backward {
		h ^= 1 << 63
	}
	for _, s := range pending {
		if s != nil {
			h = hashOf(h, s.record[:2*blockSize+s.dataSize()])
		}
	}
	return h
}

// hashOf is a hash like wyhash: the same in each process.
func hashOf(seed uint64, p []byte) uint64 {
	a, b := seed^0xa0761d6478bd642f, seed^0xe7037ed1a0b428db
	for ; len(p) >= 32; p = p[32:] {
		a = mix(binary.LittleEndian.Uint64(p)^0x8ebc6af09c88c6e3, binary.LittleEndian.Uint64(p[8:])^a)
		b = mix(binary.LittleEndian.Uint64(p[16:])^0x589965cc75374cc3, binary.LittleEndian.Uint64(p[24:])^b)
	}
	for _, c := range p {
		a = mix(a^uint64(c), 0x1d8e4e27c47d124f)
	}
	return mix(a, b)
}

func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}
