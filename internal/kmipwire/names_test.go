package kmipwire

import (
	"bytes"
	"testing"
)

// TestMessagesAreCheap bounds the work that a message makes by its allocations:
// kmip-go left to itself makes four times as many.
func TestMessagesAreCheap(t *testing.T) {
	in := getResponse(bytes.Repeat([]byte{7}, 32))
	allocations := testing.AllocsPerRun(10, func() {
		var out ResponseMessage
		if err := Unmarshal(mustMarshal(t, in), &out); err != nil {
			t.Fatal(err)
		}
		if err := UnmarshalPayload(out.BatchItem[0].ResponsePayload, new(GetResponse)); err != nil {
			t.Fatal(err)
		}
	})
	if allocations > 600 {
		t.Errorf("%v allocations", allocations)
	}
}
