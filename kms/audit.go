package kms

import "time"

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
}
