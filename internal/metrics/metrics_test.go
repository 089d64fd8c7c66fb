package metrics

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func TestCheckAddress(t *testing.T) {
	for address, want := range map[string]string{
		"/run/vmcrypt/metrics.sock": "", "127.0.0.1:9750": "", "[::1]:9750": "", "localhost:9750": "", "127.8.9.1:1": "",
		"":                  "neither",
		"metrics.sock":      "neither",
		"127.0.0.1":         "neither",
		"127.0.0.1:http":    "no port",
		"127.0.0.1:0":       "no port",
		"127.0.0.1:65536":   "no port",
		":9750":             "other hosts",
		"0.0.0.0:9750":      "other hosts",
		"[::]:9750":         "other hosts",
		"192.0.2.1:9750":    "other hosts",
		"example.com:9750":  "other hosts",
		"localhost.evil:80": "other hosts",
	} {
		err := CheckAddress(address)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", address, err)
		}
	}
}

func serve(t *testing.T, registry *prometheus.Registry, path string, group int) *http.Client {
	t.Helper()
	l, err := Listen(t.Context(), path, group)
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

// TestListenReplacesOnlySockets: one that is left goes, nothing else does.
func TestListenReplacesOnlySockets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	old.Close()
	l, err := Listen(t.Context(), path, -1)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("without a group: %v, %v", info.Mode(), err)
	}
	l.Close()
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(t.Context(), path, -1); err == nil {
		t.Error("a file was replaced")
	}
	if text, err := os.ReadFile(path); string(text) != "precious" {
		t.Errorf("%q, %v", text, err)
	}
}
