package nbd

import (
	"encoding/binary"
	"time"
)

// request is a client's, or what is left of it.
type request struct {
	flags, command uint16
	asked          uint16 // the command that the client sent; a write with FUA becomes a flush
	cookie         uint64 // names it in replies
	offset         uint64
	length         uint32
	begun          time.Duration // when it was taken: see sinceStart
}

// parse takes a header of requestSize bytes apart, if it is one.
func parse(p []byte) (r request, ok bool) {
	if binary.BigEndian.Uint32(p) != requestMagic {
		return request{}, false
	}
	return request{
		flags:   binary.BigEndian.Uint16(p[4:]),
		command: binary.BigEndian.Uint16(p[6:]),
		cookie:  binary.BigEndian.Uint64(p[8:]),
		offset:  binary.BigEndian.Uint64(p[16:]),
		length:  binary.BigEndian.Uint32(p[24:]),
		asked:   binary.BigEndian.Uint16(p[6:]),
	}, true
}

func (r request) has(flag uint16) bool { return r.flags&flag != 0 }

// piece is how much of the request to do next: all, if that is no more than a
// piece, or up to where the next piece of the disk begins, since what begins
// there is aligned to everything below.
func (r request) piece() uint32 {
	if r.length <= pieceSize {
		return r.length
	}
	return pieceSize - uint32(r.offset%pieceSize)
}

// after is the request without its first n bytes.
func (r request) after(n uint32) request {
	r.offset += uint64(n)
	r.length -= n
	return r
}

// commandFlags are the flags that each command bears. Clients set FUA on whatever
// they like (Spec, "Command flags"), so no command bears none.
var commandFlags = [...]uint16{
	cmdRead:        cmdFlagFUA | cmdFlagDF,
	cmdWrite:       cmdFlagFUA,
	cmdFlush:       cmdFlagFUA,
	cmdTrim:        cmdFlagFUA,
	cmdCache:       cmdFlagFUA,
	cmdWriteZeroes: cmdFlagFUA | cmdFlagNoHole | cmdFlagFastZero,
	cmdBlockStatus: cmdFlagFUA | cmdFlagReqOne,
}

// known reports whether there is such a command, and it bears these flags.
func (r request) known() bool {
	return int(r.command) < len(commandFlags) && commandFlags[r.command] != 0 && r.flags&^commandFlags[r.command] == 0
}

// check says why a request must not be done, 0 if it may.
func (s *session) check(r request) errno {
	switch {
	case !r.known():
		return eInval
	case r.command == cmdFlush:
		return checkFlush(r)
	case r.changes() && s.export.ReadOnly:
		return ePerm
	case r.command == cmdBlockStatus && !s.status:
		return eInval
	case r.has(cmdFlagDF):
		return s.checkUnfragmented(r)
	}
	return s.checkRange(r)
}

// checkUnfragmented is for reads that want their data in one chunk, which has a
// piece at most.
func (s *session) checkUnfragmented(r request) errno {
	switch e := s.checkRange(r); {
	case !s.structured:
		return eInval
	case e == 0 && r.length > r.piece():
		return eOverflow
	default:
		return e
	}
}

func checkFlush(r request) errno {
	if r.offset != 0 || r.length != 0 {
		return eInval
	}
	return 0
}

// changes reports whether the request is for changing the disk.
func (r request) changes() bool {
	return r.command == cmdWrite || r.command == cmdTrim || r.command == cmdWriteZeroes
}

func (s *session) checkRange(r request) errno {
	size := s.export.size
	switch {
	case r.length == 0:
		return eInval // undefined by the specification
	case r.length > maxRequest && r.moves():
		return eInval
	case r.offset <= size && uint64(r.length) <= size-r.offset:
		return 0
	case r.command == cmdWrite || r.command == cmdWriteZeroes:
		return eNoSpc
	}
	return eInval
}

// moves reports whether the work grows with the length of the request.
func (r request) moves() bool {
	return r.command == cmdRead || r.command == cmdWrite || r.command == cmdCache
}
