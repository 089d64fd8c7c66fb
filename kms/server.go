package kms

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"math"
	"net"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/gemalto/kmip-go/kmip14"

	"github.com/vmcrypt/vmcrypt/internal/audit"
	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// serverTimeouts bound how long a client can hold a connection.
var serverTimeouts = kmipwire.Timeouts{
	Handshake: 5 * time.Second,
	Idle:      5 * time.Minute,
	Message:   30 * time.Second,
}

// server speaks KMIP over TLS with whoever connects.
type server struct {
	engine       *engine
	clients      *registry
	certificates *certificates
	audit        auditLog
	marked       audit.Head // of the audit log, in the store
	guests       *guests
	strangers    *refusals // who have not proved who they are
	shutOut      *refusals // who have, and have no access
	timeouts     kmipwire.Timeouts
}

// serve accepts connections until ctx ends, then lets the requests that have
// arrived finish and closes the listener and all connections.
func (s *server) serve(ctx context.Context, l net.Listener) {
	defer context.AfterFunc(ctx, func() { l.Close() })()
	var connections sync.WaitGroup
	defer connections.Wait()
	for {
		conn, err := s.accept(ctx, l)
		if err != nil {
			return
		}
		guest := s.guests.enter(ctx, conn)
		if guest == nil {
			conn.Close()
			return
		}
		connections.Go(func() { s.handle(ctx, guest) })
	}
}

// accept waits for a connection. Errors of the moment only slow it down; it
// fails when ctx ends.
func (s *server) accept(ctx context.Context, l net.Listener) (net.Conn, error) {
	for delay := 5 * time.Millisecond; ; delay = min(2*delay, time.Second) {
		conn, err := l.Accept()
		if err == nil {
			return conn, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		slog.Warn("key manager cannot accept a connection", "error", err)
		if errors.Is(err, syscall.EMFILE) && s.guests.relieve() {
			delay = 5 * time.Millisecond
		}
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// handle serves a connection to its end, and closes it.
func (s *server) handle(ctx context.Context, guest *guest) {
	v := &visit{server: s, guest: guest}
	defer s.guests.leave(v.guest)
	defer func() {
		if r := recover(); r != nil {
			slog.Error("key manager: panic in a connection", "panic", r, "stack", string(debug.Stack()))
		}
	}()
	if !v.introduce(ctx) {
		return
	}
	defer v.conn.Close()
	for v.exchange(ctx) {
	}
}

// visit is a connection being served.
type visit struct {
	*server
	guest  *guest
	conn   *kmipwire.Conn
	cert   *x509.Certificate
	engine *engine // reports to the audit log where the requests came from
}

// introduce finds out who the client is, and tells whether it may stay.
func (v *visit) introduce(ctx context.Context) bool {
	raw := &newcomer{v.guest.conn, maxHandshake}
	t := tls.Server(raw, v.certificates.tls(func() { v.guests.greet(v.guest) }))
	v.conn = kmipwire.NewConn(t, v.timeouts)
	if err := v.conn.Handshake(ctx); err != nil {
		if ctx.Err() == nil && raw.left < maxHandshake { // others only looked whether somebody listens
			v.turnAway(err)
		}
		return false
	}
	raw.left = math.MaxInt
	v.cert = t.ConnectionState().PeerCertificates[0]
	v.engine = v.server.engine.reporting(func(entries []auditEntry) error {
		for i := range entries {
			entries[i].Address = v.guest.address
		}
		return v.audit.append(entries)
	})
	return v.guests.identify(v.guest, v.client())
}

// turnAway notes that a client gets no access.
func (v *visit) turnAway(err error) {
	if known := (*notAdmitted)(nil); errors.As(err, &known) {
		slog.Warn("key manager: connection refused", "address", v.guest.address, "error", err)
		v.server.engine.meters.refused.WithLabelValues(refusedClient).Inc()
		v.shutOut.add(known.client, v.guest.address, known.why)
		return
	}
	slog.Debug("key manager: TLS handshake failed", "address", v.guest.address, "error", err)
	v.server.engine.meters.refused.WithLabelValues(refusedHandshake).Inc()
	v.strangers.add("", v.guest.address, err.Error())
}

// maxHandshake bounds, in bytes, what a client can send before it has proved who
// it is. Package tls alone would keep hundreds of KiB.
const maxHandshake = 32 << 10

// newcomer is a connection that does not take more than left bytes.
type newcomer struct {
	net.Conn
	left int
}

func (c *newcomer) Read(b []byte) (int, error) {
	if c.left <= 0 {
		return 0, errors.New("too long a handshake")
	}
	n, err := c.Conn.Read(b[:min(len(b), c.left)])
	c.left -= n
	return n, err
}

func (v *visit) client() string { return v.cert.Subject.CommonName }

// exchange answers one message and tells whether the connection goes on. The
// end of ctx interrupts waiting for a message, not the answer to one.
func (v *visit) exchange(ctx context.Context) bool {
	reserved := 0
	defer func() { v.guests.release(v.guest, reserved) }()
	msg, err := v.conn.ReadReserved(ctx, func(ctx context.Context, n int) error {
		err := v.guests.reserve(ctx, v.guest, n)
		if err == nil {
			reserved = n
		}
		return err
	})
	defer kmipwire.Wipe(msg)
	if err != nil {
		v.refuse(ctx, err)
		return false
	}
	if !v.guests.begin(ctx, v.guest) {
		return false
	}
	defer v.guests.end(v.guest)
	return v.answer(context.WithoutCancel(ctx), msg)
}

func (v *visit) answer(ctx context.Context, msg []byte) bool {
	if err := v.clients.admit(v.cert); err != nil { // since the handshake
		v.turnAway(err)
		return false
	}
	response, ok := v.engine.answer(msg, v.client())
	defer kmipwire.Wipe(response)
	return v.conn.Write(ctx, response) == nil && ok
}

// refuse ends the conversation with a client that sent no message.
func (v *visit) refuse(ctx context.Context, err error) {
	switch {
	case errors.Is(err, kmipwire.ErrMalformed):
		f := fail(kmip14.ResultReasonInvalidMessage, "malformed message")
		_ = v.conn.Write(ctx, v.engine.decline(v.client(), nil, f)) // the connection ends either way
	case !errors.Is(err, io.EOF):
		slog.Debug("key manager: connection ended", "client", v.client(), "error", err)
	}
}

// reporting gives an engine that reports what it does to audit.
func (e *engine) reporting(audit func([]auditEntry) error) *engine {
	own := *e
	own.audit = audit
	return &own
}
