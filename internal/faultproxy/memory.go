package faultproxy

import (
	"bytes"
	"net"
	"sync"
	"time"
)

// pipe gives two ends of a connection within the process. Unlike net.Pipe's they
// have buffers, as sockets have: TLS deadlocks when both sides write at once.
func pipe() (client, server net.Conn) {
	a, b := net.Pipe()
	return buffer(a), buffer(b)
}

// buffered is an end whose writes wait for nobody.
type buffered struct {
	net.Conn
	mu     sync.Mutex
	closed bool
	queue  chan []byte
}

func buffer(c net.Conn) *buffered {
	b := &buffered{Conn: c, queue: make(chan []byte, 1024)}
	go b.pump()
	return b
}

// pump hands over what was written, and after that closes.
func (b *buffered) pump() {
	defer b.Conn.Close()
	for p := range b.queue {
		if _, err := b.Conn.Write(p); err != nil {
			break
		}
	}
}

func (b *buffered) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return 0, net.ErrClosed
	}
	select {
	case b.queue <- bytes.Clone(p):
		return len(p), nil
	default:
		return 0, net.ErrClosed // the peer has not read for a thousand writes
	}
}

// Close lets the peer have what was written before.
func (b *buffered) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil
	}
	b.closed = true
	close(b.queue)
	return b.SetReadDeadline(time.Now()) // whoever reads stops
}

func (b *buffered) SetDeadline(t time.Time) error { return b.SetReadDeadline(t) }

func (b *buffered) SetWriteDeadline(time.Time) error { return nil }
