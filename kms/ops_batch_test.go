package kms

import (
	"errors"
	"slices"
	"testing"

	"github.com/gemalto/kmip-go/kmip14"
	"github.com/google/uuid"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

func TestUndo(t *testing.T) {
	t.Parallel()
	c := dial(t, newHome(t))
	kept := c.create("kept")
	in := c.message(items(
		kmip14.OperationCreate, createRequest(nameAttribute("gone")),
		kmip14.OperationActivate, &kmipwire.ActivateRequest{UniqueIdentifier: kept},
		kmip14.OperationGet, &kmipwire.GetRequest{UniqueIdentifier: uuid.NewString()},
		kmip14.OperationCreate, createRequest())...)
	in.RequestHeader.BatchErrorContinuationOption = kmip14.BatchErrorContinuationOptionUndo
	out := c.batch(in)
	want := []kmip14.ResultStatus{kmip14.ResultStatusOperationUndone, kmip14.ResultStatusOperationUndone, kmip14.ResultStatusOperationFailed}
	var got []kmip14.ResultStatus
	for i, item := range out.BatchItem {
		got = append(got, item.ResultStatus)
		if item.ResponsePayload != nil || item.UniqueBatchItemID[0] != byte(2*i) {
			t.Errorf("item %d: %+v", i, item)
		}
	}
	if !slices.Equal(got, want) {
		t.Fatalf("got %v", got)
	}
	if got := c.locate(); !slices.Equal(got, []string{kept}) || c.state(kept) != kmip14.StatePreActive {
		t.Errorf("not undone: %v, %s", got, c.state(kept))
	}
	in = c.message(items(
		kmip14.OperationCreate, createRequest(nameAttribute("gone")),
		kmip14.OperationActivate, &kmipwire.ActivateRequest{},
		kmip14.OperationGet, &kmipwire.GetRequest{},
		kmip14.OperationLocate, &kmipwire.LocateRequest{Attribute: []kmipwire.Attribute{nameAttribute("gone")}})...)
	in.RequestHeader.BatchErrorContinuationOption = kmip14.BatchErrorContinuationOptionUndo
	for _, item := range c.batch(in).BatchItem {
		if item.ResultStatus != kmip14.ResultStatusSuccess {
			t.Errorf("%s: %s", item.Operation, item.ResultMessage)
		}
	}
	if got := c.locate(nameAttribute("gone")); len(got) != 1 || c.state(got[0]) != kmip14.StateActive {
		t.Errorf("located %v", got)
	}
}

// TestAuditTrail: what is done is told before the answer; without that there is
// no answer.
func TestAuditTrail(t *testing.T) {
	t.Parallel()
	s := openHome(t, newHome(t))
	e := newEngine(s)
	var log []auditEntry
	e.audit = func(entries []auditEntry) error { log = append(log, entries...); return nil }
	c := &client{t: t, version: newest}
	out := c.ask(e, "me", items(kmip14.OperationCreate, createRequest(), kmip14.OperationGet, &kmipwire.GetRequest{}))
	id := payloadOf[kmipwire.CreateResponse](t, out[0]).UniqueIdentifier
	c.ask(e, "stranger", items(kmip14.OperationGet, &kmipwire.GetRequest{UniqueIdentifier: id}))
	want := []auditEntry{
		{Client: "me", Operation: "Create", Object: id, Result: "Success"},
		{Client: "me", Operation: "Get", Object: id, Result: "Success"},
		{Client: "stranger", Operation: "Get", Object: id, Result: "OperationFailed", Reason: "ItemNotFound"},
	}
	for i := range log {
		if log[i].Time.IsZero() {
			t.Error("no time")
		}
		log[i].Time = want[0].Time
	}
	if !slices.Equal(log, want) {
		t.Errorf("got %+v", log)
	}
	e.audit = func([]auditEntry) error { return errors.New("disk full") }
	out = c.ask(e, "me", items(kmip14.OperationGet, &kmipwire.GetRequest{UniqueIdentifier: id}))
	if len(out) != 1 || out[0].ResultReason != kmip14.ResultReasonGeneralFailure || out[0].ResponsePayload != nil {
		t.Errorf("without a log: %+v", out)
	}
}

// ask has the engine answer a batch of a client.
func (c *client) ask(e *engine, identity string, batch []kmipwire.RequestBatchItem) []kmipwire.ResponseBatchItem {
	c.t.Helper()
	msg, err := kmipwire.Marshal(c.message(batch...))
	if err != nil {
		c.t.Fatal(err)
	}
	answer, _ := e.answer(msg, identity)
	var out kmipwire.ResponseMessage
	if err := kmipwire.Unmarshal(answer, &out); err != nil {
		c.t.Fatal(err)
	}
	return out.BatchItem
}

// TestOwners: an object is there for its client only.
func TestOwners(t *testing.T) {
	t.Parallel()
	e := newEngine(openHome(t, newHome(t)))
	c := &client{t: t, version: newest}
	id := payloadOf[kmipwire.CreateResponse](t, c.ask(e, "me", items(kmip14.OperationCreate, createRequest(nameAttribute("n"))))[0]).UniqueIdentifier
	template := &kmipwire.RegisterRequest{ObjectType: kmip14.ObjectTypeTemplate, Template: &kmipwire.Template{Attribute: []kmipwire.Attribute{nameAttribute("t")}}}
	c.ask(e, "me", items(kmip14.OperationRegister, template))
	withTemplate := createRequest()
	withTemplate.TemplateAttribute.Name = []kmipwire.Name{{NameValue: "t", NameType: kmip14.NameTypeUninterpretedTextString}}
	for op, payload := range map[kmip14.Operation]any{
		kmip14.OperationGet:              &kmipwire.GetRequest{UniqueIdentifier: id},
		kmip14.OperationGetAttributes:    &kmipwire.GetAttributesRequest{UniqueIdentifier: id},
		kmip14.OperationGetAttributeList: &kmipwire.GetAttributeListRequest{UniqueIdentifier: id},
		kmip14.OperationAddAttribute:     &kmipwire.AddAttributeRequest{UniqueIdentifier: id, Attribute: attribute1("x-a", "1")},
		kmip14.OperationModifyAttribute:  &kmipwire.ModifyAttributeRequest{UniqueIdentifier: id, Attribute: nameAttribute("m")},
		kmip14.OperationDeleteAttribute:  &kmipwire.DeleteAttributeRequest{UniqueIdentifier: id, AttributeName: "Name"},
		kmip14.OperationActivate:         &kmipwire.ActivateRequest{UniqueIdentifier: id},
		kmip14.OperationRevoke:           revokeRequest(id, kmip14.RevocationReasonCodeKeyCompromise),
		kmip14.OperationDestroy:          &kmipwire.DestroyRequest{UniqueIdentifier: id},
		kmip14.OperationReKey:            &kmipwire.ReKeyRequest{UniqueIdentifier: id},
		kmip14.OperationCheck:            &kmipwire.CheckRequest{UniqueIdentifier: id},
		kmip14.OperationObtainLease:      &kmipwire.ObtainLeaseRequest{UniqueIdentifier: id},
		kmip14.OperationArchive:          &kmipwire.ArchiveRequest{UniqueIdentifier: id},
		kmip14.OperationRecover:          &kmipwire.RecoverRequest{UniqueIdentifier: id},
		kmip14.OperationCreate:           withTemplate,
	} {
		if out := c.ask(e, "stranger", items(op, payload)); out[0].ResultReason != kmip14.ResultReasonItemNotFound {
			t.Errorf("%s: %+v", op, out[0])
		}
	}
	for _, filter := range [][]kmipwire.Attribute{nil, {nameAttribute("n")}, {attribute1(kmipwire.AttrUniqueIdentifier, id)}} {
		out := c.ask(e, "stranger", items(kmip14.OperationLocate, &kmipwire.LocateRequest{Attribute: filter}))
		if got := payloadOf[kmipwire.LocateResponse](t, out[0]).UniqueIdentifier; len(got) != 0 {
			t.Errorf("located %v", got)
		}
	}
	if out := c.ask(e, "stranger", items(kmip14.OperationCreate, createRequest(nameAttribute("n")))); out[0].ResultStatus != kmip14.ResultStatusSuccess {
		t.Errorf("the name is taken: %s", out[0].ResultMessage)
	}
}

// TestAsynchronousIndicator: a client that could wait is answered at once.
func TestAsynchronousIndicator(t *testing.T) {
	t.Parallel()
	c := dial(t, newHome(t))
	in := c.message(items(kmip14.OperationCreate, createRequest())...)
	in.RequestHeader.AsynchronousIndicator = true
	if out := c.batch(in); out.BatchItem[0].ResultStatus != kmip14.ResultStatusSuccess {
		t.Errorf("%+v", out.BatchItem[0])
	}
	c.refused(kmip14.ResultReasonOperationNotSupported, kmip14.OperationPoll, &struct {
		TTLVTag                      struct{} `ttlv:"RequestPayload"`
		AsynchronousCorrelationValue []byte
	}{AsynchronousCorrelationValue: []byte{1}})
}
