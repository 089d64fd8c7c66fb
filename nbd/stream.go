package nbd

import (
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stream is a connection in its second phase. One goroutine reads, one at a time
// writes.
type stream interface {
	io.ReadWriteCloser // Close only once nobody reads or writes
	// writeNow writes what can be written without waiting, and gives the rest. There
	// are 1024 parts at most (UIO_MAXIOV of the kernel).
	writeNow(p [][]byte) (rest [][]byte, err error)
	// stop lets Read end with an error once what has arrived is read.
	stop()
	// abort lets Read and Write fail at once.
	abort()
}

// newStream takes a connection over. If it is a socket, its goroutine waits for
// requests in the kernel, in one system call instead of the several that it takes
// Go's scheduler to wait for a socket.
func newStream(c net.Conn) (stream, error) {
	source, ok := c.(syscall.Conn)
	if !ok {
		return plainStream{c}, nil
	}
	raw, err := source.SyscallConn()
	if err != nil {
		return nil, err
	}
	own := -1
	err = raw.Control(func(fd uintptr) { own, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
	if err != nil {
		return nil, fmt.Errorf("take a socket over: %w", err)
	}
	if own < 0 {
		return plainStream{c}, nil
	}
	enlarge(own)
	if err := unix.SetNonblock(own, false); err != nil {
		unix.Close(own)
		return nil, fmt.Errorf("take a socket over: %w", err)
	}
	return &socket{fd: own}, c.Close()
}

// sendBuffer, in bytes, is room in the kernel for the replies to several large
// reads, so that the server is not stopped and woken within each.
const sendBuffer = 4 << 20

// enlarge gives a socket its sendBuffer, or as much as an ordinary user may have.
func enlarge(fd int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sendBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, sendBuffer) // a small one does as well
	}
}

// socket is a stream over a blocking socket.
type socket struct {
	fd     int
	mu     sync.Mutex
	closed bool
}

func (s *socket) Read(p []byte) (int, error) {
	for {
		n, err := unix.Read(s.fd, p)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, fmt.Errorf("receive: %w", err)
		case n == 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

// Write sends p. Go's runtime ignores the signal for a peer that has gone
// (package os/signal, "SIGPIPE").
func (s *socket) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Write(s.fd, p[done:])
		if err != nil && err != unix.EINTR {
			return done, fmt.Errorf("send: %w", err)
		}
		done += max(n, 0)
	}
	return done, nil
}

func (s *socket) writeNow(p [][]byte) ([][]byte, error) {
	for len(p) > 0 {
		n, err := unix.SendmsgBuffers(s.fd, p, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		switch {
		case err == unix.EAGAIN:
			return p, nil
		case err != nil && err != unix.EINTR:
			return nil, fmt.Errorf("send: %w", err)
		}
		p = without(p, max(n, 0))
	}
	return nil, nil
}

// without is p, which is changed, less its first n bytes.
func without(p [][]byte, n int) [][]byte {
	for len(p) > 0 && n >= len(p[0]) {
		n -= len(p[0])
		p = p[1:]
	}
	if n > 0 {
		p[0] = p[0][n:]
	}
	return p
}

func (s *socket) stop() { s.shutdown(unix.SHUT_RD) }

func (s *socket) abort() { s.shutdown(unix.SHUT_RDWR) }

// shutdown comes from other goroutines, for which the number of a closed socket
// may be another's.
func (s *socket) shutdown(how int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		_ = unix.Shutdown(s.fd, how) // fails if the peer has gone: just as well
	}
}

func (s *socket) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return unix.Close(s.fd)
}

// plainStream is a stream over what is no socket.
type plainStream struct{ net.Conn }

func (s plainStream) writeNow(p [][]byte) ([][]byte, error) { return p, nil }

func (s plainStream) stop() { _ = s.SetReadDeadline(time.Unix(1, 0)) } // fails for a closed one

func (s plainStream) abort() { _ = s.SetDeadline(time.Unix(1, 0)) } // likewise
