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
}

// LockRequest is the body of POST /v1/lock.
type LockRequest struct {
	VM string `json:"vm"` // as in UnlockRequest
	// Force has the disks taken away from clients that are connected.
	Force bool `json:"force,omitempty"`
}

// Agent is the answer to GET /v1/agent.
type Agent struct {
	Release    string    `json:"release"`
	PID        int       `json:"pid"`
	Since      time.Time `json:"since"`
	Datastores []string  `json:"datastores"`
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
