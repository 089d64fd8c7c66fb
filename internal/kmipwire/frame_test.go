package kmipwire

import (
	"bytes"
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/gemalto/kmip-go/kmip14"
	"github.com/gemalto/kmip-go/ttlv"
)

// TestFramesAsKMIPGoWritesThem: what is written by hand is what kmip-go would
// have made of the structs.
func TestFramesAsKMIPGoWritesThem(t *testing.T) {
	for what, m := range map[string]*ResponseMessage{
		"empty": {ResponseHeader: ResponseHeader{TimeStamp: time.Unix(0, 0)}},
		"full": {
			ResponseHeader: ResponseHeader{
				ProtocolVersion: ProtocolVersion{1, 4}, TimeStamp: time.Unix(1234567890, 0),
				ClientCorrelationValue: "client", ServerCorrelationValue: "server", BatchCount: 3,
			},
			BatchItem: []ResponseBatchItem{
				{
					Operation: kmip14.OperationGet, UniqueBatchItemID: []byte("item"),
					ResultStatus: kmip14.ResultStatusSuccess, ResponsePayload: &CreateResponse{UniqueIdentifier: "id"},
				},
				{
					Operation: kmip14.OperationLocate, ResultStatus: kmip14.ResultStatusOperationFailed,
					ResultReason: kmip14.ResultReasonItemNotFound, ResultMessage: "there is none",
				},
				{ResponsePayload: CreateResponse{ObjectType: kmip14.ObjectTypeSymmetricKey}},
			},
		},
		"key": {BatchItem: []ResponseBatchItem{{ResponsePayload: &GetResponse{
			ObjectType: kmip14.ObjectTypeSymmetricKey, UniqueIdentifier: "id", SymmetricKey: &SymmetricKey{KeyBlock{
				KeyFormatType: kmip14.KeyFormatTypeRaw, KeyCompressionType: kmip14.KeyCompressionTypeECPublicKeyTypeUncompressed,
				KeyValue:               KeyValue{KeyMaterial: []byte("a key of some bytes")},
				CryptographicAlgorithm: kmip14.CryptographicAlgorithmAES, CryptographicLength: 152,
			}},
		}}}},
		"transparent key": {BatchItem: []ResponseBatchItem{{ResponsePayload: &GetResponse{
			SymmetricKey: &SymmetricKey{KeyBlock{KeyValue: KeyValue{KeyMaterial: []byte("key"), Transparent: true}}},
		}}}},
		"key elsewhere": {BatchItem: []ResponseBatchItem{{ResponsePayload: &GetResponse{SymmetricKey: &SymmetricKey{}}}}},
	} {
		t.Run(what, func(t *testing.T) {
			got, err := Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			want, err := ttlv.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("got  %s\nwant %s", ttlv.TTLV(got), want)
			}
		})
	}
}

// TestFramesHaveAllFields: a field that is added to these structs has to be
// written, too.
func TestFramesHaveAllFields(t *testing.T) {
	for frame, want := range map[reflect.Type]int{
		reflect.TypeFor[ResponseMessage]():   2,
		reflect.TypeFor[ResponseHeader]():    5,
		reflect.TypeFor[ProtocolVersion]():   2,
		reflect.TypeFor[ResponseBatchItem](): 6,
		reflect.TypeFor[GetRequest]():        4,
		reflect.TypeFor[GetResponse]():       6,
		reflect.TypeFor[KeyBlock]():          6,
	} {
		if got := frame.NumField(); got != want {
			t.Errorf("%s has %d fields, %d are written", frame, got, want)
		}
	}
}

// TestGetRefusesOtherTypes: kmip-go reads any item as the type it is asked for.
func TestGetRefusesOtherTypes(t *testing.T) {
	for what, payload := range map[string]any{
		"identifier":    struct{ UniqueIdentifier int }{7},
		"format":        struct{ KeyFormatType string }{"raw"},
		"compression":   struct{ KeyCompressionType bool }{true},
		"specification": struct{ KeyWrappingSpecification int }{1},
	} {
		msg, err := ttlv.Marshal(ttlv.Value{Tag: kmip14.TagRequestPayload, Value: payload})
		if err != nil {
			t.Fatal(err)
		}
		if err := Unmarshal(msg, new(GetRequest)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
