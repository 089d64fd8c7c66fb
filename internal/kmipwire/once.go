package kmipwire

import (
	"fmt"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/gemalto/kmip-go/ttlv"
)

// kmip-go takes the last of two items where a structure has room for one. Who
// checks a message by the first would be led astray, so the specification has it
// refused (section 11.1).

// shape is what a structure consists of, as far as a Go struct knows it.
type shape []shapeField

type shapeField struct {
	tag   ttlv.Tag
	many  bool  // it may be repeated
	shape shape // of a structure that is looked into
}

var shapes sync.Map // of Go structs, by reflect.Type

// shapeOf gives the shape that a Go struct decodes.
func shapeOf(t reflect.Type) shape {
	if known, ok := shapes.Load(t); ok {
		return known.(shape)
	}
	var s shape
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("ttlv"), ",")
		if name == "" {
			name = f.Name
		}
		if tag, err := ttlv.DefaultRegistry.ParseTag(name); err == nil {
			s = append(s, fieldOf(tag, f.Type))
		}
	}
	shapes.Store(t, s)
	return s
}

func fieldOf(tag ttlv.Tag, t reflect.Type) shapeField {
	f := shapeField{tag: tag}
	if f.many = t.Kind() == reflect.Slice && t.Elem().Kind() != reflect.Uint8; f.many || t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() == reflect.Struct && t != reflect.TypeFor[time.Time]() {
		f.shape = shapeOf(t)
	}
	return f
}

// checkOnce fails if an item of a valid structure, or of one in it, comes twice
// and may not. Items that the shape does not know are skipped.
func (s shape) checkOnce(structure ttlv.TTLV) error {
	seen := uint64(0) // bits of s
	// v.Next would check all of v anew.
	for v := structure.ValueStructure(); len(v) > 0; v = v[v.FullLen():] {
		i := s.index(v.Tag())
		if i < 0 {
			continue
		}
		if seen&(1<<i) != 0 && !s[i].many {
			return fmt.Errorf("%w: tag %#06x comes twice in a structure", ErrMalformed, uint32(s[i].tag))
		}
		seen |= 1 << i
		if s[i].shape == nil || v.Type() != ttlv.TypeStructure {
			continue
		}
		if err := s[i].shape.checkOnce(v); err != nil {
			return err
		}
	}
	return nil
}

func (s shape) index(tag ttlv.Tag) int {
	for i := range s {
		if s[i].tag == tag {
			return i
		}
	}
	return -1
}
