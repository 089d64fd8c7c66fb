package kms

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/gemalto/kmip-go/kmip14"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/vmcrypt/vmcrypt/internal/audit"
	"github.com/vmcrypt/vmcrypt/internal/text"
)

// maxAuditText bounds, in bytes, what a client can put into a field.
const maxAuditText = 128

// auditEntry is what the audit log tells about one operation. Nothing in it is
// secret: names and attributes of objects stay out.
type auditEntry struct {
	Time      time.Time
	Client    string // identity of the client
	Address   string // where it came from; filled in by the server
	Operation string
	Object    string // Unique Identifier, or "" where there is none
	Result    string // "Success" or the result status
	Reason    string // result reason of a failure

	Correlation correlation // of the client's log and this one
}

// auditLine is an entry as it stands in the log, behind what package audit writes
// into each line. Names and order of the fields belong to the format.
type auditLine struct {
	Time      string `json:"time"` // RFC 3339, UTC
	Client    string `json:"client"`
	Address   string `json:"address"`
	Operation string `json:"operation"`
	Object    string `json:"object,omitempty"`
	Result    string `json:"result"`
	Reason    string `json:"reason,omitempty"`

	ClientCorrelation string `json:"clientCorrelation,omitempty"`
	ServerCorrelation string `json:"serverCorrelation,omitempty"`
}

func (e *auditEntry) line() *auditLine {
	return &auditLine{
		Time:      e.Time.UTC().Format(time.RFC3339Nano),
		Client:    text.Clip(e.Client, maxAuditText),
		Address:   text.Clip(e.Address, maxAuditText),
		Operation: text.Clip(e.Operation, maxAuditText),
		Object:    text.Clip(e.Object, maxAuditText),
		Result:    text.Clip(e.Result, maxAuditText),
		Reason:    text.Clip(e.Reason, maxAuditText),

		ClientCorrelation: text.Clip(e.Correlation.client, maxAuditText),
		ServerCorrelation: text.Clip(e.Correlation.server, maxAuditText),
	}
}

// onlyRead are the operations whose entries can get to the disk after the
// answer: a key is read far more often than the disk can sync. What was refused
// before there was an operation has changed nothing either.
var onlyRead = map[string]bool{
	kmip14.OperationDiscoverVersions.String(): true,
	kmip14.OperationQuery.String():            true,
	kmip14.OperationLocate.String():           true,
	kmip14.OperationCheck.String():            true,
	kmip14.OperationGet.String():              true,
	kmip14.OperationGetAttributes.String():    true,
	kmip14.OperationGetAttributeList.String(): true,

	connectionOperation: true,
	messageOperation:    true,
}

// auditLog is the audit log of a key manager. One process at a time has it, as
// it has the store.
type auditLog struct {
	*audit.Log
	failures prometheus.Counter // nil if nobody counts
}

// append writes entries. When it returns they are on disk or, if all are of
// operations that only read, safe from the end of this process, and on disk
// soon.
func (l auditLog) append(entries []auditEntry) error {
	lines := make([]any, len(entries))
	for i := range entries {
		lines[i] = entries[i].line()
	}
	err := l.Append(changes(entries), lines...)
	if err != nil && l.failures != nil {
		l.failures.Inc()
	}
	return err
}

// changes tells whether one of the operations did more than read.
func changes(entries []auditEntry) bool {
	return slices.ContainsFunc(entries, func(e auditEntry) bool { return !onlyRead[e.Operation] })
}

// openAudit opens the log of a home for appending. known is the last entry that
// the store knows of.
func (h Home) openAudit(known audit.Head) (auditLog, error) {
	l, err := audit.Open(h.Dir, known)
	return auditLog{Log: l}, err
}

// VerifyAudit reads the audit log, all its files, and checks the chain of its
// entries and that none is missing. It works while the key manager serves.
func (h Home) VerifyAudit(ctx context.Context) (*audit.Report, error) {
	// What the store knows is asked first, as the log goes on meanwhile.
	known, err := h.knownAudit(ctx)
	if err != nil {
		return nil, err
	}
	return audit.Verify(ctx, h.Dir, known)
}

// auditHeadNote is the name of the note that says how far the log goes.
const auditHeadNote = "head"

// knownAudit asks the store for an entry that the log must hold. It is not the
// last, unless the key manager has been stopped.
func (h Home) knownAudit(ctx context.Context) (audit.Head, error) {
	s, running, err := h.access(ctx, forReading)
	if err != nil {
		return audit.Head{}, err
	}
	if running != nil {
		return running.Audit, nil
	}
	head, err := s.auditHead()
	return head, errors.Join(err, s.close())
}

func (s *store) auditHead() (head audit.Head, err error) {
	err = s.view(func(t *tx) error { return t.getNote(auditBucket, auditHeadNote, &head) })
	return head, err
}

func (s *store) setAuditHead(head audit.Head) error {
	return s.update(func(t *tx) error { return t.putNote(auditBucket, auditHeadNote, head) })
}
