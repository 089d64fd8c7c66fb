// Package pykmip starts the key manager of PyKMIP for tests: an implementation
// of KMIP that is not ours.
//
//	server := pykmip.Start(t)
//	// a KMIP server at server.Address, for who shows server.ClientCert
//	server.SpeakUpTo(t, "1.2") // as an older one would
package pykmip

import (
	"context"
	_ "embed"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vmcrypt/vmcrypt/internal/testtool"
)

// startTimeout is how long the server may take to listen: it is a slow starter,
// the more so when other tests keep the machine busy.
const startTimeout = 60 * time.Second

//go:embed server.py
var program string

// Server is a running key manager and the files that a client of it needs.
type Server struct {
	Address string // host:port on the loopback
	PKI

	limit string // path of a file: the newest version of KMIP to speak
	kill  func()
}

// Start starts PyKMIP's server with an empty store, and has t kill it in the
// end. The test is skipped where PyKMIP is missing.
func Start(t testing.TB) *Server {
	t.Helper()
	testtool.Need(t, "pykmip-server")
	python := testtool.Need(t, "/usr/bin/python3") // Debian's, which finds its package
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	server := &Server{Address: freeAddress(t), PKI: NewPKI(t), limit: at("limit")}
	writeFile(t, at("server.conf"), []byte(server.config(t, dir)))
	cmd := exec.CommandContext(t.Context(), python, "-W", "ignore", "-c", program, server.limit, "-f", at("server.conf"), "-l", at("server.log"))
	died := server.run(t, cmd)
	if err := await(t.Context(), server.Address, died); err != nil {
		text, _ := os.ReadFile(at("server.log"))
		t.Fatalf("pykmip-server: %v\n%s", err, text)
	}
	return server
}

// SpeakUpTo has the server be one of an older version of KMIP, such as "1.2", from the
// next request on.
func (s *Server) SpeakUpTo(t testing.TB, version string) {
	t.Helper()
	next := s.limit + ".next"
	writeFile(t, next, []byte(version))
	if err := os.Rename(next, s.limit); err != nil {
		t.Fatal(err)
	}
}

// Kill ends the server. Nothing is left of its keys.
func (s *Server) Kill() { s.kill() }

// config is the server's configuration. Its default is TLS 1.0; the suites named
// are those of TLS 1.2 that it has in common with package crypto/tls.
func (s *Server) config(t testing.TB, dir string) string {
	t.Helper()
	policies := filepath.Join(dir, "policies")
	if err := os.Mkdir(policies, 0o700); err != nil {
		t.Fatal(err)
	}
	host, port, err := net.SplitHostPort(s.Address)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf(`[server]
hostname=%s
port=%s
certificate_path=%s
key_path=%s
ca_path=%s
auth_suite=TLS1.2
tls_cipher_suites=TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
policy_path=%s
database_path=%s
logging_level=INFO
`, host, port, s.ServerCert, s.ServerKey, s.CA, policies, filepath.Join(dir, "store.db"))
}

// run starts cmd in a process group of its own, which is killed when the test
// ends: the server has helper processes, and takes 12 s to stop when asked to.
// The channel yields how the program ended.
func (s *Server) run(t testing.TB, cmd *exec.Cmd) <-chan error {
	t.Helper()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	died := make(chan error, 1)
	go func() {
		died <- cmd.Wait()
		close(died)
	}()
	s.kill = sync.OnceFunc(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		for range died { // until it is gone, so that its files can be removed
		}
	})
	t.Cleanup(s.kill)
	return died
}

// await returns when something listens at address.
func await(ctx context.Context, address string, died <-chan error) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err == nil {
			return conn.Close()
		}
		select {
		case err := <-died:
			return fmt.Errorf("it ended before it listened: %w", err)
		case <-ctx.Done():
			return fmt.Errorf("it does not listen after %v: %w", startTimeout, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// freeAddress is one that nothing listens at now.
func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func writeFile(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}
