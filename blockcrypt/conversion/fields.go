package conversion

import "encoding/binary"

// content is what a block holds: fields one after the other, big-endian.
type content interface {
	size() int // in bytes
	fields(f *fields)
}

// fields are written to p or read from it, in the order in which they are named.
type fields struct {
	p     []byte
	write bool
}

// next takes the place of a field of n bytes.
func (f *fields) next(n int) []byte {
	at := f.p[:n]
	f.p = f.p[n:]
	return at
}

func (f *fields) bytes(v []byte) {
	if at := f.next(len(v)); f.write {
		copy(at, v)
	} else {
		copy(v, at)
	}
}

func (f *fields) uint32(v *uint32) {
	if at := f.next(4); f.write {
		binary.BigEndian.PutUint32(at, *v)
	} else {
		*v = binary.BigEndian.Uint32(at)
	}
}

func (f *fields) uint64(v *uint64) {
	if at := f.next(8); f.write {
		binary.BigEndian.PutUint64(at, *v)
	} else {
		*v = binary.BigEndian.Uint64(at)
	}
}

func (f *fields) int64(v *int64) {
	u := uint64(*v)
	f.uint64(&u)
	*v = int64(u)
}

func (f *fields) bool(v *bool) {
	at := f.next(1)
	switch {
	case !f.write:
		*v = at[0] != 0
	case *v:
		at[0] = 1
	default:
		at[0] = 0
	}
}

func (h *header) size() int {
	return len(h.Magic) + 4 + len(h.Conversion) + len(h.Disk) + 8 + 4 + 3 + 8
}

func (h *header) fields(f *fields) {
	f.bytes(h.Magic[:])
	f.uint32(&h.Version)
	f.bytes(h.Conversion[:])
	f.bytes(h.Disk[:])
	f.int64(&h.Size)
	f.uint32(&h.SectorSize)
	f.bool(&h.FromKey)
	f.bool(&h.ToKey)
	f.bool(&h.Fill)
	f.int64(&h.Zone)
}

func (m *marker) size() int { return 8 + 8 + 1 }

func (m *marker) fields(f *fields) {
	f.uint64(&m.Sequence)
	f.int64(&m.Position)
	f.bool(&m.Backward)
}

func (h *head) size() int {
	return 2*h.Durable.size() + 4 + maxRuns*(8+8) + 2*(nonceSize+tagSize)
}

func (h *head) fields(f *fields) {
	h.Durable.fields(f)
	h.After.fields(f)
	f.uint32(&h.Runs)
	for i := range h.Run {
		f.int64(&h.Run[i].Offset)
		f.int64(&h.Run[i].Length)
	}
	h.Was.fields(f)
	h.Is.fields(f)
}

func (t *tag) fields(f *fields) {
	f.bytes(t.Nonce[:])
	f.bytes(t.Tag[:])
}
