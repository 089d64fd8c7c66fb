package kms

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/gemalto/kmip-go/kmip14"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// told gives the entries of an operation as "client: reason", when there are n.
func told(t *testing.T, h Home, operation string, n int) (all []string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		all = nil
		for _, line := range auditLines(t, h) {
			if line.Operation == operation {
				all = append(all, line.Client+": "+line.Reason)
			}
		}
		if len(all) >= n || time.Now().After(end) {
			return all
		}
	}
}

func wantTold(t *testing.T, h Home, operation string, want ...string) {
	t.Helper()
	got := told(t, h, operation, len(want))
	if len(got) != len(want) {
		t.Fatalf("logged %q, want %q", got, want)
	}
	for i := range want {
		if !strings.HasPrefix(got[i], want[i]) {
			t.Errorf("logged %q, want %q", got[i], want[i])
		}
	}
}

func TestRotationIsLogged(t *testing.T) {
	everyWay(t, func(t *testing.T, h Home) {
		if err := h.RotateRoot(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantTold(t, h, rotateOperation, administrator()+": ")
		wantWhole(t, h, 1, 1)
	})
}

// TestRefusedMessagesAreLogged, although there is no operation.
func TestRefusedMessagesAreLogged(t *testing.T) {
	everyWay(t, func(t *testing.T, h Home) {
		c := dial(t, h)
		in := c.message(items(kmip14.OperationQuery, &kmipwire.QueryRequest{})...)
		in.RequestHeader.ProtocolVersion = kmipwire.ProtocolVersion{ProtocolVersionMajor: 3}
		c.batch(in)
		wantTold(t, h, messageOperation, "vmcrypt: InvalidMessage: KMIP 3.0")
		c.conn.Close()
		for i, bytes := range []string{"GET / HTTP/1.1\r\n\r\n", "\x42\x00\x78\x01\xff\xff\xff\xff", "\x42\x00\x78\x01\x00\x00\x00\x08\x42\x00\x77\x02\x00\x00\x00\x04"} {
			c := dial(t, h)
			if err := c.conn.Write(t.Context(), []byte(bytes)); err != nil {
				t.Fatal(err)
			}
			if _, err := c.conn.Read(t.Context()); err != nil {
				t.Errorf("no answer: %v", err)
			}
			if got := told(t, h, messageOperation, i+2); len(got) != i+2 || !strings.HasPrefix(got[i+1], "vmcrypt: InvalidMessage: malformed") {
				t.Errorf("logged %q", got)
			}
			c.conn.Close()
		}
		wantWhole(t, h, 1, 4)
	})
}

// TestRefusedConnectionsAreLogged: who has no access, and who does not even know
// how to ask for it; but not who only looks whether somebody listens.
func TestRefusedConnectionsAreLogged(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	gone := addClient(t, h, "gone", false)
	if err := h.RevokeClient(t.Context(), "gone"); err != nil {
		t.Fatal(err)
	}
	address, stop := serve(t, h)
	for _, text := range []string{"", "GET / HTTP/1.1\r\n\r\n"} {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(conn, text)
		conn.Close()
	}
	wantTold(t, h, connectionOperation, ": tls: first record does not look like a TLS handshake")
	if _, err := dialAs(t, h, gone); err == nil {
		t.Error("a revoked client was let in")
	}
	nobody := clientTLS(t, h)
	nobody.Certificates = nil
	if _, err := dialAs(t, h, nobody); err == nil {
		t.Error("somebody without a certificate was let in")
	}
	got := strings.Join(told(t, h, connectionOperation, 3), "\n")
	if !strings.Contains(got, "gone: revoked") || !strings.Contains(got, ": tls: client didn't provide a certificate") {
		t.Errorf("logged\n%s", got)
	}
	stop()
	wantWhole(t, h, 1, 5)
}

// TestFloodOfRefusals: what a flood writes is bounded, and how large it was is
// told. One kind does not hide the other.
func TestFloodOfRefusals(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	s := startServer(t, h)
	for range 10 * maxRefusals {
		s.strangers.add("", "192.0.2.1", "no TLS")
	}
	s.shutOut.add("gone", "192.0.2.2", "revoked")
	s.countRefusals()
	for range 2 {
		s.strangers.add("", "192.0.2.1", "no TLS")
	}
	s.countRefusals()
	s.countRefusals()
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	var want []string
	for range maxRefusals {
		want = append(want, ": no TLS")
	}
	want = append(want, "gone: revoked", fmt.Sprintf(": %d more were refused", 9*maxRefusals), ": no TLS", ": 1 more were refused")
	wantTold(t, h, connectionOperation, want...)
	wantWhole(t, h, 1, uint64(len(want)))
}

// TestUnloggedRefusals: a client that cannot be refused in the log is refused.
func TestUnloggedRefusals(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	s := startServer(t, h)
	_ = s.audit.Close()
	s.strangers.add("", "192.0.2.1", "no TLS")
	e := s.engine.reporting(s.audit.append)
	response, ok := e.answer([]byte("no message"), "me")
	var out kmipwire.ResponseMessage
	if err := kmipwire.Unmarshal(response, &out); err != nil || ok || out.BatchItem[0].ResultReason != kmip14.ResultReasonGeneralFailure {
		t.Errorf("%v %v: %+v", ok, err, out)
	}
	_ = s.close()
}

// TestAdministratorsNeedNoCertificates: the server's are asked for by clients.
func TestAdministratorsNeedNoCertificates(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	addClient(t, h, "a", false)
	for _, name := range []string{"server.pem", "server.key"} {
		h.withoutFile(t, name)
	}
	if err := h.RevokeClient(context.Background(), "a"); err != nil {
		t.Error(err)
	}
	if err := h.RotateRoot(context.Background()); err != nil {
		t.Error(err)
	}
}
