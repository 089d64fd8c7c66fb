package conversion

import (
	"errors"
	"fmt"
)

// recover finds out how far the conversion has come, and gives the step whose
// record may have been on its way to the disk; nil if there is none.
//
// What was read may be in the page cache only, if an earlier sync failed. So the
// marker and the record are written and synced again before anything relies on
// them, and the data will be: as the same bytes, which a crash meanwhile can't tear.
func (c *converter) recover() (pending *step, err error) {
	heads, err := c.heads()
	if err != nil {
		return nil, err
	}
	if c.at, err = c.latest(heads); err != nil {
		return nil, err
	}
	if pending, err = c.pending(heads); err != nil {
		return nil, err
	}
	if err := c.writeMarker(c.at); err != nil {
		return nil, err
	}
	if pending != nil {
		if err := c.writeRecord(pending); err != nil {
			return nil, err
		}
	}
	return pending, c.syncJournal()
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

// latest gives the last marker that was written. The head of a record tells, too,
// which one was durable then: the other copy, should the marker be damaged.
func (c *converter) latest(heads [2]*head) (latest marker, err error) {
	found := false
	consider := func(m marker) {
		if !found || m.Sequence > latest.Sequence {
			latest, found = m, true
		}
	}
	for slot := range uint64(2) {
		var m marker
		err := c.journal.readBlock(c.journal.marker(slot), kindMarker, &m)
		switch {
		case err == nil:
			consider(m)
		case !errors.Is(err, errBlock):
			return m, err
		}
	}
	for _, h := range heads {
		if h != nil {
			consider(h.Durable)
		}
	}
	if !found || latest.Position < 0 || latest.Position > c.Disk.Size() {
		return latest, fmt.Errorf("%w: it does not tell how far the conversion has come", ErrJournal)
	}
	return latest, nil
}

// pending gives the step after the latest marker, if it has a record. Its data are
// those in the journal or, where these are damaged, those on the disk, if they
// have all arrived there or none has.
func (c *converter) pending(heads [2]*head) (*step, error) {
	sequence := c.at.Sequence + 1
	h := heads[sequence%2]
	if h == nil || h.After.Sequence != sequence {
		return nil, nil
	}
	if !c.plausible(h) {
		return nil, fmt.Errorf("%w: step %d cannot be", ErrJournal, sequence)
	}
	s := &step{head: *h, record: c.buffers[sequence%2]}
	if n, err := c.journal.ReadAt(s.data(), c.journal.record(sequence)+2*blockSize); n < len(s.data()) {
		return nil, fmt.Errorf("read the journal: %w", err)
	}
	if c.journal.fits(s.Is, s.data()) {
		return s, nil
	}
	if err := s.eachRun(c.read); err != nil {
		return nil, err
	}
	switch {
	case c.journal.fits(s.Was, s.data()):
		return nil, nil
	case c.journal.fits(s.Is, s.data()):
		return s, nil
	}
	return nil, fmt.Errorf("%w: the data of step %d, at offset %d", ErrJournal, sequence, s.Run[0].Offset)
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
