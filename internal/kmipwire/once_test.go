package kmipwire

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"github.com/gemalto/kmip-go/kmip14"
	"github.com/gemalto/kmip-go/ttlv"
)

// twice repeats every item of a structure in turn, nested ones too, and calls
// try with what comes of it and the tag and parent of what was repeated.
func twice(msg ttlv.TTLV, try func(msg []byte, parent, tag ttlv.Tag)) {
	for v := msg.ValueStructure(); len(v) > 0; v = v[v.FullLen():] {
		item := v[:v.FullLen()]
		at := len(msg) - len(v)
		rebuilt := func(with []byte) []byte {
			b := append(bytes.Clone(msg[:at]), with...)
			b = append(b, msg[at+len(item):]...)
			length := len(b) - headerSize
			b[4], b[5], b[6], b[7] = byte(length>>24), byte(length>>16), byte(length>>8), byte(length)
			return b
		}
		try(rebuilt(append(bytes.Clone(item), item...)), msg.Tag(), item.Tag())
		if item.Type() == ttlv.TypeStructure {
			twice(item, func(inner []byte, parent, tag ttlv.Tag) { try(rebuilt(inner), parent, tag) })
		}
	}
}

// TestRepeatedFields: what there is one of does not come twice, wherever it is.
func TestRepeatedFields(t *testing.T) {
	attribute := Attribute{AttributeName: AttrName, AttributeIndex: 1, AttributeValue: Name{"n", kmip14.NameTypeURI}}
	attributes := TemplateAttribute{Name: []Name{{"t", kmip14.NameTypeURI}}, Attribute: []Attribute{attribute}}
	block := KeyBlock{KeyFormatType: kmip14.KeyFormatTypeRaw, KeyValue: KeyValue{KeyMaterial: []byte("12345678")}, CryptographicLength: 64}
	may := map[[2]ttlv.Tag]bool{
		{kmip14.TagRequestPayload, kmip14.TagAttributeName}:   true,
		{kmip14.TagTemplateAttribute, kmip14.TagName}:         true,
		{kmip14.TagTemplateAttribute, kmip14.TagAttribute}:    true,
		{kmip14.TagAttributeValue, kmip14.TagNameValue}:       true, // looked at when the attribute is known
		{kmip14.TagAttributeValue, kmip14.TagNameType}:        true,
		{kmip14.TagRequestPayload, kmip14.TagQueryFunction}:   true,
		{kmip14.TagRequestPayload, kmip14.TagProtocolVersion}: true,
	}
	for _, payload := range []any{
		&GetRequest{UniqueIdentifier: "u", KeyFormatType: kmip14.KeyFormatTypeRaw},
		&GetAttributesRequest{UniqueIdentifier: "u", AttributeName: []string{"a"}},
		&AddAttributeRequest{UniqueIdentifier: "u", Attribute: attribute},
		&CreateRequest{ObjectType: kmip14.ObjectTypeSymmetricKey, TemplateAttribute: attributes},
		&RegisterRequest{ObjectType: kmip14.ObjectTypeSymmetricKey, TemplateAttribute: attributes, SymmetricKey: &SymmetricKey{block}},
		&QueryRequest{QueryFunction: []kmip14.QueryFunction{kmip14.QueryFunctionQueryObjects}},
		&DiscoverVersionsRequest{ProtocolVersion: Versions()[:1]},
	} {
		in := payloadBytes(t, payload)
		into := reflect.New(reflect.TypeOf(payload).Elem()).Interface()
		if err := Unmarshal(in, into); err != nil {
			t.Fatalf("%T: %v", payload, err)
		}
		twice(in, func(msg []byte, parent, tag ttlv.Tag) {
			err := Unmarshal(msg, into)
			if want := !may[[2]ttlv.Tag{parent, tag}]; errors.Is(err, ErrMalformed) != want {
				t.Errorf("%T: %s twice in %s: %v", payload, tag, parent, err)
			}
		})
	}
}

// payloadBytes encodes a payload as it stands in a message.
func payloadBytes(t *testing.T, payload any) ttlv.TTLV {
	t.Helper()
	msg, err := Marshal(&RequestMessage{BatchItem: []RequestBatchItem{{Operation: kmip14.OperationGet, RequestPayload: payload}}})
	if err != nil {
		t.Fatal(err)
	}
	var in RequestMessage
	if err := Unmarshal(msg, &in); err != nil {
		t.Fatal(err)
	}
	return in.BatchItem[0].RequestPayload.(ttlv.TTLV)
}

// TestRepeatedInTheFrame does it to headers and batch items.
func TestRepeatedInTheFrame(t *testing.T) {
	in := RequestMessage{BatchItem: []RequestBatchItem{{Operation: kmip14.OperationGet, UniqueBatchItemID: []byte("1"), RequestPayload: &GetRequest{UniqueIdentifier: "u"}}}}
	in.RequestHeader = RequestHeader{ProtocolVersion: Versions()[0], MaximumResponseSize: 1, BatchCount: 1}
	msg, err := Marshal(&in)
	if err != nil {
		t.Fatal(err)
	}
	may := []ttlv.Tag{kmip14.TagBatchItem, kmip14.TagUniqueIdentifier} // the latter when the operation is known
	twice(msg, func(msg []byte, parent, tag ttlv.Tag) {
		err := Unmarshal(msg, &RequestMessage{})
		if allowed := tag == may[0] || tag == may[1]; errors.Is(err, ErrMalformed) == allowed {
			t.Errorf("%s twice in %s: %v", tag, parent, err)
		}
	})
}

// TestShapesAreComplete: every field of what is decoded is known by its tag.
func TestShapesAreComplete(t *testing.T) {
	known := map[reflect.Type]bool{}
	for _, v := range []any{RequestMessage{}, CreateRequest{}, RegisterRequest{}, LocateRequest{}, RevokeRequest{}, GetResponse{}, QueryResponse{}} {
		nameTypes(reflect.TypeOf(v), known)
	}
	for typ := range known {
		if typ.Kind() != reflect.Struct || typ.PkgPath() != reflect.TypeFor[Name]().PkgPath() {
			continue
		}
		fields := 0
		for f := range typ.Fields() {
			if f.Tag.Get("ttlv") != "-" {
				fields++
			}
		}
		if got := len(shapeOf(typ)); got != fields {
			t.Errorf("%v: %d of %d fields", typ, got, fields)
		}
	}
}
