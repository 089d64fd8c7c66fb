package kms

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// fakeConn is a connection from an address that notes when it is closed.
type fakeConn struct {
	net.Conn
	from   string
	closed bool
}

func (c *fakeConn) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.ParseIP(c.from), Port: 1} }
func (c *fakeConn) Close() error         { c.closed = true; return nil }

// hall is a server's guests in a test, with bounds that are soon reached.
type hall struct {
	*testing.T
	*guests
}

func newHall(t *testing.T) *hall {
	return &hall{t, newGuests(limits{
		handshakes: 4, connections: 6, perAddress: 5, perClient: 3, grace: 20 * time.Millisecond,
		requests: 2, requestsPerClient: 1, messageBytes: 100, messageBytesPerClient: 60,
	})}
}

func (h *hall) come(from string) *guest {
	h.Helper()
	n := h.enter(h.Context(), &fakeConn{from: from})
	if n == nil {
		h.Fatal("not let in")
	}
	return n
}

func (h *hall) comeAs(client, from string) *guest {
	h.Helper()
	n := h.come(from)
	if !h.identify(n, client) {
		h.Fatalf("no room for %s", client)
	}
	return n
}

func (h *hall) want(n *guest, closed bool) {
	h.Helper()
	if got := n.conn.(*fakeConn).closed; got != closed {
		h.Errorf("a guest of %q from %s: closed is %v, want %v", n.client, n.address, got, closed)
	}
}

// TestNewcomersCompeteForTime: one that is young stays; then those go first that
// have not even said hello.
func TestNewcomersCompeteForTime(t *testing.T) {
	h := newHall(t)
	var first []*guest
	for range 4 {
		first = append(first, h.come("10.0.0.1"))
	}
	h.greet(first[0])
	begin := time.Now()
	fifth := h.come("10.0.0.2")
	if took := time.Since(begin); took < h.grace/2 {
		t.Errorf("let in after %v", took)
	}
	h.want(first[0], false)
	h.want(first[1], true)
	h.want(fifth, false)
}

func TestNobodyEntersAfterTheEnd(t *testing.T) {
	h := newHall(t)
	for range 4 {
		h.come("10.0.0.1")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if h.enter(ctx, &fakeConn{from: "10.0.0.2"}) != nil {
		t.Error("let in")
	}
}

// TestTheGreedyMakeRoom: a client, an address, or all, have as much as they may;
// the one that has most loses what it has not used for longest.
func TestTheGreedyMakeRoom(t *testing.T) {
	h := newHall(t)
	modest := h.comeAs("modest", "10.0.0.1")
	a, b, c := h.comeAs("greedy", "10.0.0.2"), h.comeAs("greedy", "10.0.0.3"), h.comeAs("greedy", "10.0.0.3")
	if !h.begin(t.Context(), a) {
		t.Fatal("no slot")
	}
	h.comeAs("greedy", "10.0.0.4") // its fourth
	h.want(a, false)               // is being answered
	h.want(b, true)
	h.comeAs("other", "10.0.0.5")
	h.comeAs("third", "10.0.0.6")
	h.comeAs("fourth", "10.0.0.7") // the seventh in all
	h.want(c, true)
	h.want(modest, false)
	h.end(a)
}

func TestAddressesAreBounded(t *testing.T) {
	h := newHall(t)
	near := []*guest{}
	for _, client := range []string{"a", "b", "c", "d", "e", "f"} {
		near = append(near, h.comeAs(client, "10.0.0.1"))
	}
	h.want(near[0], true)
	h.want(near[1], false)
}

// TestBusyEverywhere: where all are being answered, a newcomer has to come back.
func TestBusyEverywhere(t *testing.T) {
	h := newHall(t)
	h.perClient = 1
	a := h.comeAs("a", "10.0.0.1")
	if !h.begin(t.Context(), a) {
		t.Fatal("no slot")
	}
	if h.identify(h.come("10.0.0.1"), "a") {
		t.Error("there was room")
	}
	h.end(a)
}

// TestRequestsTakeTurns: of one client, and of all.
func TestRequestsTakeTurns(t *testing.T) {
	h := newHall(t)
	a1, a2, b, c := h.comeAs("a", "10.0.0.1"), h.comeAs("a", "10.0.0.1"), h.comeAs("b", "10.0.0.1"), h.comeAs("c", "10.0.0.1")
	soon, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if !h.begin(soon, a1) || h.begin(soon, a2) || !h.begin(t.Context(), b) {
		t.Fatal("a client has one slot")
	}
	if h.begin(soon, c) {
		t.Fatal("there are two slots")
	}
	h.end(a1)
	if !h.begin(t.Context(), c) {
		t.Error("a slot was lost")
	}
	h.expel("a")
	h.end(b)
	if h.begin(t.Context(), a2) {
		t.Error("a client that was expelled is answered")
	}
	if !h.begin(t.Context(), b) {
		t.Error("a slot was lost")
	}
}

// TestMemoryIsShared: a client cannot take all that there is for long messages.
func TestMemoryIsShared(t *testing.T) {
	h := newHall(t)
	a, b := h.comeAs("a", "10.0.0.1"), h.comeAs("b", "10.0.0.1")
	soon, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := h.reserve(t.Context(), a, 60); err != nil {
		t.Fatal(err)
	}
	if h.reserve(soon, a, 1) == nil {
		t.Error("one client has more than its share")
	}
	if err := h.reserve(t.Context(), b, 40); err != nil {
		t.Fatal(err)
	}
	if h.reserve(soon, b, 10) == nil {
		t.Error("there is more than there is")
	}
	h.release(a, 60)
	if err := h.reserve(t.Context(), b, 10); err != nil {
		t.Error(err)
	}
}

func TestLongHandshake(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	go func() { _, _ = b.Write(make([]byte, 2*maxHandshake)) }()
	defer b.Close()
	if n, err := io.Copy(io.Discard, &newcomer{a, maxHandshake}); err == nil || errors.Is(err, io.EOF) || n != maxHandshake {
		t.Errorf("%d bytes, %v", n, err)
	}
}

func TestLimitsFitTheProcess(t *testing.T) {
	l := serverLimits.fitting()
	if l.connections < 16 || l.handshakes < 4 || l.connections > serverLimits.connections || l.handshakes > serverLimits.handshakes {
		t.Errorf("%+v", l)
	}
}
