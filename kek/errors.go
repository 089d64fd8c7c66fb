package kek

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"unicode"

	"github.com/gemalto/kmip-go/kmip14"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// What can go wrong at a key manager. Anything else it refuses to do wraps none
// of these.
var (
	// ErrUnavailable: no key manager answered as one. None could be reached in
	// time, none could prove who it is, or what answered does not speak KMIP.
	ErrUnavailable = errors.New("no key manager answered")
	// ErrDenied: a key manager answered, and refuses vmcrypt: its certificate
	// (by a TLS alert or in KMIP) or its access to the key.
	ErrDenied = errors.New("access denied by the key manager")
	// ErrNotFound: the key manager knows no such key. Some say the same of a
	// key that was destroyed.
	ErrNotFound = errors.New("no such key at the key manager")
	// ErrDestroyed: the key was destroyed, and what it protects is lost.
	ErrDestroyed = errors.New("the key has been destroyed at the key manager")
	// ErrInactive: the key is not active, so nothing may be encrypted with it.
	ErrInactive = errors.New("the key is not active")
	// ErrUnsuitable: the object is not an AES-256 key that can be fetched.
	ErrUnsuitable = errors.New("not an AES-256 key that can be fetched")
)

// errProtocol: an answer is valid KMIP, but not to what was asked.
var errProtocol = errors.New("unexpected answer")

// resultReasonObjectDestroyed is of KMIP 2.0, but servers know it in all.
const resultReasonObjectDestroyed kmip14.ResultReason = 0x36

// reasons says which Err value a server's reason stands for.
var reasons = map[kmip14.ResultReason]error{
	kmip14.ResultReasonItemNotFound:                ErrNotFound,
	kmip14.ResultReasonPermissionDenied:            ErrDenied,
	kmip14.ResultReasonAuthenticationNotSuccessful: ErrDenied,
	resultReasonObjectDestroyed:                    ErrDestroyed,
}

// refusal is an operation that a server says has failed.
type refusal struct {
	reason  kmip14.ResultReason
	message string
}

func (r *refusal) Error() string {
	text := "refused"
	if err := r.Unwrap(); err != nil {
		text = err.Error()
	}
	return fmt.Sprintf("%s (%s %.200q)", text, r.reason, r.message)
}

func (r *refusal) Unwrap() error { return reasons[r.reason] }

// transportError is a connection that can't be made or has failed.
type transportError struct{ err error }

func (t *transportError) Error() string {
	var op *net.OpError
	switch {
	case errors.Is(t.err, os.ErrDeadlineExceeded), errors.Is(t.err, context.DeadlineExceeded):
		return "no answer in time"
	case errors.Is(t.err, io.EOF):
		return "it closed the connection"
	case errors.As(t.err, &op) && op.Op != remoteAlert:
		return op.Err.Error() // without the addresses of both ends
	}
	return t.err.Error()
}

func (t *transportError) Unwrap() error { return t.err }

// advice is for errors of the network; others come from a DialFunc that knows
// better.
func (t *transportError) advice() string {
	switch alertOf(t.err) {
	case "tls: handshake failure", "tls: protocol version not supported", "tls: insufficient security level":
		return "check that the key manager offers TLS 1.3, or 1.2 with ECDHE and AES-GCM or ChaCha20"
	}
	var network net.Error
	if errors.As(t.err, &network) || errors.Is(t.err, io.EOF) {
		return "check that the key manager runs and that the address is right"
	}
	return ""
}

// fault is what went wrong at one server.
type fault struct {
	address  string
	err      error
	state    ServerState
	answered bool // by a key manager, be it with a refusal
	advice   string
}

// diagnose finds out what an error at a server means and what to do about it.
func (c *Cluster) diagnose(address string, err error) *fault {
	f := &fault{address: address, err: err}
	var transport *transportError
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	switch {
	case refusesClient(err):
		f.err = fmt.Errorf("%w: %w", ErrDenied, err)
		f.state, f.answered = StateDenied, true
		f.advice = c.trust.clientAdvice(alertOf(err))
	case errors.As(err, &certificate):
		f.state = StateUntrusted
		f.err, f.advice = judge(c.alias, certificate)
	case errors.As(err, &record), errors.Is(err, kmipwire.ErrMalformed), errors.Is(err, errProtocol):
		f.state = StateNotKMIP
		f.advice = "check that the address is that of a KMIP server"
	case errors.As(err, &transport):
		f.state = StateUnreachable
		f.advice = transport.advice()
	default:
		f.state, f.answered = StateDenied, true
	}
	return f
}

// refusesClient tells whether err is a TLS alert by which servers refuse a
// client's certificate (RFC 8446, section 6.2).
func refusesClient(err error) bool {
	switch alertOf(err) {
	case "tls: bad certificate", "tls: unsupported certificate", "tls: revoked certificate",
		"tls: expired certificate", "tls: unknown certificate", "tls: unknown certificate authority",
		"tls: access denied", "tls: certificate required":
		return true
	}
	return false
}

// remoteAlert is what package tls calls the operation that an alert ended.
const remoteAlert = "remote error"

// alertOf is the TLS alert that the server has sent, or "". Package tls has no
// type for it.
func alertOf(err error) string {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == remoteAlert {
		return op.Err.Error()
	}
	return ""
}

func (f *fault) Error() string {
	text := printable(f.err.Error())
	if f.advice != "" {
		text += ": " + f.advice
	}
	return text
}

func (f *fault) Unwrap() error { return f.err }

// printable replaces control characters, as errors may quote a certificate of
// whoever has answered.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '?'
		}
		return r
	}, text)
}

// explain turns what went wrong at the servers that were tried into the error
// that the caller gets. When the caller has given up, it is about that alone.
func (c *Cluster) explain(ctx context.Context, faults ...*fault) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("alias %q: %w", c.alias, context.Cause(ctx))
	case len(faults) == 1 && faults[0].answered:
		return fmt.Errorf("alias %q: key manager %s: %w", c.alias, faults[0].address, faults[0])
	}
	return fmt.Errorf("alias %q: %w", c.alias, &allFailed{faults, verdict(faults)})
}

// explainOne is explain for one server that was asked for itself: who asked knows which.
func (c *Cluster) explainOne(ctx context.Context, f *fault) error {
	if ctx.Err() != nil {
		return c.explain(ctx, f)
	}
	return &loneFault{f}
}

// loneFault is a fault that stands beside the address of its server.
type loneFault struct{ *fault }

func (l *loneFault) Unwrap() []error {
	if l.answered {
		return []error{l.fault}
	}
	return unavailable([]*fault{l.fault})
}

// verdicts are what several servers can say of a key, by how much it weighs against what
// the others say: who lacks it may be late, who does not answer says nothing.
var verdicts = []error{ErrDestroyed, ErrDenied, ErrInactive, ErrInUse, ErrUnsuitable, ErrNotFound}

// verdict gives the faults that count: those of the same kind as the one that weighs most.
func verdict(faults []*fault) (count []error) {
	for _, kind := range verdicts {
		for _, f := range faults {
			if errors.Is(f, kind) {
				count = append(count, f)
			}
		}
		if len(count) > 0 {
			return count
		}
	}
	for _, f := range faults {
		if f.answered {
			return []error{f}
		}
	}
	return unavailable(faults)
}

func unavailable(faults []*fault) []error {
	count := []error{ErrUnavailable}
	for _, f := range faults {
		count = append(count, f)
	}
	return count
}

// allFailed is the faults of all servers that were tried.
type allFailed struct {
	faults []*fault
	count  []error
}

func (a *allFailed) Error() string {
	text := list(a.faults)
	if errors.Is(errors.Join(a.count...), ErrUnavailable) {
		return fmt.Sprintf("%s: %s", ErrUnavailable, text)
	}
	return text
}

// list names each server with its own reason.
func list(faults []*fault) string {
	texts := make([]string, len(faults))
	for i, f := range faults {
		texts[i] = f.address + ": " + f.Error()
	}
	return strings.Join(texts, "; ")
}

// Unwrap gives the faults that count.
func (a *allFailed) Unwrap() []error { return a.count }
