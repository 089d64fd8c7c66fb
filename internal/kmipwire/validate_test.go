package kmipwire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/gemalto/kmip-go/ttlv"
)

// item encodes one item as it is told to, however wrong.
func item(tag uint32, kind byte, length uint32, value ...byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, tag<<8|uint32(kind))
	b = binary.BigEndian.AppendUint32(b, length)
	return append(b, value...)
}

// structure encodes a structure with its right length.
func structure(children ...[]byte) []byte {
	value := bytes.Join(children, nil)
	return item(0x420078, 1, uint32(len(value)), value...)
}

// nested encodes depth structures in one another.
func nested(depth int) []byte {
	msg := make([]byte, 0, depth*8)
	for i := depth - 1; i >= 0; i-- {
		msg = append(msg, item(0x420078, 1, uint32(i*8))...)
	}
	return msg
}

func eight(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

func date64(v int64) []byte { return eight(uint64(v)) }

const tag = 0x420008

func TestValidateAccepts(t *testing.T) {
	for name, msg := range map[string][]byte{
		"empty structure":     structure(),
		"integer":             structure(item(tag, 2, 4, 0, 0, 0, 1, 0, 0, 0, 0)),
		"long integer":        structure(item(tag, 3, 8, eight(1)...)),
		"big integer":         structure(item(tag, 4, 16, make([]byte, 16)...)),
		"enumeration":         structure(item(tag, 5, 4, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0)),
		"boolean":             structure(item(tag, 6, 8, eight(1)...)),
		"empty text":          structure(item(tag, 7, 0)),
		"text":                structure(item(tag, 7, 3, 'a', 0xC3, 0xBC, 0, 0, 0, 0, 0)),
		"bytes":               structure(item(tag, 8, 8, eight(1<<63)...)),
		"date before 1970":    structure(item(tag, 9, 8, date64(-1)...)),
		"last date":           structure(item(tag, 9, 8, date64(maxDate)...)),
		"interval":            structure(item(tag, 10, 4, 0, 0, 0, 1, 0, 0, 0, 0)),
		"vendor's tag":        structure(item(0x540001, 1, 0)),
		"siblings at depth 2": structure(structure(structure()), structure()),
		"deepest":             nested(MaxDepth),
		"longest":             structure(item(tag, 8, MaxMessage-16, make([]byte, MaxMessage-16)...)),
		"most structures":     structure(bytes.Repeat(structure(), maxStructures-1)),
		"most items":          structure(bytes.Repeat(item(tag, 8, 0), MaxItems-1)),
	} {
		t.Run(name, func(t *testing.T) {
			if err := Validate(msg); err != nil {
				t.Error(err)
			}
		})
	}
}

var hostile = map[string][]byte{
	"nothing":                    {},
	"short header":               {0x42, 0, 0x78, 1, 0, 0, 0},
	"header of 4 GiB":            item(0x420078, 1, 0xFFFFFFFF),
	"header of 2 GiB":            item(0x420078, 1, 0x7FFFFFF8),
	"child of 4 GiB":             structure(item(tag, 8, 0xFFFFFFF8)),
	"child of -7 bytes, padded":  structure(item(tag, 8, 0xFFFFFFF9)),
	"10,000 deep":                nested(10_000),
	"17 deep":                    nested(MaxDepth + 1),
	"too long":                   structure(item(tag, 8, MaxMessage-8, make([]byte, MaxMessage-8)...)),
	"too many items":             structure(bytes.Repeat(item(tag, 8, 0), MaxItems)),
	"too many structures":        structure(bytes.Repeat(structure(), maxStructures)),
	"too many steps":             bushy(),
	"trailing bytes":             append(structure(), 0),
	"second message":             append(structure(), structure()...),
	"truncated":                  structure(item(tag, 7, 8, eight(0)...))[:20],
	"length a little short":      item(0x420078, 1, 8, structure(structure())...),
	"not a structure":            item(0x420078, 8, 0),
	"HTTP":                       []byte("HTTP/1.1 400 Bad Request\r\n\r\n"),
	"tag outside the range":      structure(item(0x430008, 1, 0)),
	"tag zero":                   structure(make([]byte, 8)),
	"type 0":                     structure(item(tag, 0, 0)),
	"type 11, of KMIP 2.0":       structure(item(tag, 11, 8, eight(0)...)),
	"type 255":                   structure(item(tag, 255, 0)),
	"integer of 0":               structure(item(tag, 2, 0)),
	"integer of 8":               structure(item(tag, 2, 8, eight(0)...)),
	"integer without padding":    structure(item(tag, 2, 4, 0, 0, 0, 1)),
	"long integer of 4":          structure(item(tag, 3, 4, eight(0)...)),
	"big integer of 0":           structure(item(tag, 4, 0)),
	"big integer of 4":           structure(item(tag, 4, 4, eight(0)...)),
	"enumeration of 3":           structure(item(tag, 5, 3, eight(0)...)),
	"boolean of 1":               structure(item(tag, 6, 1, eight(0)...)),
	"boolean 2":                  structure(item(tag, 6, 8, eight(2)...)),
	"boolean in the wrong byte":  structure(item(tag, 6, 8, eight(1<<56)...)),
	"text that is not UTF-8":     structure(item(tag, 7, 1, 0xFF, 0, 0, 0, 0, 0, 0, 0)),
	"padding that is not zero":   structure(item(tag, 7, 1, 'a', 0, 0, 0, 0, 0, 0, 1)),
	"date of 4":                  structure(item(tag, 9, 4, eight(0)...)),
	"date after 9999":            structure(item(tag, 9, 8, date64(maxDate+1)...)),
	"date before 1":              structure(item(tag, 9, 8, date64(minDate-1)...)),
	"interval of 8":              structure(item(tag, 10, 8, eight(0)...)),
	"structure of 4":             item(0x420078, 1, 4, 0, 0, 0, 0),
	"nested structure of 12":     structure(item(tag, 1, 12, make([]byte, 16)...)),
	"child beyond its structure": structure(item(tag, 1, 8, item(tag, 8, 8)...), eight(0)),
	"bytes instead of children":  structure(eight(0)),
}

// bushy has its items as deep as allowed: decoding it as kmip-go does would
// visit each of them 2^16 times.
func bushy() []byte {
	msg := bytes.Repeat(item(tag, 8, 0), 1000)
	for range MaxDepth {
		msg = structure(msg)
	}
	return msg
}

func TestValidateRefuses(t *testing.T) {
	for name, msg := range hostile {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			if err := Validate(msg); !errors.Is(err, ErrMalformed) {
				t.Errorf("got %v, want ErrMalformed", err)
			}
			if took := time.Since(start); took > time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

// TestValidateRefusesEveryTruncation cuts a message at each byte, and also
// lets its outermost length agree with what is left.
func TestValidateRefusesEveryTruncation(t *testing.T) {
	msg := mustMarshal(t, getResponse(make([]byte, 32)))
	boundary := headerSize + ttlv.TTLV(msg[headerSize:]).FullLen() // valid again there
	for n := range msg {
		if err := Validate(msg[:n]); !errors.Is(err, ErrMalformed) {
			t.Errorf("the first %d bytes: %v", n, err)
		}
		if n <= headerSize || n == boundary {
			continue
		}
		cut := bytes.Clone(msg[:n])
		binary.BigEndian.PutUint32(cut[4:], uint32(n-headerSize))
		if err := Validate(cut); !errors.Is(err, ErrMalformed) {
			t.Errorf("%d bytes that say so: %v", n, err)
		}
	}
}

// TestValidateNeedsLittleMemory holds for any message, as it has no recursion.
func TestValidateNeedsLittleMemory(t *testing.T) {
	for _, msg := range [][]byte{structure(bytes.Repeat(item(tag, 8, 0), MaxItems-1)), nested(MaxDepth)} {
		if n := testing.AllocsPerRun(10, func() { _ = Validate(msg) }); n > 1 {
			t.Errorf("%v allocations for %d bytes", n, len(msg))
		}
	}
}

// TestDecodingIsBounded decodes the costliest messages that Validate lets
// through.
func TestDecodingIsBounded(t *testing.T) {
	deep := bytes.Repeat(item(0x42000F, 1, 0), 14)
	for range MaxDepth - 2 {
		deep = item(0x42000F, 1, uint32(len(deep)), deep...)
	}
	wide := bytes.Repeat(item(0x42000F, 1, 0), maxStructures-1)
	many := item(0x42000F, 1, 8*(MaxItems-2), bytes.Repeat(item(0x420001, 8, 0), MaxItems-2)...)
	for name, msg := range map[string][]byte{"deep": structure(deep), "wide": structure(wide), "many": structure(many)} {
		if err := Validate(msg); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		start := time.Now()
		var req RequestMessage
		if err := Unmarshal(msg, &req); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("%s: it took %v", name, took)
		}
	}
}

// FuzzValidate: what is accepted can be decoded, as a message and as every
// payload, without panic, and soon.
func FuzzValidate(f *testing.F) {
	for _, p := range payloads {
		f.Add(mustMarshal(f, request(p, 1)))
		f.Add(mustMarshal(f, response(p, 1)))
	}
	f.Add(mustMarshal(f, getResponse(make([]byte, 32))))
	for _, msg := range hostile {
		if len(msg) < 1<<12 {
			f.Add(msg)
		}
	}
	f.Fuzz(func(t *testing.T, msg []byte) {
		if Validate(msg) != nil {
			return
		}
		start := time.Now()
		decodeAll(t, msg)
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("decoding took %v", took)
		}
	})
}

func decodeAll(t *testing.T, msg []byte) {
	targets := []any{new(RequestMessage), new(ResponseMessage), new(GetResponse), new(Name), new(TemplateAttribute)}
	for _, p := range payloads {
		targets = append(targets, fresh(p))
	}
	for _, v := range targets {
		if err := Unmarshal(msg, v); err != nil && !errors.Is(err, ErrMalformed) {
			t.Errorf("%T: %v", v, err)
		}
	}
	req, ok := targets[0].(*RequestMessage)
	if !ok || len(req.BatchItem) == 0 {
		return
	}
	for _, v := range targets[2:] {
		if payload, ok := req.BatchItem[0].RequestPayload.(ttlv.TTLV); ok {
			_ = Unmarshal(payload, v)
		}
	}
}
