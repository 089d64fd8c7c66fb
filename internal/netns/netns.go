// Package netns makes network namespaces for tests, as sites that nothing connects
// but what a test lays between them. It needs root and iproute2; without, tests are
// skipped.
//
//	a, b := netns.New(t), netns.New(t)
//	link := netns.Connect(t, a, b, "10.77.0.1/24", "10.77.0.2/24")
//	go a.Do(func() { /* listens at 10.77.0.1 */ })
//	conn, err := b.Dial(ctx, "10.77.0.1:5696")
//	link.Cut()
package netns

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmcrypt/vmcrypt/internal/testtool"
)

// Namespace is a network namespace whose only interface is the loopback, until it is
// connected to others.
type Namespace struct {
	net *os.File // what it is as long as nobody is in it
	t   testing.TB
}

// New makes a namespace, which goes away with t. It has no name as "ip netns" gives one:
// that takes a mount, for which a chroot is no place.
func New(t testing.TB) *Namespace {
	t.Helper()
	testtool.Need(t, "ip")
	if os.Geteuid() != 0 {
		t.Skip("only root can make network namespaces")
	}
	n := &Namespace{t: t}
	err := onOwnThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		n.net, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		t.Skip("network namespaces cannot be made here: ", err)
	}
	t.Cleanup(func() { n.net.Close() })
	n.ip("link", "set", "lo", "up")
	return n
}

// onOwnThread runs f on a thread that ends with it, whatever f does to that.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlock
		done <- f()
	}()
	return <-done
}

// path is where programs find the namespace.
func (n *Namespace) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.net.Fd()) }

// ip runs the program ip in the namespace.
func (n *Namespace) ip(args ...string) {
	n.t.Helper()
	var out []byte
	var err error
	n.Do(func() {
		out, err = exec.CommandContext(context.Background(), testtool.Need(n.t, "ip"), args...).CombinedOutput() //nolint:gosec // the arguments are those of this package
	})
	if err != nil {
		n.t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// Do runs f in the namespace: sockets that f itself makes, on this goroutine, and programs
// that it starts are of it. It returns when f does.
func (n *Namespace) Do(f func()) {
	err := onOwnThread(func() error {
		if err := unix.Setns(int(n.net.Fd()), unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("setns", err)
		}
		f()
		return nil
	})
	if err != nil {
		n.t.Error(err)
	}
}

// Enter has a command run in the namespace. It is not started yet.
func (n *Namespace) Enter(cmd *exec.Cmd) {
	n.t.Helper()
	nsenter := testtool.Need(n.t, "nsenter")
	cmd.Args = append([]string{nsenter, "--net=" + n.path(), "--", cmd.Path}, cmd.Args[1:]...)
	cmd.Path = nsenter
}

// Dial connects from the namespace to an IP address and port: it is a kek.DialFunc.
func (n *Namespace) Dial(ctx context.Context, address string) (conn net.Conn, err error) {
	n.Do(func() { conn, err = new(net.Dialer).DialContext(ctx, "tcp", address) })
	return conn, err
}

// Link connects two namespaces.
type Link struct{ ends [2]end }

// end is one of a link.
type end struct {
	*Namespace
	address, hardware string // IP address and hardware address
}

// device is what a link is called at both ends.
const device = "site"

// Connect lays a link between a and b, which have no other, with an address and the
// length of its prefix for each end. No packet is on it but those that somebody sends:
// each end knows the other's hardware address, and there is no IPv6.
func Connect(t testing.TB, a, b *Namespace, addressA, addressB string) *Link {
	t.Helper()
	a.ip("link", "add", device, "type", "veth", "peer", "name", device, "netns", b.path())
	l := &Link{[2]end{a.attach(addressA), b.attach(addressB)}}
	l.Mend()
	return l
}

// attach brings the namespace's end of a link up.
func (n *Namespace) attach(address string) end {
	n.t.Helper()
	n.Do(func() {
		_ = os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0) // there may be none
	})
	n.ip("link", "set", device, "up")
	n.ip("addr", "add", address, "dev", device)
	host, _, _ := strings.Cut(address, "/")
	return end{n, host, n.hardware()}
}

func (n *Namespace) hardware() string {
	n.t.Helper()
	var address string
	n.Do(func() {
		i, err := net.InterfaceByName(device)
		if err != nil {
			n.t.Error(err)
			return
		}
		address = i.HardwareAddr.String()
	})
	return address
}

// Unplug takes the link down at both ends, which know it.
func (l *Link) Unplug() {
	for _, e := range l.ends {
		e.ip("link", "set", device, "down")
	}
}

// Cut has all packets that are sent over the link lost, without either end being told.
func (l *Link) Cut() {
	nobody := "02:00:00:00:00:01"
	l.direct(nobody, nobody)
}

// Mend ends either.
func (l *Link) Mend() {
	for _, e := range l.ends {
		e.ip("link", "set", device, "up")
	}
	l.direct(l.ends[0].hardware, l.ends[1].hardware)
}

// direct has packets for each end sent to a hardware address.
func (l *Link) direct(first, second string) {
	l.ends[1].ip("neigh", "replace", l.ends[0].address, "lladdr", first, "dev", device, "nud", "permanent")
	l.ends[0].ip("neigh", "replace", l.ends[1].address, "lladdr", second, "dev", device, "nud", "permanent")
}

// Sent tells how many packets the namespace has sent over its link, those that were
// lost included.
func (n *Namespace) Sent() int {
	n.t.Helper()
	var table []byte
	n.Do(func() { table, _ = os.ReadFile("/proc/thread-self/net/dev") })
	for line := range strings.Lines(string(table)) {
		name, counts, _ := strings.Cut(strings.TrimSpace(line), ":")
		if fields := strings.Fields(counts); name == device && len(fields) > 9 {
			sent, err := strconv.Atoi(fields[9])
			if err != nil {
				n.t.Fatal(err)
			}
			return sent
		}
	}
	n.t.Fatalf("no link in %s", table)
	return 0
}
