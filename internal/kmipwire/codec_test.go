package kmipwire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/gemalto/kmip-go/kmip14"
	"github.com/gemalto/kmip-go/ttlv"
)

func request(payload any, op kmip14.Operation) *RequestMessage {
	return &RequestMessage{
		RequestHeader: RequestHeader{ProtocolVersion: ProtocolVersion{1, 4}, BatchCount: 1},
		BatchItem:     []RequestBatchItem{{Operation: op, RequestPayload: payload}},
	}
}

func response(payload any, op kmip14.Operation) *ResponseMessage {
	return &ResponseMessage{
		ResponseHeader: ResponseHeader{
			ProtocolVersion: ProtocolVersion{1, 4}, TimeStamp: time.Unix(1700000000, 0).UTC(), BatchCount: 1,
		},
		BatchItem: []ResponseBatchItem{{Operation: op, ResponsePayload: payload}},
	}
}

func mustMarshal(t testing.TB, v any) []byte {
	t.Helper()
	msg, err := Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return msg
}

// getResponse is a response with key material in it.
func getResponse(key []byte) *ResponseMessage {
	return response(&GetResponse{
		ObjectType:       kmip14.ObjectTypeSymmetricKey,
		UniqueIdentifier: "7",
		SymmetricKey: &SymmetricKey{KeyBlock{
			KeyFormatType:          kmip14.KeyFormatTypeRaw,
			KeyValue:               KeyValue{KeyMaterial: key},
			CryptographicAlgorithm: kmip14.CryptographicAlgorithmAES,
			CryptographicLength:    256,
		}},
	}, kmip14.OperationGet)
}

// payloads has every payload with every field set, by operation.
var payloads = []any{
	&DiscoverVersionsRequest{Versions()},
	&DiscoverVersionsResponse{Versions()},
	&QueryRequest{[]kmip14.QueryFunction{kmip14.QueryFunctionQueryOperations, kmip14.QueryFunctionQueryObjects}},
	&QueryResponse{
		Operation:            []kmip14.Operation{kmip14.OperationGet, kmip14.OperationCreate},
		ObjectType:           []kmip14.ObjectType{kmip14.ObjectTypeSymmetricKey},
		VendorIdentification: "vmcrypt",
	},
	&CreateRequest{kmip14.ObjectTypeSymmetricKey, TemplateAttribute{
		Name: []Name{{"template", kmip14.NameTypeUninterpretedTextString}},
		Attribute: []Attribute{
			{AttributeName: AttrCryptographicLength, AttributeIndex: 1, AttributeValue: int32(256)},
		},
	}},
	&CreateResponse{kmip14.ObjectTypeSymmetricKey, "7", &TemplateAttribute{}},
	&GetRequest{UniqueIdentifier: "7", KeyFormatType: kmip14.KeyFormatTypeRaw},
	&GetAttributesRequest{"7", []string{AttrState, AttrName}},
	&GetAttributesResponse{"7", []Attribute{{AttributeName: AttrObjectType, AttributeValue: ttlv.EnumValue(2)}}},
	&LocateRequest{10, 3, kmip14.StorageStatusMaskOnLineStorage, kmip14.ObjectGroupMemberGroupMemberFresh, []Attribute{{AttributeName: "x", AttributeValue: "y"}}},
	&LocateResponse{new(int), []string{"7", "8"}},
	&ActivateRequest{"7"},
	&ActivateResponse{"7"},
	&RevokeRequest{"7", RevocationReason{kmip14.RevocationReasonCodeKeyCompromise, "lost"}, &date},
	&RevokeResponse{"7"},
	&DestroyRequest{"7"},
	&DestroyResponse{"7"},
}

// fresh is an empty struct of p's type.
func fresh(p any) any { return reflect.New(reflect.TypeOf(p).Elem()).Interface() }

var date = time.Unix(1700000000, 0).UTC()

func TestPayloadsComeBack(t *testing.T) {
	for _, p := range payloads {
		t.Run(reflect.TypeOf(p).Elem().Name(), func(t *testing.T) {
			msg := mustMarshal(t, request(p, kmip14.OperationGet))
			var req RequestMessage
			if err := Unmarshal(msg, &req); err != nil {
				t.Fatal(err)
			}
			got := fresh(p)
			if err := UnmarshalPayload(req.BatchItem[0].RequestPayload, got); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, p) {
				t.Errorf("got %+v, want %+v", got, p)
			}
		})
	}
}

func TestHeadersComeBack(t *testing.T) {
	req := request(ttlv.TTLV(nil), kmip14.OperationQuery)
	req.RequestHeader = RequestHeader{
		ProtocolVersion{1, 2}, 4096, "client", "server", true,
		kmip14.BatchErrorContinuationOptionStop, true, &date, 1,
	}
	req.BatchItem[0].UniqueBatchItemID = []byte{1}
	req.BatchItem[0].MessageExtension = &MessageExtension{"acme", true}
	req.BatchItem[0].RequestPayload = nil
	var got RequestMessage
	if err := Unmarshal(mustMarshal(t, req), &got); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(&got, req) {
		t.Errorf("got %+v, want %+v", got, req)
	}
}

func TestKeyLivesInTheMessageOnly(t *testing.T) {
	key := bytes.Repeat([]byte{0xAB}, 32)
	msg := mustMarshal(t, getResponse(key))
	var resp ResponseMessage
	if err := Unmarshal(msg, &resp); err != nil {
		t.Fatal(err)
	}
	var get GetResponse
	if err := UnmarshalPayload(resp.BatchItem[0].ResponsePayload, &get); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(get.SymmetricKey.KeyBlock.KeyValue.KeyMaterial, key) {
		t.Fatal("the key did not come back")
	}
	Wipe(msg)
	if !bytes.Equal(get.SymmetricKey.KeyBlock.KeyValue.KeyMaterial, make([]byte, 32)) {
		t.Error("wiping the message leaves the key")
	}
}

func TestMarshalDoesNotMoveTheKey(t *testing.T) {
	// As long as the message fits, the encoder's buffer is the one that was
	// allocated first, and Marshal returns that one.
	msg := mustMarshal(t, getResponse(make([]byte, 32)))
	if cap(msg) < smallMessage {
		t.Errorf("capacity %d, want at least %d", cap(msg), smallMessage)
	}
	if err := Validate(msg); err != nil {
		t.Error(err)
	}
}

func TestKeysDoNotPrint(t *testing.T) {
	key := bytes.Repeat([]byte{0xAB}, 32)
	get := getResponse(key).BatchItem[0].ResponsePayload.(*GetResponse)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q", "%d"} {
		text := fmt.Sprintf(verb, get.SymmetricKey)
		if !strings.Contains(text, "[secret]") || strings.Contains(strings.ToLower(text), "ab") ||
			strings.Contains(text, "171") {
			t.Errorf("%s prints %s", verb, text)
		}
	}
}

func TestErrorsDoNotQuoteKeys(t *testing.T) {
	key := []byte("KEYKEYKEYKEYKEYKEYKEYKEYKEYKEYKE")
	msg := mustMarshal(t, getResponse(key))
	at := bytes.Index(msg, key)
	for i := range msg {
		if i >= at && i < at+len(key) {
			continue
		}
		bad := bytes.Clone(msg)
		bad[i] ^= 0xFF
		var resp ResponseMessage
		err := Unmarshal(bad, &resp)
		if err == nil && len(resp.BatchItem) == 1 {
			err = UnmarshalPayload(resp.BatchItem[0].ResponsePayload, new(GetResponse))
		}
		if text := fmt.Sprintf("%v %+v", err, err); strings.Contains(text, "KEY") ||
			strings.Contains(strings.ToLower(text), hex.EncodeToString(key[:4])) {
			t.Fatalf("byte %d: %s", i, text)
		}
	}
}

func TestUnmarshalRefusesTheWrongKind(t *testing.T) {
	req := mustMarshal(t, request(&ActivateRequest{"7"}, kmip14.OperationActivate))
	if err := Unmarshal(req, new(ResponseMessage)); !errors.Is(err, ErrMalformed) {
		t.Errorf("a request read as a response: %v", err)
	}
	if err := Unmarshal(nil, new(ResponseMessage)); !errors.Is(err, ErrMalformed) {
		t.Errorf("nothing read as a response: %v", err)
	}
}

// TestUnmarshalSurvivesWrongTypes gives each item of a message every type: some
// make the decoder panic.
func TestUnmarshalSurvivesWrongTypes(t *testing.T) {
	msg := mustMarshal(t, getResponse(make([]byte, 32)))
	refused := 0
	for pos := 8; pos < len(msg); pos += 8 {
		if msg[pos] != 0x42 {
			continue
		}
		for kind := byte(1); kind <= 11; kind++ {
			bad := bytes.Clone(msg)
			bad[pos+3] = kind
			if err := Unmarshal(bad, new(ResponseMessage)); err != nil {
				refused++
				if !errors.Is(err, ErrMalformed) {
					t.Fatalf("byte %d as type %d: %v", pos, kind, err)
				}
			}
		}
	}
	if refused == 0 {
		t.Error("nothing was refused")
	}
}

func TestMarshalRefusesTooMuch(t *testing.T) {
	_, err := Marshal(request(&ActivateRequest{strings.Repeat("x", MaxMessage)}, kmip14.OperationActivate))
	if err == nil {
		t.Error("a message over 1 MiB was marshalled")
	}
}
