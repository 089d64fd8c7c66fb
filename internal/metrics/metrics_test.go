package metrics

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/vmcrypt/vmcrypt/internal/listen"
)

func serve(t *testing.T, registry *prometheus.Registry, path string, group int) *http.Client {
	t.Helper()
	l, err := listen.Local(t.Context(), path, group)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		Serve(ctx, l, registry)
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case <-ended:
		case <-time.After(30 * time.Second):
			t.Error("Serve does not end")
		}
	})
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", path)
	}}}
}

func TestServe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	registry := NewRegistry("1.2.3")
	client := serve(t, registry, path, os.Getgid())
	if info, err := os.Lstat(path); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("the socket: %v, %v", info.Mode(), err)
	}
	for _, test := range []struct {
		method, path string
		status       int
	}{
		{http.MethodGet, "/metrics", http.StatusOK},
		{http.MethodPost, "/metrics", http.StatusMethodNotAllowed},
		{http.MethodGet, "/", http.StatusNotFound},
		{http.MethodGet, "/debug/pprof/", http.StatusNotFound},
	} {
		req, err := http.NewRequestWithContext(t.Context(), test.method, "http://x"+test.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != test.status || err != nil {
			t.Errorf("%s %s: %s, %v", test.method, test.path, resp.Status, err)
		}
		if test.status == http.StatusOK && !strings.Contains(string(body), `version="1.2.3"`) {
			t.Errorf("%s", body)
		}
	}
}

// TestClients: who opens connections and leaves them open has only so many, and those who
// come after them are served.
func TestClients(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	client := serve(t, NewRegistry("1.2.3"), path, -1)
	var idle []net.Conn
	for range maxClients + 1 {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		idle = append(idle, conn)
	}
	extra := idle[maxClients]
	if err := extra.SetReadDeadline(time.Now().Add(requestTime / 2)); err != nil {
		t.Fatal(err)
	}
	if _, err := extra.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("one client too many: %v", err)
	}
	for _, conn := range idle {
		conn.Close()
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		resp, err := client.Get("http://x/metrics")
		if err == nil {
			resp.Body.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}
