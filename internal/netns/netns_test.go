package netns

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestLink: what is sent arrives, is counted, and is lost without a word when the link
// is cut.
func TestLink(t *testing.T) {
	a, b := New(t), New(t)
	link := Connect(t, a, b, "10.77.0.1/24", "10.77.0.2/24")
	address := echo(t, a)
	if n := b.Sent(); n != 0 {
		t.Errorf("%d packets were sent by nobody", n)
	}
	checkReach(t, b, address, true)
	sent := b.Sent()
	if sent == 0 {
		t.Error("no packet was counted")
	}
	link.Cut()
	checkReach(t, b, address, false)
	if b.Sent() == sent {
		t.Error("a packet that was lost was not counted")
	}
	link.Mend()
	checkReach(t, b, address, true)
	link.Unplug()
	if conn, err := b.Dial(t.Context(), address); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("unplugged: %v, %v", conn, err)
	}
	link.Mend()
	checkReach(t, b, address, true)
}

// TestEnter: a program that is started in a namespace has its interfaces, and only these.
func TestEnter(t *testing.T) {
	a, b := New(t), New(t)
	Connect(t, a, b, "10.77.0.1/24", "10.77.0.2/24")
	cmd := exec.CommandContext(t.Context(), "cat", "/proc/net/dev")
	b.Enter(cmd)
	out, err := cmd.Output()
	if err != nil || strings.Count(string(out), ":") != 2 || !strings.Contains(string(out), device+":") {
		t.Errorf("%v: %s", err, out)
	}
}

// TestApart: a namespace reaches neither another nor this one.
func TestApart(t *testing.T) {
	a, b := New(t), New(t)
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a.Do(func() {
		if l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:9"); err == nil {
			defer l.Close()
			if conn, err := b.Dial(t.Context(), "127.0.0.1:9"); err == nil {
				conn.Close()
				t.Error("the other was reached")
			}
		}
	})
	if conn, err := b.Dial(t.Context(), l.Addr().String()); err == nil {
		conn.Close()
		t.Error("this one was reached")
	}
}

// echo gives the address at which it sends back what comes.
func echo(t *testing.T, n *Namespace) (address string) {
	t.Helper()
	n.Do(func() {
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "10.77.0.1:0")
		if err != nil {
			t.Error(err)
			return
		}
		address = l.Addr().String()
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = io.Copy(conn, conn)
				conn.Close()
			}
		}()
	})
	return address
}

func checkReach(t *testing.T, n *Namespace, address string, want bool) {
	t.Helper()
	limit := 30 * time.Second
	if !want {
		limit = 300 * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	conn, err := n.Dial(ctx, address)
	if err == nil {
		conn.Close()
	}
	if (err == nil) != want || (!want && !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, context.DeadlineExceeded)) {
		t.Errorf("reached %s: %v, want %v: %v", address, err == nil, want, err)
	}
}
