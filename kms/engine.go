package kms

import (
	"fmt"
	"slices"
	"time"

	"github.com/gemalto/kmip-go/kmip14"
	"github.com/google/uuid"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// engine answers KMIP messages from a store. It knows nothing of connections.
type engine struct {
	store      *store
	operations map[kmip14.Operation]operation
	// audit records what was done, before the answer is sent; nil: nobody asks.
	audit  func([]auditEntry) error
	meters *meters
}

// operation answers the payload of a batch item with a payload or a failure.
type operation func(r *request, payload []byte) (any, error)

func newEngine(s *store) *engine {
	return &engine{store: s, meters: newMeters(), operations: map[kmip14.Operation]operation{
		kmip14.OperationDiscoverVersions: decoded((*request).discoverVersions),
		kmip14.OperationQuery:            decoded((*request).query),
		kmip14.OperationCreate:           decoded((*request).create),
		kmip14.OperationRegister:         decoded((*request).register),
		kmip14.OperationReKey:            decoded((*request).reKey),
		kmip14.OperationLocate:           decoded((*request).locate),
		kmip14.OperationCheck:            decoded((*request).check),
		kmip14.OperationGet:              decoded((*request).get),
		kmip14.OperationGetAttributes:    decoded((*request).getAttributes),
		kmip14.OperationGetAttributeList: decoded((*request).getAttributeList),
		kmip14.OperationAddAttribute:     decoded((*request).addAttribute),
		kmip14.OperationModifyAttribute:  decoded((*request).modifyAttribute),
		kmip14.OperationDeleteAttribute:  decoded((*request).deleteAttribute),
		kmip14.OperationObtainLease:      decoded((*request).obtainLease),
		kmip14.OperationActivate:         decoded((*request).activate),
		kmip14.OperationRevoke:           decoded((*request).revoke),
		kmip14.OperationDestroy:          decoded((*request).destroy),
		kmip14.OperationArchive:          decoded((*request).archive),
		kmip14.OperationRecover:          decoded((*request).recover),
	}}
}

// decoded makes an operation of a method that takes the decoded payload.
func decoded[P any](method func(*request, *P) (any, error)) operation {
	return func(r *request, payload []byte) (any, error) {
		p := new(P)
		if err := kmipwire.Unmarshal(payload, p); err != nil {
			return nil, fail(kmip14.ResultReasonInvalidMessage, "the payload cannot be decoded")
		}
		return method(r, p)
	}
}

// request is one message being answered.
type request struct {
	*engine
	client  string // identity of the client
	version kmipwire.ProtocolVersion
	now     time.Time
	// placeholder is the object that an operation without a Unique Identifier
	// means: the one that an operation before it has made or found (section 4).
	placeholder string
	correlation correlation
	subject     string   // the object that the present operation is about
	tx          *tx      // of a batch that is to be undone as a whole
	keys        [][]byte // to be wiped when the answer is encoded
}

// failure is an error that the client is told.
type failure struct {
	reason  kmip14.ResultReason
	message string
	payload any // that it comes with; mostly none
}

func (f *failure) Error() string { return f.message }

func fail(reason kmip14.ResultReason, format string, args ...any) *failure {
	return &failure{reason: reason, message: fmt.Sprintf(format, args...)}
}

// answer returns the response to a message, and whether the client made sense.
// The response may hold keys and must be wiped. A client that is ready for
// asynchronous answers gets synchronous ones all the same (section 6.7).
func (e *engine) answer(msg []byte, client string) (response []byte, ok bool) {
	var in kmipwire.RequestMessage
	if err := kmipwire.Unmarshal(msg, &in); err != nil {
		return e.decline(client, nil, fail(kmip14.ResultReasonInvalidMessage, "malformed message")), false
	}
	if err := checkHeader(&in); err != nil {
		return e.decline(client, &in.RequestHeader, err), true
	}
	r := &request{engine: e, client: client, version: in.RequestHeader.ProtocolVersion, now: time.Now()}
	defer r.wipe()
	r.correlate(&in.RequestHeader)
	done := r.batch(&in)
	if e.audit != nil {
		if err := e.audit(r.auditTrail(done)); err != nil {
			return e.refuse(&in.RequestHeader, internalFailure("audit", err)), true
		}
	}
	return r.encode(in.RequestHeader.MaximumResponseSize, done), true
}

// encode gives the response. One that is too large says so for each operation.
func (r *request) encode(limit int, done []outcome) []byte {
	out, err := kmipwire.Marshal(r.response(done))
	if err == nil && (limit <= 0 || len(out) <= limit) {
		return out
	}
	kmipwire.Wipe(out)
	for i := range done {
		done[i].fail(fail(kmip14.ResultReasonResponseTooLarge, "the response is too large"))
	}
	if out, err = kmipwire.Marshal(r.response(done)); err != nil { // IDs of nearly 1 MiB
		return r.refuse(nil, fail(kmip14.ResultReasonResponseTooLarge, "the response is too large"))
	}
	return out
}

// update runs fn in a transaction of its own or in that of the batch.
func (r *request) update(fn func(*tx) error) error {
	if r.tx != nil {
		return fn(r.tx)
	}
	return r.store.update(fn)
}

// view is update for functions that only read.
func (r *request) view(fn func(*tx) error) error {
	if r.tx != nil {
		return fn(r.tx)
	}
	return r.store.view(fn)
}

func (r *request) wipe() {
	for _, k := range r.keys {
		clear(k)
	}
}

// checkHeader refuses what fails a message as a whole.
func checkHeader(in *kmipwire.RequestMessage) *failure {
	h := &in.RequestHeader
	switch {
	case !slices.Contains(kmipwire.Versions(), h.ProtocolVersion):
		return fail(kmip14.ResultReasonInvalidMessage, "KMIP %s is not supported", h.ProtocolVersion)
	case h.BatchCount != len(in.BatchItem) || len(in.BatchItem) == 0:
		return fail(kmip14.ResultReasonInvalidMessage, "batch count %d with %d items", h.BatchCount, len(in.BatchItem))
	case len(in.BatchItem) > maxBatch:
		return fail(kmip14.ResultReasonInvalidMessage, "more than %d batch items", maxBatch)
	case !identified(in.BatchItem):
		return fail(kmip14.ResultReasonInvalidMessage, "of several batch items, each needs a unique batch item ID of its own")
	case h.BatchErrorContinuationOption > kmip14.BatchErrorContinuationOptionUndo:
		return fail(kmip14.ResultReasonInvalidMessage, "unknown batch error continuation option")
	}
	return nil
}

// decline is refuse for what no operation was done of, and has it recorded.
func (e *engine) decline(client string, h *kmipwire.RequestHeader, f *failure) []byte {
	if e.audit != nil {
		err := e.audit([]auditEntry{{
			Time: time.Now(), Client: client, Operation: messageOperation,
			Result: kmip14.ResultStatusOperationFailed.String(), Reason: f.reason.String() + ": " + f.message,
		}})
		if err != nil {
			f = internalFailure("audit", err)
		}
	}
	return e.refuse(h, f)
}

// identified tells whether the items, if there are several, can be told apart by
// their IDs (section 7.2).
func identified(items []kmipwire.RequestBatchItem) bool {
	if len(items) < 2 {
		return true
	}
	ids := map[string]bool{"": true}
	for i := range items {
		ids[string(items[i].UniqueBatchItemID)] = true
	}
	return len(ids) == len(items)+1
}

// refuse gives the response to a message that fails as a whole. Where the
// client's version is not ours or not known, any client understands 1.0.
func (e *engine) refuse(h *kmipwire.RequestHeader, f *failure) []byte {
	r := &request{version: kmipwire.ProtocolVersion{ProtocolVersionMajor: 1}, now: time.Now()}
	if h != nil && slices.Contains(kmipwire.Versions(), h.ProtocolVersion) {
		r.version = h.ProtocolVersion
	}
	var failed outcome
	failed.fail(f)
	out, _ := kmipwire.Marshal(r.response([]outcome{failed})) // it is short
	return out
}

// response puts items below a header in the version of the request.
func (r *request) response(done []outcome) *kmipwire.ResponseMessage {
	out := &kmipwire.ResponseMessage{}
	for i := range done {
		out.BatchItem = append(out.BatchItem, done[i].ResponseBatchItem)
	}
	out.ResponseHeader.ProtocolVersion = r.version
	out.ResponseHeader.TimeStamp = r.now
	out.ResponseHeader.BatchCount = len(done)
	out.ResponseHeader.ServerCorrelationValue = r.correlation.server
	return out
}

// correlation is what leads from a client's log to ours (sections 6.18, 6.19).
type correlation struct{ client, server string }

// correlate names the request for the two logs. Only clients that name it
// themselves get to see the name: PyKMIP and libkmip trip over it.
func (r *request) correlate(h *kmipwire.RequestHeader) {
	if r.since(4) && h.ClientCorrelationValue != "" {
		r.correlation = correlation{client: h.ClientCorrelationValue, server: uuid.NewString()}
	}
}

// minor is the client's version, of those of KMIP 1.
func (r *request) minor() int { return r.version.ProtocolVersionMinor }

// since tells whether the client speaks at least KMIP 1.minor.
func (r *request) since(minor int) bool { return r.minor() >= minor }

// reason gives a result reason, or an older one that means nearly the same to a
// client whose version does not have it.
func (r *request) reason(since int, reason, older kmip14.ResultReason) kmip14.ResultReason {
	if r.since(since) {
		return reason
	}
	return older
}
