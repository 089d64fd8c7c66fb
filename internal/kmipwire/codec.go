package kmipwire

import (
	"errors"
	"fmt"
	"reflect"

	"github.com/gemalto/kmip-go/kmip14"
	"github.com/gemalto/kmip-go/ttlv"
)

// Unmarshal validates msg, a message or the payload of one, and decodes it
// into v, a pointer to a struct of this package. Items that v has no field for
// are ignored; fields for which there is no item keep their value; one that
// is no slice is refused two items. Byte strings and payloads in v are slices
// of msg. Errors wrap ErrMalformed and hold no values.
func Unmarshal(msg []byte, v any) (err error) {
	if err := Validate(msg); err != nil {
		return err
	}
	if want := messageTag(v); want != 0 && ttlv.TTLV(msg).Tag() != want {
		return fmt.Errorf("%w: not the kind of message that was expected", ErrMalformed)
	}
	if err := shapeOf(reflect.TypeOf(v).Elem()).checkOnce(msg); err != nil {
		return err
	}
	defer func() {
		// The value of the panic is dropped, as it might quote the message.
		if recover() != nil {
			err = fmt.Errorf("%w: its fields have unexpected types", ErrMalformed)
		}
	}()
	// DecodeValue, because Decode would keep a copy of msg in a buffer.
	if err := new(ttlv.Decoder).DecodeValue(v, msg); err != nil {
		return fmt.Errorf("%w: %v", ErrMalformed, err)
	}
	cutPayloads(v)
	return nil
}

// cutPayloads makes the payloads of a message end where they end: kmip-go leaves
// what follows them, a Message Extension, on them.
func cutPayloads(v any) {
	switch m := v.(type) {
	case *RequestMessage:
		for i := range m.BatchItem {
			cut(&m.BatchItem[i].RequestPayload)
		}
	case *ResponseMessage:
		for i := range m.BatchItem {
			cut(&m.BatchItem[i].ResponsePayload)
		}
	}
}

func cut(payload *any) {
	if p, ok := (*payload).(ttlv.TTLV); ok {
		*payload = p[:p.FullLen()]
	}
}

// UnmarshalPayload decodes a structure that Unmarshal has put into a field of
// type any (a RequestPayload, ResponsePayload or AttributeValue) into v. Errors
// wrap ErrMalformed; one of them says that the field holds no structure.
func UnmarshalPayload(payload, v any) error {
	structure, ok := payload.(ttlv.TTLV)
	if !ok {
		return fmt.Errorf("%w: a structure is missing", ErrMalformed)
	}
	return Unmarshal(structure, v)
}

// messageTag is the tag of the outermost item that v is decoded from, or 0 for
// a payload, whose tag the message around it has fixed.
func messageTag(v any) ttlv.Tag {
	switch v.(type) {
	case *RequestMessage:
		return kmip14.TagRequestMessage
	case *ResponseMessage:
		return kmip14.TagResponseMessage
	}
	return 0
}

// smallMessage is the size, in bytes, up to which Marshal keeps a message in one
// place. The answer to a hundred Gets is smaller.
const smallMessage = 32 << 10

var blank [smallMessage]byte // never written to

// Marshal encodes v, a RequestMessage or a ResponseMessage. Up to 32 KiB the
// result is the only copy of the keys in it that Marshal makes.
func Marshal(v any) ([]byte, error) {
	var out capture
	enc := ttlv.NewEncoder(&out)
	// Encoding something of that size first makes the encoder's buffer large
	// enough: growing would leave copies behind.
	enc.EncodeByteString(kmip14.TagKeyMaterial, blank[:])
	if err := enc.Flush(); err != nil {
		return nil, err
	}
	if err := encode(enc, v); err != nil {
		Wipe(out.last) // which lies in the same buffer
		return nil, fmt.Errorf("encode KMIP message: %w", err)
	}
	if len(out.last) > MaxMessage {
		Wipe(out.last)
		return nil, errTooLong
	}
	return out.last, nil
}

var errTooLong = errors.New("KMIP message exceeds 1 MiB")

// capture keeps what was written last, without a copy. The encoder behind it
// must not be used again.
type capture struct{ last []byte }

func (c *capture) Write(p []byte) (int, error) {
	c.last = p
	return len(p), nil
}

// Wipe clears a message, and thereby all byte strings decoded from it.
func Wipe(msg []byte) {
	clear(msg[:cap(msg)])
}
