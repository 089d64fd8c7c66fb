package kms

import (
	"testing"

	"github.com/gemalto/kmip-go/kmip14"
	"github.com/google/uuid"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

func items(ops ...any) []kmipwire.RequestBatchItem {
	var out []kmipwire.RequestBatchItem
	for i := 0; i < len(ops); i += 2 {
		out = append(out, kmipwire.RequestBatchItem{Operation: ops[i].(kmip14.Operation), RequestPayload: ops[i+1], UniqueBatchItemID: []byte{byte(i)}})
	}
	return out
}

func (c *client) batch(in *kmipwire.RequestMessage) *kmipwire.ResponseMessage {
	c.t.Helper()
	out, err := c.roundTrip(in)
	if err != nil {
		c.t.Fatal(err)
	}
	if out.ResponseHeader.BatchCount != len(out.BatchItem) {
		c.t.Errorf("batch count %d with %d items", out.ResponseHeader.BatchCount, len(out.BatchItem))
	}
	return out
}

func TestBatchWithPlaceholder(t *testing.T) {
	t.Parallel()
	c := dial(t, newHome(t))
	out := c.batch(c.message(items(
		kmip14.OperationCreate, createRequest(nameAttribute("n")),
		kmip14.OperationActivate, &kmipwire.ActivateRequest{},
		kmip14.OperationLocate, &kmipwire.LocateRequest{Attribute: []kmipwire.Attribute{nameAttribute("n")}},
		kmip14.OperationGet, &kmipwire.GetRequest{})...))
	if len(out.BatchItem) != 4 {
		t.Fatalf("%d items: %+v", len(out.BatchItem), out.BatchItem)
	}
	for i, item := range out.BatchItem {
		if item.ResultStatus != kmip14.ResultStatusSuccess || item.UniqueBatchItemID[0] != byte(2*i) {
			t.Errorf("item %d: %+v", i, item)
		}
	}
	id := payloadOf[kmipwire.CreateResponse](t, out.BatchItem[0]).UniqueIdentifier
	if got := payloadOf[kmipwire.GetResponse](t, out.BatchItem[3]); got.UniqueIdentifier != id || len(got.SymmetricKey.KeyBlock.KeyValue.KeyMaterial) != 32 {
		t.Errorf("got %+v, want %s", got, id)
	}
}

func TestBatchErrors(t *testing.T) {
	t.Parallel()
	c := dial(t, newHome(t))
	missing := &kmipwire.GetRequest{UniqueIdentifier: uuid.NewString()}
	batch := items(kmip14.OperationGet, missing, kmip14.OperationCreate, createRequest())
	for option, want := range map[kmip14.BatchErrorContinuationOption]int{
		0: 1, kmip14.BatchErrorContinuationOptionStop: 1, kmip14.BatchErrorContinuationOptionContinue: 2,
	} {
		in := c.message(batch...)
		in.RequestHeader.BatchErrorContinuationOption = option
		if out := c.batch(in); len(out.BatchItem) != want || out.BatchItem[0].ResultReason != kmip14.ResultReasonItemNotFound {
			t.Errorf("%s: %+v", option, out.BatchItem)
		}
	}
	if got := len(c.locate()); got != 1 {
		t.Errorf("%d objects, want 1", got)
	}
}

// TestMessagesRefusedAsAWhole: the answer is one failed item without operation.
func TestMessagesRefusedAsAWhole(t *testing.T) {
	t.Parallel()
	c := dial(t, newHome(t))
	create := func(n int) []kmipwire.RequestBatchItem {
		var all []any
		for range n {
			all = append(all, kmip14.OperationCreate, createRequest())
		}
		return items(all...)
	}
	tests := map[string]struct {
		n      int
		want   kmip14.ResultReason
		change func(*kmipwire.RequestMessage)
	}{
		"version 1.5": {1, kmip14.ResultReasonInvalidMessage, func(m *kmipwire.RequestMessage) { m.RequestHeader.ProtocolVersion.ProtocolVersionMinor = 5 }},
		"version 2.1": {1, kmip14.ResultReasonInvalidMessage, func(m *kmipwire.RequestMessage) { m.RequestHeader.ProtocolVersion.ProtocolVersionMajor = 2 }},
		"count":       {1, kmip14.ResultReasonInvalidMessage, func(m *kmipwire.RequestMessage) { m.RequestHeader.BatchCount = 2 }},
		"empty":       {0, kmip14.ResultReasonInvalidMessage, func(*kmipwire.RequestMessage) {}},
		"many":        {maxBatch + 1, kmip14.ResultReasonInvalidMessage, func(*kmipwire.RequestMessage) {}},
		"no IDs": {2, kmip14.ResultReasonInvalidMessage, func(m *kmipwire.RequestMessage) {
			m.BatchItem[0].UniqueBatchItemID, m.BatchItem[1].UniqueBatchItemID = nil, nil
		}},
		"one ID":   {2, kmip14.ResultReasonInvalidMessage, func(m *kmipwire.RequestMessage) { m.BatchItem[1].UniqueBatchItemID = nil }},
		"same IDs": {2, kmip14.ResultReasonInvalidMessage, func(m *kmipwire.RequestMessage) { m.BatchItem[1].UniqueBatchItemID = []byte{0} }},
		"option":   {1, kmip14.ResultReasonInvalidMessage, func(m *kmipwire.RequestMessage) { m.RequestHeader.BatchErrorContinuationOption = 4 }},
	}
	for what, test := range tests {
		t.Run(what, func(t *testing.T) {
			in := c.message(create(test.n)...)
			test.change(in)
			out := c.batch(in)
			if len(out.BatchItem) != 1 || out.BatchItem[0].ResultReason != test.want || out.BatchItem[0].Operation != 0 {
				t.Errorf("%+v", out.BatchItem)
			}
			if v := out.ResponseHeader.ProtocolVersion; v.ProtocolVersionMajor != 1 || v.ProtocolVersionMinor > 4 {
				t.Errorf("answered in version %s", v)
			}
		})
	}
	if got := c.locate(); len(got) != 0 {
		t.Errorf("refused messages made %d objects", len(got))
	}
}

func TestOperationsRefused(t *testing.T) {
	t.Parallel()
	c := dial(t, newHome(t))
	c.refused(kmip14.ResultReasonOperationNotSupported, kmip14.OperationCertify, &kmipwire.GetRequest{})
	c.refused(kmip14.ResultReasonOperationNotSupported, kmip14.Operation(0x7777), &kmipwire.GetRequest{})
	c.refused(kmip14.ResultReasonInvalidMessage, kmip14.OperationGet, nil)
	c.refused(kmip14.ResultReasonInvalidMessage, kmip14.OperationGet, &struct {
		TTLVTag          struct{} `ttlv:"RequestPayload"`
		UniqueIdentifier int
	}{UniqueIdentifier: 1})
	c.refused(kmip14.ResultReasonInvalidMessage, kmip14.OperationGet, &struct {
		TTLVTag          struct{} `ttlv:"RequestPayload"`
		UniqueIdentifier []string
	}{UniqueIdentifier: []string{"the one that is checked", "the one that is given out"}})
	in := c.message(items(kmip14.OperationQuery, &kmipwire.QueryRequest{})...)
	in.BatchItem[0].MessageExtension = &kmipwire.MessageExtension{VendorIdentification: "acme", CriticalityIndicator: true}
	if out := c.batch(in); out.BatchItem[0].ResultReason != kmip14.ResultReasonFeatureNotSupported {
		t.Errorf("critical extension: %+v", out.BatchItem[0])
	}
}

func TestMaximumResponseSize(t *testing.T) {
	t.Parallel()
	c := dial(t, newHome(t))
	in := c.message(items(kmip14.OperationQuery, &kmipwire.QueryRequest{QueryFunction: []kmip14.QueryFunction{kmip14.QueryFunctionQueryOperations}})...)
	in.RequestHeader.MaximumResponseSize = 200
	out := c.batch(in)
	if len(out.BatchItem) != 1 || out.BatchItem[0].ResultReason != kmip14.ResultReasonResponseTooLarge {
		t.Errorf("%+v", out.BatchItem)
	}
}

// TestCorrelationValues: who names a request, in the version that has names for
// them, is told the one under which it is in the log, too.
func TestCorrelationValues(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	for _, v := range kmipwire.Versions() {
		for _, name := range []string{"", "mine"} {
			c := dial(t, h)
			c.version = v
			in := c.message(items(kmip14.OperationQuery, &kmipwire.QueryRequest{})...)
			in.RequestHeader.ClientCorrelationValue = name
			got := c.batch(in).ResponseHeader
			named := name != "" && v.ProtocolVersionMinor == 4
			if got.ClientCorrelationValue != "" || (got.ServerCorrelationValue != "") != named {
				t.Errorf("%s %q: client %q, server %q", v, name, got.ClientCorrelationValue, got.ServerCorrelationValue)
			}
			c.conn.Close()
			lines := auditLines(t, h)
			last := lines[len(lines)-1]
			if (last.ClientCorrelation == name) != (named || name == "") || last.ServerCorrelation != got.ServerCorrelationValue {
				t.Errorf("%s %q: logged as %+v", v, name, last)
			}
		}
	}
}
