package kms

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"time"

	"github.com/gemalto/kmip-go/kmip14"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// maxConnections bounds the connections served at once; more wait to be
// accepted.
const maxConnections = 256

// serverTimeouts bound how long a client can hold a connection.
var serverTimeouts = kmipwire.Timeouts{
	Handshake: 5 * time.Second,
	Idle:      5 * time.Minute,
	Message:   30 * time.Second,
}

// server speaks KMIP over TLS with whoever connects.
type server struct {
	engine   *engine
	tls      *tls.Config
	timeouts kmipwire.Timeouts
}

// serve accepts connections until ctx ends, then lets the requests that have
// arrived finish and closes the listener and all connections.
func (s *server) serve(ctx context.Context, l net.Listener) {
	defer context.AfterFunc(ctx, func() { l.Close() })()
	var connections sync.WaitGroup
	defer connections.Wait()
	free := make(chan struct{}, maxConnections)
	for {
		select {
		case free <- struct{}{}:
		case <-ctx.Done():
			return
		}
		conn, err := accept(ctx, l)
		if err != nil {
			return
		}
		connections.Go(func() {
			defer func() { <-free }()
			s.handle(ctx, conn)
		})
	}
}

// accept waits for a connection. Errors of the moment, such as too many open
// files, only slow it down; it fails when ctx ends.
func accept(ctx context.Context, l net.Listener) (net.Conn, error) {
	for delay := 5 * time.Millisecond; ; delay = min(2*delay, time.Second) {
		conn, err := l.Accept()
		if err == nil {
			return conn, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		slog.Warn("key manager cannot accept a connection", "error", err)
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// handle serves a connection to its end, and closes it.
func (s *server) handle(ctx context.Context, conn net.Conn) {
	t := tls.Server(conn, s.tls)
	c := kmipwire.NewConn(t, s.timeouts)
	defer c.Close()
	defer func() {
		if r := recover(); r != nil {
			slog.Error("key manager: panic in a connection", "panic", r, "stack", string(debug.Stack()))
		}
	}()
	if err := c.Handshake(ctx); err != nil {
		slog.Debug("key manager: TLS handshake failed", "client", conn.RemoteAddr().String(), "error", err)
		return
	}
	client := t.ConnectionState().PeerCertificates[0].Subject.CommonName
	for s.exchange(ctx, c, client) {
	}
}

// exchange answers one message and tells whether the connection goes on. The
// end of ctx interrupts waiting for a message, not the answer to one.
func (s *server) exchange(ctx context.Context, c *kmipwire.Conn, client string) bool {
	msg, err := c.Read(ctx)
	if errors.Is(err, kmipwire.ErrMalformed) {
		f := fail(kmip14.ResultReasonInvalidMessage, "malformed message")
		_ = c.Write(ctx, s.engine.refuse(nil, f)) // the connection ends either way
	}
	if err != nil {
		if !errors.Is(err, io.EOF) {
			slog.Debug("key manager: connection ended", "client", client, "error", err)
		}
		return false
	}
	defer kmipwire.Wipe(msg)
	response, ok := s.engine.answer(msg, client)
	defer kmipwire.Wipe(response)
	return c.Write(context.WithoutCancel(ctx), response) == nil && ok
}
