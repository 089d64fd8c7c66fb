package kmipwire

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/gemalto/kmip-go/kmip14"
	"github.com/gemalto/kmip-go/ttlv"
)

// Timeouts bound how long a peer can hold a connection.
type Timeouts struct {
	Handshake time.Duration // the TLS handshake in all
	Idle      time.Duration // until the first 8 bytes of a message are there
	Message   time.Duration // the rest of it; likewise a message written
}

// DefaultTimeouts suit a client, which waits for an answer to what it asked.
var DefaultTimeouts = Timeouts{
	Handshake: 10 * time.Second,
	Idle:      60 * time.Second,
	Message:   60 * time.Second,
}

// TLSConfig is the part that client and server have in common: TLS 1.2 with
// forward secrecy and authenticated encryption, or 1.3.
func TLSConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		CipherSuites: []uint16{ // of TLS 1.2; those of 1.3 are all good
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
			tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		},
	}
}

// Conn carries KMIP messages over a connection. It serves one reader and one
// writer at a time. After an error it can only be closed.
type Conn struct {
	conn     net.Conn
	timeouts Timeouts
	received *received // nil unless made by Client
}

// NewConn takes charge of c, which Close closes.
func NewConn(c net.Conn, t Timeouts) *Conn {
	return &Conn{conn: c, timeouts: t}
}

// Client puts TLS over c, for the side that is given keys: Close also wipes what
// package tls has received. Handshake comes next.
func Client(c net.Conn, config *tls.Config, t Timeouts) *Conn {
	r := &received{Conn: c}
	return &Conn{conn: tls.Client(r, config), timeouts: t, received: r}
}

// Handshake completes the TLS handshake where the connection has one.
func (c *Conn) Handshake(ctx context.Context) error {
	t, ok := c.conn.(*tls.Conn)
	if !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeouts.Handshake)
	defer cancel()
	return t.HandshakeContext(ctx)
}

// TLSVersion is that of the connection, as in "TLS 1.3", after a handshake.
func (c *Conn) TLSVersion() string {
	if t, ok := c.conn.(*tls.Conn); ok {
		return tls.VersionName(t.ConnectionState().Version)
	}
	return ""
}

// PeerExpires tells until when the peer proves who it is by the certificates that it
// showed, after a handshake: its own and, if they were verified, those that vouch for it.
func (c *Conn) PeerExpires() (best time.Time) {
	t, ok := c.conn.(*tls.Conn)
	if !ok {
		return best
	}
	state := t.ConnectionState()
	if len(state.VerifiedChains) == 0 && len(state.PeerCertificates) > 0 {
		return state.PeerCertificates[0].NotAfter
	}
	for _, chain := range state.VerifiedChains {
		if ends := chainEnds(chain); ends.After(best) {
			best = ends
		}
	}
	return best
}

// chainEnds is when the first certificate of a chain ends.
func chainEnds(chain []*x509.Certificate) time.Time {
	ends := chain[0].NotAfter
	for _, cert := range chain {
		if cert.NotAfter.Before(ends) {
			ends = cert.NotAfter
		}
	}
	return ends
}

// Read returns the next message, validated. It returns io.EOF when the peer
// has closed the connection between messages, an error that wraps ErrMalformed
// for anything that is no KMIP message, os.ErrDeadlineExceeded when the peer is
// too slow, and the cause of ctx's end after that.
func (c *Conn) Read(ctx context.Context) ([]byte, error) {
	return c.ReadReserved(ctx, func(context.Context, int) error { return nil })
}

// ReadReserved is Read for a server with many connections: reserve is called
// with the length of a message of more than 16 KiB before it is read, and can
// wait, as long as its context lets it, until there is memory for it. Its error
// ends the read.
func (c *Conn) ReadReserved(ctx context.Context, reserve func(ctx context.Context, n int) error) ([]byte, error) {
	var msg []byte
	err := c.during(ctx, func() (err error) {
		msg, err = c.read(ctx, reserve)
		return err
	})
	return msg, err
}

// Write sends msg. Errors are those of Read.
func (c *Conn) Write(ctx context.Context, msg []byte) error {
	return c.during(ctx, func() error {
		if err := c.conn.SetWriteDeadline(time.Now().Add(c.timeouts.Message)); err != nil {
			return err
		}
		_, err := c.conn.Write(msg)
		return err
	})
}

// during has f fail when ctx ends before it.
func (c *Conn) during(ctx context.Context, f func() error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	stop := context.AfterFunc(ctx, c.abort)
	defer stop()
	err := f()
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// Close ends the connection. Nothing may be reading from it.
func (c *Conn) Close() error {
	err := c.conn.Close()
	if c.received != nil {
		c.received.wipe()
	}
	return err
}

// Forget wipes what package tls has received, without closing the connection. All messages
// must have been read; what the peer sent besides is lost, and the connection with it.
func (c *Conn) Forget() {
	if c.received != nil {
		c.received.wipe()
	}
}

// abort unblocks whoever reads or writes. It goes below TLS, which would try
// to say goodbye first to a peer that may not listen.
func (c *Conn) abort() {
	if t, ok := c.conn.(*tls.Conn); ok {
		_ = t.NetConn().Close()
		return
	}
	_ = c.conn.Close()
}

func (c *Conn) read(ctx context.Context, reserve func(context.Context, int) error) ([]byte, error) {
	var head [headerSize]byte
	if err := c.fill(head[:], c.timeouts.Idle); err != nil {
		return nil, err
	}
	length, err := messageLength(head)
	if err != nil {
		return nil, err
	}
	deadline := time.Now().Add(c.timeouts.Message)
	if length > readStep {
		ctx, cancel := context.WithDeadline(ctx, deadline)
		defer cancel()
		if err := reserve(ctx, length); err != nil {
			return nil, err
		}
	}
	if err := c.conn.SetReadDeadline(deadline); err != nil {
		return nil, err
	}
	msg, err := readBody(c.conn, head, length)
	if err == nil {
		err = Validate(msg)
	}
	if err != nil {
		Wipe(msg)
		return nil, err
	}
	return msg, nil
}

func (c *Conn) fill(b []byte, d time.Duration) error {
	if err := c.conn.SetReadDeadline(time.Now().Add(d)); err != nil {
		return err
	}
	n, err := io.ReadFull(c.conn, b)
	if n > 0 {
		return cutShort(err)
	}
	return err
}

// messageLength reads the first header of a message and returns the message's
// length with the header. Most peers that do not speak KMIP are found out here.
func messageLength(head [headerSize]byte) (int, error) {
	h, err := parseHeader(head[:], 0)
	if err != nil {
		return 0, err
	}
	tag := ttlv.Tag(h.tag)
	isMessage := tag == kmip14.TagRequestMessage || tag == kmip14.TagResponseMessage
	if !isMessage || h.kind != ttlv.TypeStructure {
		return 0, malformed(0, "neither a request nor a response")
	}
	if h.length > MaxMessage-headerSize {
		return 0, malformed(0, "longer than %d bytes", MaxMessage)
	}
	return headerSize + h.length, nil
}

// readStep is what a message may occupy before its bytes have arrived.
const readStep = 16 << 10

// readBody reads the rest of a message of length bytes that begins with head.
// What it returns grows with what has arrived, so that a header alone costs
// little. On errors it returns what it has, for the caller to wipe.
func readBody(r io.Reader, head [headerSize]byte, length int) ([]byte, error) {
	msg := make([]byte, headerSize, min(length, readStep))
	copy(msg, head[:])
	for len(msg) < length {
		if len(msg) == cap(msg) {
			msg = grow(msg, length)
		}
		n, err := io.ReadFull(r, msg[len(msg):cap(msg)])
		msg = msg[:len(msg)+n]
		if err != nil {
			return msg, cutShort(err)
		}
	}
	return msg, nil
}

// grow moves msg into a buffer of twice the size, up to limit.
func grow(msg []byte, limit int) []byte {
	bigger := make([]byte, len(msg), min(limit, 2*cap(msg)))
	copy(bigger, msg)
	Wipe(msg)
	return bigger
}

// cutShort turns the end of the stream inside a message into an error that
// does not look like the end of a conversation.
func cutShort(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: connection closed inside a message", ErrMalformed)
	}
	return err
}
