package kmipwire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/gemalto/kmip-go/kmip14"
	"github.com/gemalto/kmip-go/ttlv"
)

// Limits on a message. Real ones stay far below: the longest that vmcrypt
// sends is under 1 KiB, nested 6 deep.
const (
	MaxMessage = 1 << 20 // bytes, the header of the outermost item included
	MaxDepth   = 16      // nested structures, the outermost included
	MaxItems   = 1 << 15 // items, so that decoding costs a few MiB at most

	// maxStructures bounds the items that are structures: the decoder spends
	// tens of microseconds on each. A batch of 64 Creates has some 700.
	maxStructures = 1 << 11

	// maxSteps bounds the decoder's work. It visits an item up to 2^depth
	// times, so neither depth nor size alone keeps it from taking hours.
	maxSteps = 1 << 20
)

// ErrMalformed says that bytes are not a KMIP message within the limits.
var ErrMalformed = errors.New("malformed KMIP message")

const headerSize = 8 // tag 3, type 1, length 4

// Dates outside the years 1 to 9999 cannot be printed or marshalled as text.
const (
	minDate = -62135596800
	maxDate = 253402300799
)

// header is the start of an item: what it is and how long it claims to be.
type header struct {
	tag    uint32
	kind   ttlv.Type
	length int // of the value, without padding
}

// Validate tells whether msg is exactly one structure, encoded as section 9.1
// of KMIP 1.4 says, and within the limits of this package. It reads each byte
// once, without recursion, and returns an error that wraps ErrMalformed. What
// it accepts can be decoded in bounded time and memory. Errors hold offsets,
// never values.
func Validate(msg []byte) error {
	if len(msg) > MaxMessage {
		return malformed(0, "longer than %d bytes", MaxMessage)
	}
	root, err := parseHeader(msg, 0)
	switch {
	case err != nil:
		return err
	case root.kind != ttlv.TypeStructure:
		return malformed(0, "not a structure")
	case root.length != len(msg)-headerSize:
		return malformed(0, "length %d in a message of %d bytes", root.length, len(msg))
	}
	w := walk{msg: msg, ends: make([]int, 0, MaxDepth)}
	return w.run()
}

// walk visits the items of a message in order. ends holds where each structure
// that is open ends; its length is the depth.
type walk struct {
	msg        []byte
	pos        int
	ends       []int
	items      int
	structures int
	steps      int
}

func (w *walk) run() error {
	for w.pos < len(w.msg) {
		if err := w.item(); err != nil {
			return err
		}
		for len(w.ends) > 0 && w.ends[len(w.ends)-1] == w.pos {
			w.ends = w.ends[:len(w.ends)-1]
		}
	}
	return nil
}

// item checks the item at pos and moves behind it, or into it if it is a
// structure.
func (w *walk) item() error {
	end := len(w.msg)
	if len(w.ends) > 0 {
		end = w.ends[len(w.ends)-1]
	}
	if err := w.count(); err != nil {
		return err
	}
	h, err := parseHeader(w.msg[:end], w.pos)
	if err != nil {
		return err
	}
	start := w.pos + headerSize
	if h.length > end-start || padded(h.length) > end-start {
		return malformed(w.pos, "value reaches beyond its structure")
	}
	if h.kind == ttlv.TypeStructure {
		return w.enter(start, h.length)
	}
	if err := checkValue(h, w.msg[start:start+padded(h.length)], w.pos); err != nil {
		return err
	}
	w.pos = start + padded(h.length)
	return nil
}

// enter opens the structure whose value starts at start. Its children are
// multiples of 8 bytes long, so its length is one too or it can't be filled.
func (w *walk) enter(start, length int) error {
	if len(w.ends) == MaxDepth {
		return malformed(w.pos, "nested more than %d deep", MaxDepth)
	}
	if length%8 != 0 {
		return malformed(w.pos, "structure of %d bytes", length)
	}
	if w.structures++; w.structures > maxStructures {
		return malformed(w.pos, "more than %d structures", maxStructures)
	}
	w.pos = start
	w.ends = append(w.ends, start+length)
	return nil
}

func (w *walk) count() error {
	w.items++
	w.steps += 1 << len(w.ends)
	if w.items > MaxItems || w.steps > maxSteps {
		return malformed(w.pos, "too many items")
	}
	return nil
}

// headTypes are the types of what stands around the payloads of a message. The
// decoder panics where a structure is something else, so a message whose frame
// makes no sense is none. (Within a payload it is the operation that fails.)
var headTypes = map[ttlv.Tag]ttlv.Type{
	kmip14.TagRequestMessage:               ttlv.TypeStructure,
	kmip14.TagRequestHeader:                ttlv.TypeStructure,
	kmip14.TagResponseMessage:              ttlv.TypeStructure,
	kmip14.TagResponseHeader:               ttlv.TypeStructure,
	kmip14.TagProtocolVersion:              ttlv.TypeStructure,
	kmip14.TagProtocolVersionMajor:         ttlv.TypeInteger,
	kmip14.TagProtocolVersionMinor:         ttlv.TypeInteger,
	kmip14.TagMaximumResponseSize:          ttlv.TypeInteger,
	kmip14.TagClientCorrelationValue:       ttlv.TypeTextString,
	kmip14.TagServerCorrelationValue:       ttlv.TypeTextString,
	kmip14.TagAsynchronousIndicator:        ttlv.TypeBoolean,
	kmip14.TagBatchErrorContinuationOption: ttlv.TypeEnumeration,
	kmip14.TagBatchOrderOption:             ttlv.TypeBoolean,
	kmip14.TagTimeStamp:                    ttlv.TypeDateTime,
	kmip14.TagBatchCount:                   ttlv.TypeInteger,
	kmip14.TagBatchItem:                    ttlv.TypeStructure,
	kmip14.TagOperation:                    ttlv.TypeEnumeration,
	kmip14.TagUniqueBatchItemID:            ttlv.TypeByteString,
	kmip14.TagMessageExtension:             ttlv.TypeStructure,
	kmip14.TagVendorIdentification:         ttlv.TypeTextString,
	kmip14.TagCriticalityIndicator:         ttlv.TypeBoolean,
	kmip14.TagResultStatus:                 ttlv.TypeEnumeration,
	kmip14.TagResultReason:                 ttlv.TypeEnumeration,
	kmip14.TagResultMessage:                ttlv.TypeTextString,
}

// parseHeader reads and checks the header at pos. It does not check whether
// the value that it announces is there.
func parseHeader(msg []byte, pos int) (header, error) {
	if len(msg)-pos < headerSize {
		return header{}, malformed(pos, "header cut short")
	}
	b := msg[pos : pos+headerSize]
	h := header{
		tag:  uint32(b[0])<<16 | uint32(b[1])<<8 | uint32(b[2]),
		kind: ttlv.Type(b[3]),
	}
	length := binary.BigEndian.Uint32(b[4:])
	if length > MaxMessage {
		return header{}, malformed(pos, "length %d", length)
	}
	h.length = int(length)
	if t := h.tag >> 16; t != 0x42 && t != 0x54 {
		return header{}, malformed(pos, "tag %#06x", h.tag)
	}
	if want, fixed := headTypes[ttlv.Tag(h.tag)]; fixed && h.kind != want {
		return header{}, malformed(pos, "tag %#06x with type %#02x", h.tag, byte(h.kind))
	}
	return h, checkLength(h, pos)
}

// checkLength compares the length of an item with what its type demands.
func checkLength(h header, pos int) error {
	ok := true
	switch h.kind {
	case ttlv.TypeInteger, ttlv.TypeEnumeration, ttlv.TypeInterval:
		ok = h.length == 4
	case ttlv.TypeLongInteger, ttlv.TypeBoolean, ttlv.TypeDateTime:
		ok = h.length == 8
	case ttlv.TypeBigInteger:
		ok = h.length > 0 && h.length%8 == 0
	case ttlv.TypeStructure, ttlv.TypeTextString, ttlv.TypeByteString:
	default:
		return malformed(pos, "type %#02x", byte(h.kind))
	}
	if !ok {
		return malformed(pos, "type %#02x of length %d", byte(h.kind), h.length)
	}
	return nil
}

// checkValue checks the value of an item that is not a structure; field is the
// value and its padding.
func checkValue(h header, field []byte, pos int) error {
	value, padding := field[:h.length], field[h.length:]
	for _, b := range padding {
		if b != 0 {
			return malformed(pos, "padding is not zero")
		}
	}
	ok := true
	switch h.kind {
	case ttlv.TypeBoolean:
		ok = binary.BigEndian.Uint64(value) <= 1
	case ttlv.TypeTextString:
		ok = utf8.Valid(value)
	case ttlv.TypeDateTime:
		t := int64(binary.BigEndian.Uint64(value))
		ok = t >= minDate && t <= maxDate
	}
	if !ok {
		return malformed(pos, "type %#02x with an impossible value", byte(h.kind))
	}
	return nil
}

// padded is the length of a value with its padding.
func padded(n int) int { return (n + 7) &^ 7 }

func malformed(pos int, format string, args ...any) error {
	return fmt.Errorf("%w: at byte %d: %s", ErrMalformed, pos, fmt.Sprintf(format, args...))
}
