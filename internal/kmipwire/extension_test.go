package kmipwire

import (
	"testing"

	"github.com/gemalto/kmip-go/kmip14"
)

// TestPayloadBeforeAnExtension: a payload ends where it ends.
func TestPayloadBeforeAnExtension(t *testing.T) {
	in := request(&ActivateRequest{"7"}, kmip14.OperationActivate)
	in.BatchItem[0].MessageExtension = &MessageExtension{VendorIdentification: "Acme"}
	var out RequestMessage
	if err := Unmarshal(mustMarshal(t, in), &out); err != nil {
		t.Fatal(err)
	}
	var got ActivateRequest
	if err := UnmarshalPayload(out.BatchItem[0].RequestPayload, &got); err != nil || got.UniqueIdentifier != "7" {
		t.Errorf("payload %+v, %v", got, err)
	}
	if out.BatchItem[0].MessageExtension == nil {
		t.Error("the extension is lost")
	}
}
