package kms

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/gemalto/kmip-go/kmip14"
	"github.com/gemalto/kmip-go/ttlv"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// maxBatch bounds the operations of one message.
const maxBatch = 64

// engine answers KMIP messages from a store. It knows nothing of connections.
type engine struct {
	store      *store
	operations map[kmip14.Operation]operation
	// audit records what was done, before the answer is sent; nil: nobody asks.
	audit func([]auditEntry) error
}

// operation answers the payload of a batch item with a payload or a failure.
type operation func(r *request, payload []byte) (any, error)

func newEngine(s *store) *engine {
	return &engine{store: s, operations: map[kmip14.Operation]operation{
		kmip14.OperationDiscoverVersions: decoded((*request).discoverVersions),
		kmip14.OperationQuery:            decoded((*request).query),
		kmip14.OperationCreate:           decoded((*request).create),
		kmip14.OperationGet:              decoded((*request).get),
		kmip14.OperationGetAttributes:    decoded((*request).getAttributes),
		kmip14.OperationLocate:           decoded((*request).locate),
		kmip14.OperationActivate:         decoded((*request).activate),
		kmip14.OperationRevoke:           decoded((*request).revoke),
		kmip14.OperationDestroy:          decoded((*request).destroy),
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
	client  string // common name of the client's certificate
	version kmipwire.ProtocolVersion
	now     time.Time
	// placeholder is the object that an operation without a Unique Identifier
	// means: the one that Create or Locate found before it (section 4).
	placeholder string
	keys        [][]byte // to be wiped when the answer is encoded
}

// failure is an error that the client is told.
type failure struct {
	reason  kmip14.ResultReason
	message string
}

func (f *failure) Error() string { return f.message }

func fail(reason kmip14.ResultReason, format string, args ...any) *failure {
	return &failure{reason, fmt.Sprintf(format, args...)}
}

// answer returns the response to a message, and whether the client made sense.
// The response may hold keys and must be wiped.
func (e *engine) answer(msg []byte, client string) (response []byte, ok bool) {
	var in kmipwire.RequestMessage
	if err := kmipwire.Unmarshal(msg, &in); err != nil {
		return e.refuse(nil, fail(kmip14.ResultReasonInvalidMessage, "malformed message")), false
	}
	if err := checkHeader(&in); err != nil {
		return e.refuse(&in.RequestHeader, err), true
	}
	r := &request{engine: e, client: client, version: in.RequestHeader.ProtocolVersion, now: time.Now()}
	defer r.wipe()
	out, err := kmipwire.Marshal(r.response(&in.RequestHeader, r.batch(&in)))
	limit := in.RequestHeader.MaximumResponseSize
	if err != nil || limit > 0 && len(out) > limit {
		kmipwire.Wipe(out)
		return e.refuse(&in.RequestHeader, fail(kmip14.ResultReasonResponseTooLarge, "the response is too large")), true
	}
	return out, true
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
	case h.BatchErrorContinuationOption == kmip14.BatchErrorContinuationOptionUndo:
		return fail(kmip14.ResultReasonFeatureNotSupported, "batches cannot be undone")
	}
	return nil
}

// refuse gives the response to a message that fails as a whole. Where the
// client's version is not ours or not known, any client understands 1.0.
func (e *engine) refuse(h *kmipwire.RequestHeader, f *failure) []byte {
	r := &request{version: kmipwire.ProtocolVersion{ProtocolVersionMajor: 1}, now: time.Now()}
	if h != nil && slices.Contains(kmipwire.Versions(), h.ProtocolVersion) {
		r.version = h.ProtocolVersion
	}
	out, err := kmipwire.Marshal(r.response(h, []kmipwire.ResponseBatchItem{failed(f)}))
	if err != nil { // a correlation value of nearly 1 MiB
		out, _ = kmipwire.Marshal(r.response(nil, []kmipwire.ResponseBatchItem{failed(f)}))
	}
	return out
}

// response puts items below a header in the version of the request. It never
// holds a Server Correlation Value, which PyKMIP and libkmip trip over.
func (r *request) response(h *kmipwire.RequestHeader, items []kmipwire.ResponseBatchItem) *kmipwire.ResponseMessage {
	out := &kmipwire.ResponseMessage{BatchItem: items}
	out.ResponseHeader.ProtocolVersion = r.version
	out.ResponseHeader.TimeStamp = r.now
	out.ResponseHeader.BatchCount = len(items)
	if h != nil && r.since(4) {
		out.ResponseHeader.ClientCorrelationValue = h.ClientCorrelationValue
	}
	return out
}

// since tells whether the client speaks at least KMIP 1.minor.
func (r *request) since(minor int) bool { return r.version.ProtocolVersionMinor >= minor }

// batch processes the items in order, until one fails or, if the client says
// so, to the end (section 6.14).
func (r *request) batch(in *kmipwire.RequestMessage) []kmipwire.ResponseBatchItem {
	proceed := in.RequestHeader.BatchErrorContinuationOption == kmip14.BatchErrorContinuationOptionContinue
	var out []kmipwire.ResponseBatchItem
	for i := range in.BatchItem {
		item := r.item(&in.BatchItem[i])
		item.Operation = in.BatchItem[i].Operation
		item.UniqueBatchItemID = in.BatchItem[i].UniqueBatchItemID
		out = append(out, item)
		if item.ResultStatus != kmip14.ResultStatusSuccess && !proceed {
			break
		}
	}
	return out
}

func (r *request) item(in *kmipwire.RequestBatchItem) kmipwire.ResponseBatchItem {
	payload, err := r.process(in)
	var f *failure
	switch {
	case err == nil:
		return kmipwire.ResponseBatchItem{ResultStatus: kmip14.ResultStatusSuccess, ResponsePayload: payload}
	case errors.As(err, &f):
		return failed(f)
	}
	slog.Error("key manager", "operation", in.Operation.String(), "error", err)
	return failed(fail(kmip14.ResultReasonGeneralFailure, "the key manager failed; its log says why"))
}

func failed(f *failure) kmipwire.ResponseBatchItem {
	return kmipwire.ResponseBatchItem{
		ResultStatus:  kmip14.ResultStatusOperationFailed,
		ResultReason:  f.reason,
		ResultMessage: f.message,
	}
}

func (r *request) process(in *kmipwire.RequestBatchItem) (any, error) {
	if in.MessageExtension != nil && in.MessageExtension.CriticalityIndicator {
		return nil, fail(kmip14.ResultReasonFeatureNotSupported, "unknown critical message extension")
	}
	op, ok := r.operations[in.Operation]
	if !ok {
		return nil, fail(kmip14.ResultReasonOperationNotSupported, "operation %s is not supported", in.Operation)
	}
	payload, ok := in.RequestPayload.(ttlv.TTLV)
	if !ok {
		return nil, fail(kmip14.ResultReasonInvalidMessage, "the operation has no payload")
	}
	return op(r, payload)
}
