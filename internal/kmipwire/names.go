package kmipwire

import (
	"reflect"
	"time"

	"github.com/gemalto/kmip-go/ttlv"
)

// kmip-go looks for a tag in the name of every Go type that it meets, anew for
// each message, and where there is none it makes an error with a stack trace.
// That is most of the work of a message. So those names get a tag: none.
// The payloads listed are those that are asked for most; others have at most
// their own names on top.
func init() {
	known := map[reflect.Type]bool{}
	for _, v := range []any{
		RequestMessage{}, ResponseMessage{}, CreateRequest{}, CreateResponse{}, GetRequest{}, GetResponse{},
		GetAttributesRequest{}, GetAttributesResponse{}, LocateRequest{}, LocateResponse{},
		Name{}, ttlv.EnumValue(0), false, int32(0), int64(0), uint32(0), time.Duration(0),
	} {
		nameTypes(reflect.TypeOf(v), known)
	}
}

// nameTypes names a type and all that it consists of.
func nameTypes(t reflect.Type, known map[reflect.Type]bool) {
	if known[t] {
		return
	}
	known[t] = true
	if _, err := ttlv.DefaultRegistry.ParseTag(t.Name()); err != nil {
		ttlv.DefaultRegistry.RegisterTag(ttlv.TagNone, t.Name())
	}
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice:
		nameTypes(t.Elem(), known)
	case reflect.Struct:
		for f := range t.Fields() {
			nameTypes(f.Type, known)
		}
	}
}
