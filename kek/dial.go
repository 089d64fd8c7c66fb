package kek

import (
	"context"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// tcp connects by TCP. If what is sent on a connection is not acknowledged for limit, which
// takes no longer than to connect, the host is gone, and the connection with it: else one
// that was kept would pass for a key manager that is only slow (tcp(7), TCP_USER_TIMEOUT).
func tcp(limit time.Duration) DialFunc {
	d := net.Dialer{Timeout: limit, Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) {
			// Without it, it only takes longer.
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(limit.Milliseconds()))
		})
	}}
	return func(ctx context.Context, address string) (net.Conn, error) { return d.DialContext(ctx, "tcp", address) }
}
