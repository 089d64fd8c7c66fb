package kms

import (
	"errors"
	"log/slog"
	"time"

	"github.com/gemalto/kmip-go/kmip14"
	"github.com/gemalto/kmip-go/ttlv"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// maxBatch bounds the operations of one message.
const maxBatch = 64

// outcome is what became of an operation, and the object that it was about.
type outcome struct {
	kmipwire.ResponseBatchItem
	object string
}

// errUndo rolls a batch back.
var errUndo = errors.New("an operation has failed")

// batch processes the items in order, until one fails or, if the client says
// so, to the end (section 6.13). With the option Undo they are one transaction.
func (r *request) batch(in *kmipwire.RequestMessage) []outcome {
	option := in.RequestHeader.BatchErrorContinuationOption
	if option == kmip14.BatchErrorContinuationOptionUndo {
		return r.undoable(in.BatchItem)
	}
	done, _ := r.run(in.BatchItem, option == kmip14.BatchErrorContinuationOptionContinue)
	return done
}

// undoable processes all items or, as far as anybody can see later, none.
func (r *request) undoable(items []kmipwire.RequestBatchItem) (done []outcome) {
	err := r.store.update(func(t *tx) (err error) {
		r.tx, r.placeholder = t, ""
		defer func() { r.tx = nil }()
		var ok bool
		if done, ok = r.run(items, false); !ok {
			return errUndo
		}
		return nil
	})
	switch {
	case errors.Is(err, errUndo):
		undo(done[:len(done)-1])
	case err != nil:
		for i := range done {
			done[i].fail(internalFailure("batch", err))
		}
	}
	return done
}

// undo marks operations that were rolled back since another has failed.
func undo(done []outcome) {
	for i := range done {
		done[i].ResponsePayload = nil
		done[i].ResultStatus = kmip14.ResultStatusOperationUndone
	}
}

// run processes items until one fails or, if it is to proceed, to the end, and
// tells whether none has failed.
func (r *request) run(items []kmipwire.RequestBatchItem, proceed bool) (done []outcome, ok bool) {
	ok = true
	for i := range items {
		item := r.item(&items[i])
		done = append(done, item)
		if item.ResultStatus == kmip14.ResultStatusSuccess {
			continue
		}
		if ok = false; !proceed {
			break
		}
	}
	return done, ok
}

func (r *request) item(in *kmipwire.RequestBatchItem) outcome {
	began := time.Now()
	r.subject = ""
	payload, err := r.process(in)
	out := outcome{object: r.subject}
	out.Operation, out.UniqueBatchItemID = in.Operation, in.UniqueBatchItemID
	var f *failure
	switch {
	case err == nil:
		out.ResponsePayload = payload
	case errors.As(err, &f):
		out.fail(f)
	default:
		out.fail(internalFailure(in.Operation.String(), err))
	}
	r.meters.done(in.Operation, r.operations[in.Operation] != nil, &out, began)
	return out
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

// fail makes a failure the outcome of an operation.
func (o *outcome) fail(f *failure) {
	o.ResultStatus = kmip14.ResultStatusOperationFailed
	o.ResultReason = f.reason
	o.ResultMessage = f.message
	o.ResponsePayload = f.payload
}

// internalFailure is an error that is none of the client's business.
func internalFailure(operation string, err error) *failure {
	slog.Error("key manager", "operation", operation, "error", err)
	return fail(kmip14.ResultReasonGeneralFailure, "the key manager failed; its log says why")
}

// auditTrail says what the operations did, for the audit log.
func (r *request) auditTrail(done []outcome) []auditEntry {
	var entries []auditEntry
	for i := range done {
		e := auditEntry{
			Time: r.now, Client: r.client, Object: done[i].object,
			Operation: done[i].Operation.String(), Result: done[i].ResultStatus.String(),
			Correlation: r.correlation,
		}
		if done[i].ResultReason != 0 {
			e.Reason = done[i].ResultReason.String()
		}
		entries = append(entries, e)
	}
	return entries
}
