package conversion

import (
	"fmt"
	"io"
)

// Position is how far a conversion has come.
type Position struct {
	Bytes    int64 // below it is the new content, from it on the old one
	Backward bool  // it goes back to the old content
}

// Peek tells from a journal of size bytes how far its conversion has come. It has
// no key, so whoever can write the journal can make it tell anything: it is for
// showing only. The journal may be in use. ErrJournal is for one that tells
// nothing.
func Peek(f io.ReaderAt, size int64) (Position, error) {
	h, err := peekHeader(f)
	if err != nil {
		return Position{}, err
	}
	l := layout{h.Zone}
	if l.size() != size {
		return Position{}, fmt.Errorf("%w: it has the wrong size", ErrJournal)
	}
	latest, found := marker{}, false
	for slot := range uint64(2) {
		var m marker
		err := peekBlock(f, l.marker(slot), kindMarker, &m)
		if err == nil && m.Position >= 0 && m.Position <= h.Size && (!found || m.Sequence > latest.Sequence) {
			latest, found = m, true
		}
	}
	if !found {
		return Position{}, fmt.Errorf("%w: it does not tell how far the conversion has come", ErrJournal)
	}
	return Position{Bytes: latest.Position, Backward: latest.Backward}, nil
}

// peekHeader reads the header, whose MAC is not checked.
func peekHeader(f io.ReaderAt) (h header, err error) {
	if err := peekBlock(f, 0, kindHeader, &h); err != nil {
		return h, err
	}
	if h.Magic != [8]byte([]byte(magic)) || h.Version != version {
		return h, fmt.Errorf("%w: not a journal that this release knows", ErrJournal)
	}
	return h, nil
}

// peekBlock reads what writeBlock wrote, without the MAC.
func peekBlock(f io.ReaderAt, offset int64, k kind, c content) error {
	block := make([]byte, 1+c.size())
	if n, err := f.ReadAt(block, offset); n < len(block) {
		return fmt.Errorf("read the journal at offset %d: %w", offset, err)
	}
	if block[0] != byte(k) {
		return errBlock
	}
	c.fields(&fields{p: block[1:]})
	return nil
}
