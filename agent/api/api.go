// Package api is what the host agent and its clients say to each other: HTTP and
// JSON over a unix socket. openapi.yaml beside it describes it for others, curl
// among them:
//
//	curl --unix-socket /run/vmcrypt/agent.sock http://agent/v1/vms
//
// Go programs have a Client.
package api

import (
	_ "embed"
	"time"
)

// OpenAPI describes the API (OpenAPI 3.0, YAML).
//
//go:embed openapi.yaml
var OpenAPI []byte

// The states of a VM.
const (
	Locked     = "locked"
	Unlocked   = "unlocked"
	Restarting = "restarting" // its disk server died; the agent is about to start another
)

// VM is a virtual machine with encrypted disks.
type VM struct {
	Name       string     `json:"name"`
	UUID       string     `json:"uuid"` // as its descriptor has it; of a bare image, the disk's
	Descriptor string     `json:"descriptor"`
	State      string     `json:"state"`
	Since      *time.Time `json:"since"` // when it was unlocked; null while it is locked
	PID        *int       `json:"pid"`   // of its disk server; null where there is none
	Disks      []Disk     `json:"disks"` // the encrypted ones
	// Owner is for whom it was unlocked, as its UnlockRequest said.
	Owner string `json:"owner,omitempty"`
	// Problem says why it can't be unlocked as it is, or why its disk server is not
	// started again.
	Problem string `json:"problem,omitempty"`
}

// Disk is an encrypted disk of a VM.
type Disk struct {
	Node         string `json:"node"`
	URI          string `json:"uri"` // of NBD; empty while the VM is locked
	ReadOnly     bool   `json:"readOnly"`
	BytesRead    uint64 `json:"bytesRead"`
	BytesWritten uint64 `json:"bytesWritten"`
	Connections  int    `json:"connections"`
	// Conversion is there for a disk of a locked VM that is amid one.
	Conversion *Conversion `json:"conversion,omitempty"`
}

// Conversion is how far the encryption, decryption or rekey of a disk in place has
// come. The journal that says so is not authenticated here.
type Conversion struct {
	State         string `json:"state"`         // of the disk: encrypting, decrypting or rekeying
	PositionBytes *int64 `json:"positionBytes"` // below it, the disk has its new content; null where that is not known
	SizeBytes     int64  `json:"sizeBytes"`     // of the disk
	Running       bool   `json:"running"`       // a process is at it; else it was interrupted
}

// List is the answer to GET /v1/vms.
type List struct {
	VMs []VM `json:"vms"`
}

// UnlockRequest is the body of POST /v1/unlock.
type UnlockRequest struct {
	// VM is the absolute path of a descriptor or disk image, or a VM's name or UUID.
	VM       string `json:"vm"`
	ReadOnly bool   `json:"readOnly,omitempty"`
	// Owner is for whom it is unlocked, "libvirt:UUID" for instance: up to 256 bytes of
	// printable text. A VM that is unlocked for another one is refused, since two
	// guests must not have the same disks; so is one that is unlocked for nobody, but
	// that somebody has open.
	Owner string `json:"owner,omitempty"`
}

// LockRequest is the body of POST /v1/lock.
type LockRequest struct {
	VM string `json:"vm"` // as in UnlockRequest
	// Force has the disks taken away from clients that are connected.
	Force bool `json:"force,omitempty"`
	// Owner, if given, is as in UnlockRequest. Then a VM that is unlocked for another
	// one is refused, and one that is unlocked for nobody is never forced.
	Owner string `json:"owner,omitempty"`
}

// Agent is the answer to GET /v1/agent.
type Agent struct {
	Release    string    `json:"release"`
	PID        int       `json:"pid"`
	Since      time.Time `json:"since"`
	Datastores []string  `json:"datastores"`
}

// Overview is the answer to GET /v1/overview: all that an operator watches.
type Overview struct {
	Agent       Agent        `json:"agent"`
	VMs         []VM         `json:"vms"`
	KeyManagers []KeyManager `json:"keyManagers"` // as the configuration has them
	Warnings    []Warning    `json:"warnings"`    // the worst first
}

// KeyManager is how a key manager was when the agent last asked it.
type KeyManager struct {
	Alias     string     `json:"alias"`
	Address   string     `json:"address"`
	State     string     `json:"state"`             // ok, unreachable, untrusted, denied, not-kmip, misconfigured or unknown
	Checked   *time.Time `json:"checked"`           // null while the state is unknown
	Version   string     `json:"version,omitempty"` // of KMIP
	TLS       string     `json:"tls,omitempty"`     // as in "TLS 1.3"
	Vendor    string     `json:"vendor,omitempty"`  // as it calls itself
	LatencyMs float64    `json:"latencyMs"`
	Problem   string     `json:"problem,omitempty"`
	// Canary is how it gave the key that it was tried with a few minutes ago: ok, missing,
	// denied, inactive, different or unreachable. It is empty where there is none to try.
	Canary        string `json:"canary,omitempty"`
	CanaryProblem string `json:"canaryProblem,omitempty"`
	// Expires is when the certificate that it showed ends.
	Expires *time.Time `json:"expires"`
	// ClientExpires is when the certificate ends by which the agent is known to it.
	ClientExpires *time.Time `json:"clientExpires"`
}

// The severities of a Warning.
const (
	Critical = "critical" // VMs can't be unlocked, or don't run, or soon won't
	Notice   = "warning"  // it will be, or it is worse than it should be
)

// Warning is something that an operator should look at.
type Warning struct {
	Severity string `json:"severity"`
	Subject  string `json:"subject"` // a VM's descriptor, a key manager's alias and address, or a datastore
	Text     string `json:"text"`    // what is wrong, and what to do
}

// Error is why a request failed. The agent knows what that means for a program that
// ends because of it, and what its user can do.
type Error struct {
	Message  string `json:"message"`
	Hint     string `json:"hint,omitempty"`
	ExitCode int    `json:"exitCode"` // as in docs/cli.md
}

func (e *Error) Error() string { return e.Message }

// failure is the body of an answer that is an error.
type failure struct {
	Error *Error `json:"error"`
}
