package listen

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCheckLocal(t *testing.T) {
	for address, want := range map[string]string{
		"/run/vmcrypt/metrics.sock": "", "127.0.0.1:9750": "", "[::1]:9750": "", "localhost:9750": "", "127.8.9.1:1": "", "127.0.0.1:0": "",
		"":     "neither",
		"9180": "neither", "metrics.sock": "neither",
		"127.0.0.1":         "neither",
		"127.0.0.1:http":    "no port",
		"127.0.0.1:65536":   "no port",
		":9750":             "other hosts",
		"0.0.0.0:9750":      "other hosts",
		"[::]:9750":         "other hosts",
		"192.0.2.1:9750":    "other hosts",
		"example.com:9750":  "other hosts",
		"localhost.evil:80": "other hosts",
	} {
		err := CheckLocal(address)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", address, err)
		}
	}
}

// TestReplacesOnlySockets: one that is left goes, nothing else does.
func TestReplacesOnlySockets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	old.Close()
	l, err := Local(t.Context(), path, -1)
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
	if _, err := Local(t.Context(), path, -1); err == nil {
		t.Error("a file was replaced")
	}
	if text, err := os.ReadFile(path); string(text) != "precious" {
		t.Errorf("%q, %v", text, err)
	}
}
