package kms

import (
	"fmt"
	"sync"
	"time"

	"github.com/gemalto/kmip-go/kmip14"
)

// What is refused before there is an operation is in the audit log under these
// names.
const (
	connectionOperation = "Connection" // a TLS handshake failed, or the client has no access
	messageOperation    = "Message"    // refused as a whole
)

// maxRefusals is how many refused connections are in the audit log one by one,
// before they are only counted. One more may be each minute.
const maxRefusals = 60

// refusals are the connections refused of one kind. Anybody can cause them,
// again and again, and must not fill the disk: of a flood the log has the
// beginning, and its size each minute.
type refusals struct {
	report func(auditEntry)

	mu   sync.Mutex
	room int // for entries
	left int // out of the log since the last entry that counts them
}

func newRefusals(report func(auditEntry)) *refusals {
	return &refusals{report: report, room: maxRefusals}
}

// add notes a connection that was refused.
func (r *refusals) add(client, address, why string) {
	if r.fits() {
		r.report(refusedConnection(client, address, why))
	}
}

func (r *refusals) fits() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.room == 0 {
		r.left++
		return false
	}
	r.room--
	return true
}

// tick is called once a minute: it notes how many were left out, and makes room.
func (r *refusals) tick() {
	r.mu.Lock()
	left := r.left
	r.left, r.room = 0, min(r.room+1, maxRefusals)
	r.mu.Unlock()
	if left > 0 {
		r.report(refusedConnection("", "", fmt.Sprintf("%d more were refused", left)))
	}
}

func refusedConnection(client, address, why string) auditEntry {
	return auditEntry{
		Time: time.Now(), Client: client, Address: address, Operation: connectionOperation,
		Result: kmip14.ResultStatusOperationFailed.String(), Reason: why,
	}
}
