package nbd

import "encoding/binary"

// putSimple writes the head of a simple reply, simpleSize bytes.
func putSimple(p []byte, r request, e errno) {
	binary.BigEndian.PutUint32(p, simpleMagic)
	binary.BigEndian.PutUint32(p[4:], uint32(e))
	binary.BigEndian.PutUint64(p[8:], r.cookie)
}

// putChunk writes the head of a structured reply, chunkSize bytes.
func putChunk(p []byte, r request, flags, kind uint16, length uint32) {
	binary.BigEndian.PutUint32(p, structuredMagic)
	binary.BigEndian.PutUint16(p[4:], flags)
	binary.BigEndian.PutUint16(p[6:], kind)
	binary.BigEndian.PutUint64(p[8:], r.cookie)
	binary.BigEndian.PutUint32(p[16:], length)
}

// dataHead is the size of what precedes data that were read.
func (s *session) dataHead() int {
	if s.structured {
		return dataSize
	}
	return simpleSize
}

// putData writes what precedes the first n bytes of what was asked for, dataHead
// bytes. In a simple reply that must be all.
func (s *session) putData(p []byte, r request, n uint32, flags uint16) {
	if !s.structured {
		putSimple(p, r, 0)
		return
	}
	putChunk(p, r, flags, replyOffsetData, 8+n)
	binary.BigEndian.PutUint64(p[chunkSize:], r.offset)
}

// maxVerdict is the greatest size of a reply without data.
const maxVerdict = chunkSize + 6

// putVerdict writes that a request is done, or why it is not, and gives its size.
func (s *session) putVerdict(p []byte, r request, e errno) int {
	switch {
	case !s.structured || (e == 0 && r.command != cmdRead):
		putSimple(p, r, e)
		return simpleSize
	case e == 0:
		putChunk(p, r, replyFlagDone, replyNone, 0)
		return chunkSize
	}
	putChunk(p, r, replyFlagDone, replyError, 6)
	binary.BigEndian.PutUint32(p[chunkSize:], uint32(e))
	binary.BigEndian.PutUint16(p[chunkSize+4:], 0) // no message
	return maxVerdict
}
