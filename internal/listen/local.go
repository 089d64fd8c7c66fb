// Package listen makes sockets that only this host, or only some of its users, can
// connect to.
package listen

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
)

// CheckLocal refuses what is neither the absolute path of a unix socket nor HOST:PORT of
// an address that only this host reaches. Port 0 is one that is free.
func CheckLocal(address string) error {
	if filepath.IsAbs(address) {
		return nil
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%q is neither the absolute path of a socket nor HOST:PORT", address)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("%q: %q is no port", address, port)
	}
	if ip, err := netip.ParseAddr(host); host != "localhost" && (err != nil || !ip.Unmap().IsLoopback()) {
		return fmt.Errorf("%q may be reached from other hosts: name 127.0.0.1, [::1], localhost or a socket", address)
	}
	return nil
}

// Local listens at an address that CheckLocal takes. At a unix socket, its owner can
// connect and, unless that is -1, a group.
func Local(ctx context.Context, address string, group int) (net.Listener, error) {
	if !filepath.IsAbs(address) {
		return new(net.ListenConfig).Listen(ctx, "tcp", address)
	}
	l, err := Private(ctx, address)
	if err != nil || group < 0 {
		return l, err
	}
	if err := errors.Join(os.Lchown(address, -1, group), os.Chmod(address, 0o660)); err != nil { //nolint:gosec // as the group may connect
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}
