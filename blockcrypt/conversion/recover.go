package conversion

import (
	"errors"
	"fmt"
)

// look finds out how far the conversion has come, and gives the steps whose
// records may have been on their way to the disk: none, one or two, in order.
func (c *converter) look() (pending []*step, err error) {
	heads, err := c.heads()
	if err != nil {
		return nil, err
	}
	if c.at, err = c.latest(heads); err != nil {
		return nil, err
	}
	return c.pending(heads)
}

// checkUnchanged fails if the journal knows of a step, or is that of another
// conversion. Its header need not be whole.
func (c *converter) checkUnchanged() error {
	var ok bool
	if c.journal.layout, ok = layoutOf(c.journal.Size()); !ok {
		return nil
	}
	h, err := peekHeader(c.journal)
	switch {
	case err == nil && h.Conversion != c.UUID:
		return fmt.Errorf("%w: it is of another conversion, of which the descriptor knows nothing: that may be an old one", ErrJournal)
	case err != nil && !errors.Is(err, ErrJournal):
		return err
	}
	heads, err := c.heads()
	if err != nil {
		return err
	}
	latest, err := c.latest(heads)
	if heads[0] != nil || heads[1] != nil || latest.Sequence > 0 {
		return fmt.Errorf("%w: it tells of changed sectors, of which the descriptor knows nothing: that is an old one", ErrJournal)
	}
	if errors.Is(err, ErrJournal) {
		err = nil // it was cut off
	}
	return err
}

// writeAgain makes sure that the marker and these records are durable. What was
// read may be in the page cache only, if an earlier sync failed. So they are written
// and synced again before anything relies on them, and the data will be: as the same
// bytes, which a crash meanwhile can't tear.
func (c *converter) writeAgain(pending []*step) error {
	if err := c.writeMarker(c.at); err != nil {
		return err
	}
	for _, s := range pending {
		if err := c.writeRecord(s); err != nil {
			return err
		}
	}
	return c.syncJournal()
}

// heads reads those of both records. The two copies of a head are there so that
// damage to one is not taken for a record that was never written. Where neither is
// whole, its record was not durable, and its data are not on their way.
func (c *converter) heads() (heads [2]*head, err error) {
	for slot := range heads {
		h := new(head)
		err := c.readHead(uint64(slot), h)
		switch {
		case err == nil:
			heads[slot] = h
		case !errors.Is(err, errBlock):
			return heads, err
		}
	}
	return heads, nil
}

func (c *converter) readHead(slot uint64, h *head) error {
	at := c.journal.record(slot)
	err := c.journal.readBlock(at, kindHead, h)
	if errors.Is(err, errBlock) {
		err = c.journal.readBlock(at+blockSize, kindHead, h)
	}
	return err
}

// latest gives the last marker that was written.
func (c *converter) latest(heads [2]*head) (latest marker, err error) {
	markers, err := c.markers(heads)
	if err != nil {
		return latest, err
	}
	for i, m := range markers {
		if i == 0 || m.Sequence > latest.Sequence {
			latest = m
		}
	}
	if len(markers) == 0 || latest.Position < 0 || latest.Position > c.Disk.Size() {
		return latest, fmt.Errorf("%w: it does not tell how far the conversion has come", ErrJournal)
	}
	return latest, nil
}

// markers gives all that can be read. The head of a record tells, too, which one
// was durable then: another copy, should the marker be damaged.
func (c *converter) markers(heads [2]*head) (markers []marker, err error) {
	for slot, h := range heads {
		var m marker
		err := c.journal.readBlock(c.journal.marker(uint64(slot)), kindMarker, &m)
		switch {
		case err == nil:
			markers = append(markers, m)
		case !errors.Is(err, errBlock):
			return nil, err
		}
		if h != nil {
			markers = append(markers, h.Durable)
		}
	}
	return markers, nil
}

// pending gives the steps after the latest marker that have a record. Where two
// have, the marker of the first did not become durable, and the second was not begun;
// or else that marker was damaged, and the second may be half done.
func (c *converter) pending(heads [2]*head) (pending []*step, err error) {
	for sequence := c.at.Sequence + 1; sequence <= c.at.Sequence+2; sequence++ {
		h := heads[sequence%2]
		switch {
		case h == nil || h.After.Sequence < sequence:
			continue
		case h.After.Sequence != c.at.Sequence+1+uint64(len(pending)):
			return nil, fmt.Errorf("%w: a record before that of step %d is missing", ErrJournal, h.After.Sequence)
		}
		s, err := c.load(h)
		if err != nil {
			return nil, err
		}
		pending = append(pending, s)
	}
	return pending, nil
}

// load gives the step of a record. Its data are in the journal or, where these are
// damaged, on the disk, if all of them have arrived there. If none has, the record
// may have been torn, and they are made anew.
func (c *converter) load(h *head) (*step, error) {
	if !c.plausible(h) {
		return nil, fmt.Errorf("%w: step %d cannot be", ErrJournal, h.After.Sequence)
	}
	s := c.newStep(*h)
	return s, c.loadData(s)
}

func (c *converter) loadData(s *step) error {
	if n, err := c.journal.ReadAt(s.data(), c.journal.record(s.After.Sequence)+2*blockSize); n < len(s.data()) {
		return fmt.Errorf("read the journal: %w", err)
	}
	if c.journal.fits(s.Is, s.data()) {
		return nil
	}
	if err := s.eachRun(c.read); err != nil {
		return err
	}
	if c.journal.fits(s.Was, s.data()) {
		return c.transform(s)
	}
	if !c.journal.fits(s.Is, s.data()) {
		return fmt.Errorf("%w: the data of step %d, at offset %d", ErrJournal, s.After.Sequence, s.Run[0].Offset)
	}
	return nil
}

// plausible checks what is used as an offset or a length.
func (c *converter) plausible(h *head) bool {
	if h.Runs == 0 || h.Runs > maxRuns || h.After.Position < 0 || h.After.Position > c.Disk.Size() {
		return false
	}
	next := int64(0)
	for _, r := range h.runs() {
		if r.Offset < next || r.Length <= 0 || r.Length > c.journal.zone || r.Offset > c.Disk.Size()-r.Length {
			return false
		}
		next = r.Offset + r.Length
	}
	return h.dataSize() <= c.journal.zone
}
