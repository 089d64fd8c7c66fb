package main

import (
	"context"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// get asks for a page with a token, over a unix socket if there is one.
func get(t *testing.T, url, token, socket string) (status int, text string) {
	t.Helper()
	transport := new(http.Transport)
	defer transport.CloseIdleConnections()
	if socket != "" {
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := (&http.Client{Transport: transport, Timeout: hang}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// TestStatusPage: who has the token sees the VMs, over a restart of the agent, too; the
// token is told to nobody.
func TestStatusPage(t *testing.T) {
	t.Parallel()
	h := startHost(t, groupsConfig, "  http: 127.0.0.1:0")
	h.unlock(h.vm("web01", "scsi0:0"))
	token := ""
	for range 2 {
		start := regexp.MustCompile(`at=(http://127\.0\.0\.1:\d+/) "token in"=(\S+)`).FindAllStringSubmatch(h.log(), -1)
		if start == nil {
			t.Fatalf("the log does not say where the page is: %s", h.log())
		}
		url, file := start[len(start)-1][1], start[len(start)-1][2]
		checkGroup(t, file, 0o640)
		checkGroup(t, filepath.Dir(file), fs.ModeDir|0o710)
		text := strings.TrimSpace(string(read(t, file)))
		if token != "" && text != token {
			t.Error("the next agent has another token")
		}
		token = text
		if status, text := get(t, url, token, ""); status != http.StatusOK || !strings.Contains(text, "web01") {
			t.Errorf("with the token: %d %s", status, text)
		}
		if status, text := get(t, url+"fragment", "", ""); status != http.StatusUnauthorized || strings.Contains(text, "web01") {
			t.Errorf("without it: %d %s", status, text)
		}
		if strings.Contains(h.log(), token) {
			t.Error("the token is in the log")
		}
		h.stopAgent(syscall.SIGTERM)
		h.startAgent()
	}
}

// TestStatusPageOnSocket: its mode says who sees the page, and no token is needed.
func TestStatusPageOnSocket(t *testing.T) {
	t.Parallel()
	h := newHost(t, groupsConfig)
	socket := filepath.Join(h.dir, "page.sock")
	h.configure("  http: " + socket)
	h.startAgent()
	h.vm("web01", "scsi0:0")
	if status, text := get(t, "http://localhost/", "", socket); status != http.StatusOK || !strings.Contains(text, "web01") {
		t.Errorf("%d %s", status, text)
	}
	checkGroup(t, socket, fs.ModeSocket|0o660)
	if files, _ := filepath.Glob(filepath.Join(h.home.dir, "agent/http-token")); files != nil {
		t.Error("there is a token that nobody needs")
	}
}

// checkGroup checks the mode of what root's agent has for viewers.
func checkGroup(t *testing.T, path string, mode fs.FileMode) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	group, err := user.LookupGroup(viewGroup)
	if err != nil {
		t.Skipf("the group %s of Debian is not there", viewGroup)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if gid := strconv.Itoa(int(info.Sys().(*syscall.Stat_t).Gid)); info.Mode() != mode || gid != group.Gid {
		t.Errorf("%s has the mode %v and the group %s", path, info.Mode(), gid)
	}
}

// TestStatusPageIsLocal: the agent puts it on no other address, and a page or metrics that
// can't be served keep nobody from unlocking VMs.
func TestStatusPageIsLocal(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	if r := h.run("agent", "--http", "0.0.0.0:9180"); r.code != exitUsage || !strings.Contains(r.stderr, "other hosts") {
		t.Errorf("exit code %d, %s", r.code, r.stderr)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	h.configure("  http: " + l.Addr().String() + "\n  metrics: " + l.Addr().String())
	h.startAgent()
	for _, lost := range []string{"there is no status page", "there are no metrics"} {
		if !strings.Contains(h.log(), lost) {
			t.Errorf("that %s is not said: %s", lost, h.log())
		}
	}
	h.unlock(h.vm("web01", "scsi0:0"))
}

// configure adds lines to the last part of the configuration.
func (h *host) configure(lines string) {
	path := filepath.Join(h.home.dir, "config.yaml")
	write(h.t, path, append(read(h.t, path), lines+"\n"...))
}
