package listen

import (
	"net"
	"sync"

	"golang.org/x/sync/semaphore"
)

// Limit has only so many connections open at a time. More are closed at once.
func Limit(l net.Listener, connections int64) net.Listener {
	return &limited{l, semaphore.NewWeighted(connections)}
}

type limited struct {
	net.Listener
	places *semaphore.Weighted
}

// Accept waits for a client that there is a place for.
func (l *limited) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.places.TryAcquire(1) {
			return &place{conn, sync.OnceFunc(func() { l.places.Release(1) })}, nil
		}
		conn.Close()
	}
}

// place is a connection that gives its place back.
type place struct {
	net.Conn
	leave func()
}

// Close gives the place back.
func (p *place) Close() error {
	p.leave()
	return p.Conn.Close()
}
