package conversion

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/vmcrypt/vmcrypt/blockcrypt"
	"github.com/vmcrypt/vmcrypt/image"
)

// order is in which order the parts of a round are done. Side by side is the zero
// order; the others make a run repeatable.
type order int

const (
	sideBySide order = iota
	applyFirst
	recordFirst
)

// converter does the steps of a job.
type converter struct {
	*Job
	journal *journal
	at      marker    // is durable
	buffers [4][]byte // of the steps on their way
}

// step is a part of the disk on its way.
type step struct {
	head
	record []byte // as it is in the journal
}

// data is the content of all runs, one after the other.
func (s *step) data() []byte { return s.record[2*blockSize:][:s.dataSize()] }

// eachRun gives the runs with their data.
func (s *step) eachRun(do func(p []byte, offset int64) error) error {
	data := s.data()
	for _, r := range s.runs() {
		if err := do(data[:r.Length], r.Offset); err != nil {
			return err
		}
		data = data[r.Length:]
	}
	return nil
}

// run goes on where the journal says, and to the end.
func (c *converter) run(ctx context.Context) error {
	pending, err := c.resume()
	if err != nil {
		return err
	}
	return c.steps(ctx, pending)
}

// resume makes what the last run has left fit for steps.
func (c *converter) resume() (pending *step, err error) {
	begun, err := c.look()
	if err != nil {
		return nil, err
	}
	if err := c.writeAgain(begun); err != nil {
		return nil, err
	}
	// No sector changes before this is durable. What the descriptor said may have
	// been in the page cache only, if an earlier SetPhase failed.
	if err := c.Descriptor.SetPhase(Converting); err != nil {
		return nil, err
	}
	c.watch(begun...)
	return c.catchUp(begun)
}

// catchUp ends the steps that have begun, all or, if the direction stays, all but
// the last, and turns if need be.
func (c *converter) catchUp(begun []*step) (pending *step, err error) {
	turn := c.at.Backward != c.Backward
	if n := len(begun); n > 0 && !turn {
		pending, begun = begun[n-1], begun[:n-1]
	}
	for _, s := range begun {
		if err := c.finish(s); err != nil {
			return nil, err
		}
	}
	if turn {
		err = c.turn()
	}
	return pending, err
}

// finish brings a step to its end.
func (c *converter) finish(s *step) error {
	if err := c.apply(s); err != nil {
		return err
	}
	return c.mark(s.After)
}

// turn goes the other way from here on. No plaintext is left in the journal if what
// it gets from then on is ciphertext.
func (c *converter) turn() error {
	if from, to := c.ciphers(c.Backward); from == nil && to != nil {
		if err := c.wipeRecords(); err != nil {
			return err
		}
	}
	turned := c.at
	turned.Sequence++
	turned.Backward = c.Backward
	return c.mark(turned)
}

// wipeRecords overwrites the data of both records, durably. Their steps are done.
func (c *converter) wipeRecords() error {
	zeros := c.buffers[0][:c.journal.zone]
	clear(zeros)
	for slot := range uint64(2) {
		if _, err := c.journal.WriteAt(zeros, c.journal.record(slot)+2*blockSize); err != nil {
			return fmt.Errorf("write the journal: %w", err)
		}
	}
	return c.syncJournal()
}

// mark makes a marker durable.
func (c *converter) mark(m marker) error {
	if err := c.writeMarker(m); err != nil {
		return err
	}
	if err := c.syncJournal(); err != nil {
		return err
	}
	c.reached(m)
	return nil
}

// onTheWay are the steps that are under way, in order; nil for none.
type onTheWay struct {
	recorded *step  // durably
	changed  *step  // has its new data
	fetched  *step  // has its old data
	last     marker // once all of them are done
}

// steps does rounds until there is nothing left to do.
func (c *converter) steps(ctx context.Context, pending *step) error {
	w := onTheWay{recorded: pending, last: c.at}
	if pending != nil {
		w.last = pending.After
	}
	for ctx.Err() == nil {
		next, err := c.round(w)
		if err != nil {
			return err
		}
		if next.recorded == nil && next.changed == nil && next.fetched == nil {
			return nil
		}
		w = next
	}
	return context.Cause(ctx)
}

// round brings each of the steps one further: data of the first to the disk, of the
// second to the journal; those of the third are changed, and those of another
// fetched. One sync then makes durable both the marker of the first, so that its
// record may be overwritten in the next round, and the record of the second, so
// that its data may go to the disk.
func (c *converter) round(w onTheWay) (next onTheWay, err error) {
	next = onTheWay{recorded: w.changed, changed: w.fetched}
	err = c.together(
		func() error { return c.apply(w.recorded) },
		func() error { return c.record(w.changed) },
		func() error { return c.change(w.fetched) },
		func() (err error) {
			next.fetched, next.last, err = c.fetch(w.last)
			return err
		})
	if err != nil || w.recorded == nil && w.changed == nil {
		return next, err
	}
	return next, c.commit(w.recorded, w.changed)
}

// commit makes durable that a step is done, and the record of the next.
func (c *converter) commit(done, recorded *step) error {
	if done != nil {
		if err := c.writeMarker(done.After); err != nil {
			return err
		}
	}
	if err := c.syncJournal(); err != nil {
		return err
	}
	if done != nil {
		c.reached(done.After)
	}
	c.watch(recorded)
	return nil
}

// together does the parts of a round, which do not depend on each other.
func (c *converter) together(parts ...func() error) error {
	switch c.serial {
	case applyFirst:
		return inOrder(parts)
	case recordFirst:
		slices.Reverse(parts)
		return inOrder(parts)
	}
	var group errgroup.Group
	for _, do := range parts {
		group.Go(do)
	}
	return group.Wait()
}

func inOrder(parts []func() error) error {
	for _, do := range parts {
		if err := do(); err != nil {
			return err
		}
	}
	return nil
}

// reached notes that a marker is durable.
func (c *converter) reached(m marker) {
	if c.Progress != nil {
		c.Progress(m.Position - c.at.Position)
	}
	c.at = m
	if c.durable != nil {
		c.durable(m)
	}
}

// watch shows tests what is durable.
func (c *converter) watch(pending ...*step) {
	if c.observe != nil {
		c.observe(c.at, pending)
	}
}

// apply brings the data of a step, whose record is durable, to the disk.
func (c *converter) apply(s *step) error {
	if s == nil {
		return nil
	}
	err := s.eachRun(func(p []byte, offset int64) error {
		if _, err := c.Disk.WriteAt(p, offset); err != nil {
			return fmt.Errorf("convert at offset %d: %w", offset, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := c.Disk.Flush(); err != nil {
		return fmt.Errorf("make the disk durable: %w", err)
	}
	return nil
}

// fetch reads the step that comes after start; nil if there is none.
func (c *converter) fetch(start marker) (s *step, last marker, err error) {
	runs, after, err := c.plan(start)
	if err != nil || len(runs) == 0 {
		return nil, start, err
	}
	s = c.newStep(head{After: after})
	s.Runs = uint32(copy(s.Run[:], runs))
	return s, after, s.eachRun(c.read)
}

// newStep gives a step its buffer. Its turn comes again when the step is done.
func (c *converter) newStep(h head) *step {
	return &step{head: h, record: c.buffers[h.After.Sequence%uint64(len(c.buffers))]}
}

// record writes the record of a step. It takes the place of the record of the step
// before the last, whose marker is durable.
func (c *converter) record(s *step) error {
	if s == nil {
		return nil
	}
	s.Durable = c.at
	return c.writeRecord(s)
}

// read fills p from the disk. After an error it looks for the place.
func (c *converter) read(p []byte, offset int64) error {
	n, err := c.Disk.ReadAt(p, offset)
	if n == len(p) {
		return nil
	}
	for len(p) > blockSize {
		if n, again := c.Disk.ReadAt(p[:blockSize], offset); n < blockSize {
			err = again
			break
		}
		p, offset = p[blockSize:], offset+blockSize
	}
	return fmt.Errorf("read at offset %d: %w", offset, err)
}

// change gives a step its new data, with the tags of both.
func (c *converter) change(s *step) error {
	if s == nil {
		return nil
	}
	s.Was = c.journal.sign(s.data())
	if err := c.transform(s); err != nil {
		return err
	}
	s.Is = c.journal.sign(s.data())
	return nil
}

// transform makes new data of old ones.
func (c *converter) transform(s *step) error {
	from, to := c.ciphers(s.After.Backward)
	return s.eachRun(blockcrypt.Change(from, to, c.Holes).Data)
}

// ciphers are those of the data that are replaced and of those that replace them.
func (c *converter) ciphers(backward bool) (from, to *blockcrypt.Cipher) {
	if backward {
		return c.To, c.From
	}
	return c.From, c.To
}

// writeRecord puts the head before the data, twice.
func (c *converter) writeRecord(s *step) error {
	block := c.journal.encode(kindHead, &s.head)
	copy(s.record, block)
	copy(s.record[blockSize:], block)
	if _, err := c.journal.WriteAt(s.record[:2*blockSize+s.dataSize()], c.journal.record(s.After.Sequence)); err != nil {
		return fmt.Errorf("write the journal: %w", err)
	}
	return nil
}

func (c *converter) writeMarker(m marker) error {
	if err := c.journal.writeBlock(c.journal.marker(m.Sequence), kindMarker, &m); err != nil {
		return fmt.Errorf("write the journal: %w", err)
	}
	return nil
}

func (c *converter) syncJournal() error {
	if err := c.journal.Flush(); err != nil {
		return fmt.Errorf("make the journal durable: %w", err)
	}
	return nil
}

// plan finds what a step after start takes: runs of data, of no more than a zone
// together, and the marker once they are done.
func (c *converter) plan(start marker) (runs []run, after marker, err error) {
	after = start
	after.Sequence++
	room := c.journal.zone
	const widest = 1 << 30
	for window := c.journal.zone; len(runs) == 0 && !c.atEnd(after.Position); window = min(2*window, widest) {
		offset, length := c.window(after.Position, window)
		extents, err := c.extents(offset, length)
		if err != nil {
			return nil, after, fmt.Errorf("map of the holes at offset %d: %w", offset, err)
		}
		if c.Backward {
			runs, after.Position = takeLast(extents, room)
		} else {
			runs, after.Position = takeFirst(extents, room)
		}
	}
	return runs, after, nil
}

// atEnd tells whether nothing lies ahead of a position.
func (c *converter) atEnd(position int64) bool {
	if c.Backward {
		return position == 0
	}
	return position == c.Disk.Size()
}

// window is what lies ahead of a position, up to some size.
func (c *converter) window(position, size int64) (offset, length int64) {
	if c.Backward {
		offset = max(position-size, 0)
		return offset, position - offset
	}
	return position, min(size, c.Disk.Size()-position)
}

// extents maps a part of the disk. With Fill, all of it is data.
func (c *converter) extents(offset, length int64) ([]image.Extent, error) {
	if c.Holes == blockcrypt.Fill {
		return []image.Extent{{Offset: offset, Length: length}}, nil
	}
	return image.Runs(c.Disk, offset, length)
}

// takeFirst takes the data at the start of a map, as far as there is room, and
// says where it stopped.
func takeFirst(extents []image.Extent, room int64) (runs []run, position int64) {
	for _, e := range extents {
		position = e.Offset + e.Length
		if e.Hole {
			continue
		}
		end := min(position, e.Offset+room)
		if len(runs) == maxRuns {
			end = e.Offset
		}
		if e.Offset < end {
			runs, room = append(runs, run{e.Offset, end - e.Offset}), room-(end-e.Offset)
		}
		if end < position {
			return runs, end
		}
	}
	return runs, position
}

// takeLast takes the data at the end of a map, likewise.
func takeLast(extents []image.Extent, room int64) (runs []run, position int64) {
	for _, e := range slices.Backward(extents) {
		position = e.Offset
		if e.Hole {
			continue
		}
		end := e.Offset + e.Length
		start := max(position, (end-room+blockSize-1)/blockSize*blockSize)
		if len(runs) == maxRuns {
			start = end
		}
		if start < end {
			runs, room = append(runs, run{start, end - start}), room-(end-start)
		}
		if start > position {
			position = start
			break
		}
	}
	slices.Reverse(runs)
	return runs, position
}
