package kms

import (
	"context"
	"errors"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// localTimeouts are those of a connection within this process. They are short,
// since others wait for the store.
var localTimeouts = kmipwire.Timeouts{
	Handshake: 5 * time.Second,
	Idle:      10 * time.Second,
	Message:   10 * time.Second,
}

// Dial connects to the key manager of this home: to the server that Serve runs,
// in whichever process, or, if none does, to one within this process that has
// the store open until the connection is closed. The address is ignored: the
// home knows better. It is the kek.DialFunc of the alias "local". What comes
// back is the bare connection, on which the client starts TLS.
//
// If others keep the store to themselves for longer than 10 s, it fails with
// ErrBusy. Close returns when the store is closed.
func (h Home) Dial(ctx context.Context, _ string) (net.Conn, error) {
	s, conn, err := h.reach(ctx)
	if conn != nil || err != nil {
		return conn, err
	}
	conn, err = h.serveOne(s)
	if err != nil {
		s.close()
		return nil, err
	}
	return conn, nil
}

// reach connects to the server that runs or opens the store. A server that has
// stopped in between is no failure.
func (h Home) reach(ctx context.Context) (*store, net.Conn, error) {
	for {
		s, running, err := h.access(ctx, forWriting)
		if running == nil || err != nil {
			return s, nil, err
		}
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", running.Address)
		if err == nil {
			return nil, conn, nil
		}
		if _, gone := h.status(ctx); gone == nil {
			return nil, nil, err
		}
	}
}

// serveOne serves one connection, which it returns, and closes the store when
// that ends.
func (h Home) serveOne(s *store) (net.Conn, error) {
	srv, err := h.newServer(s, localTimeouts)
	if err != nil {
		return nil, err
	}
	client, remote, err := socketPair()
	if err != nil {
		return nil, errors.Join(err, srv.audit.Close())
	}
	conn := &localConn{Conn: client, closed: make(chan struct{})}
	go func() {
		defer close(conn.closed)
		defer srv.close()
		srv.handle(context.Background(), srv.guests.enter(context.Background(), remote))
	}()
	return conn, nil
}

// localConn is the client's end of a connection within this process.
type localConn struct {
	net.Conn
	closed chan struct{} // when the store is
}

// Transient says that the connection is not to be kept: others wait for the store.
func (c *localConn) Transient() {}

// Close waits for the store to be closed.
func (c *localConn) Close() error {
	err := c.Conn.Close()
	<-c.closed
	return err
}

// socketPair gives two connected sockets. Unlike a net.Pipe they have buffers:
// neither side's goodbye has to wait for the other to listen.
func socketPair() (a, b net.Conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	a, errA := connOf(fds[0])
	b, errB := connOf(fds[1])
	if errA == nil && errB == nil {
		return a, b, nil
	}
	for _, c := range []net.Conn{a, b} {
		if c != nil {
			c.Close()
		}
	}
	return nil, nil, errors.Join(errA, errB)
}

func connOf(fd int) (net.Conn, error) {
	f := os.NewFile(uintptr(fd), "key manager")
	defer f.Close() // net.FileConn has its own
	return net.FileConn(f)
}
