package page

import (
	"context"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// TestServeEnds with its context, and has only so many clients until then.
func TestServeEnds(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, l, open(sample())) }()
	address := l.Addr().String()
	var idle []net.Conn
	for range maxClients {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		idle = append(idle, conn)
	}
	extra, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer extra.Close()
	if err := extra.SetReadDeadline(time.Now().Add(hang)); err != nil {
		t.Fatal(err)
	}
	if _, err := extra.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("one client too many: %v", err)
	}
	for _, conn := range idle {
		conn.Close()
	}
	answered(t, "http://"+address)
	stop()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(hang):
		t.Fatal("it goes on")
	}
	if conn, err := net.Dial("tcp", address); err == nil {
		conn.Close()
		t.Error("it still listens")
	}
}

func isTimeout(err error) bool {
	e, ok := err.(net.Error)
	return ok && e.Timeout()
}

// answered waits until there is a place for a client again.
func answered(t *testing.T, url string) {
	t.Helper()
	client := &http.Client{Timeout: hang}
	for begun := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		resp, err := client.Get(url)
		if err == nil {
			defer resp.Body.Close()
			_, _ = io.Copy(io.Discard, resp.Body)
			return
		}
		if time.Since(begun) > hang {
			t.Fatal(err)
		}
	}
}
