package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gemalto/kmip-go/kmip14"

	"github.com/vmcrypt/vmcrypt/agent"
	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
	"github.com/vmcrypt/vmcrypt/internal/pykmip"
	"github.com/vmcrypt/vmcrypt/kms"
)

func TestInitOverwritesNothing(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	for _, path := range []string{"config.yaml", "client.key", "kms/root.key", "kms/store.db", "kms/ca.key"} {
		if info, err := os.Stat(filepath.Join(h.dir, path)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v; want mode 0600", path, info, err)
		}
	}
	before := sums(t, h.dir)
	h.fails(exitFailure, []string{h.dir}, "init")
	if sums(t, h.dir) != before {
		t.Error("init changed an existing home")
	}
}

// TestConfigurationElsewhere: --config may name any file.
func TestConfigurationElsewhere(t *testing.T) {
	t.Parallel()
	h := emptyHome(t)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	write(t, at("passphrase"), []byte("open sesame"))
	smallImage(t, at("disk.img"))
	h.ok("--config", at("mine.yaml"), "init")
	h.ok("encrypt", at("disk.img"), "--output", at("enc"), "--config", at("mine.yaml"))
	h.ok("kms", "backup", at("backup"), "--passphrase-file", at("passphrase"), "--config="+at("mine.yaml"))
	h.fails(exitFailure, []string{"vmcrypt init"}, "decrypt", at("enc"), "--output", at("dec"))
}

// serveKMS starts "vmcrypt kms serve" and waits until it listens, at the address
// that it returns. It ends with the test.
func (h *home) serveKMS(args ...string) string {
	h.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := h.command(ctx, append([]string{"kms", "serve", "--listen", "127.0.0.1:0"}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		cancel()
		_ = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != exitDone {
			h.t.Errorf("kms serve: exit code %d: %s", code, stderr.String())
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	_, address, listening := strings.Cut(strings.TrimSpace(line), "listening at ")
	if err != nil || !listening {
		h.t.Fatalf("kms serve: %q, %v", line, err)
	}
	return address
}

func TestServedAndUnserved(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	smallImage(t, at("disk.img"))
	h.ok("encrypt", at("disk.img"), "--output", at("before"))
	h.serveKMS()
	h.ok("encrypt", at("disk.img"), "--output", at("while"))
	h.ok("decrypt", at("before"), "--output", at("back1"))
	h.ok("decrypt", at("while"), "--output", at("back2"))
	for _, name := range []string{"back1", "back2"} {
		if sum(t, at(name)) != sum(t, at("disk.img")) {
			t.Errorf("%s differs", name)
		}
	}
	h.fails(exitFailure, nil, "kms", "serve", "--listen", "127.0.0.1:0") // one is enough
}

// TestManyCommandsAtOnce: the store is held open for a KMIP exchange only.
func TestManyCommandsAtOnce(t *testing.T) {
	h := newHome(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "disk.img")
	smallImage(t, path)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			enc, dec := fmt.Sprintf("%s.enc%d", path, i), fmt.Sprintf("%s.dec%d", path, i)
			if r := h.run("encrypt", path, "--output", enc); r.code != exitDone {
				t.Errorf("encrypt: %s", r.stderr)
			}
			if r := h.run("decrypt", enc, "--output", dec); r.code != exitDone {
				t.Errorf("decrypt: %s", r.stderr)
			}
		})
	}
	wg.Wait()
}

func TestOneKEKForTwoRuns(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	path := filepath.Join(t.TempDir(), "disk.img")
	smallImage(t, path)
	h.ok("encrypt", path, "--output", path+".1")
	first := parseJSON[agent.Status](t, h.ok("status", "--json", path+".1")).Disks[0]
	h.ok("encrypt", path, "--output", path+".2", "--kek", first.Recipients[0].KEKID)
	second := parseJSON[agent.Status](t, h.ok("status", "--json", path+".2")).Disks[0]
	if first.Recipients[0] != second.Recipients[0] || first.DiskUUID == second.DiskUUID {
		t.Errorf("%+v and %+v", first, second)
	}
	if sum(t, path+".1") == sum(t, path+".2") {
		t.Error("two disks have the same ciphertext, so the same DEK")
	}
}

func TestBackupAndRestore(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	smallImage(t, at("disk.img"))
	write(t, at("passphrase"), []byte("correct horse battery staple\n"))
	write(t, at("wrong"), []byte("wrong horse\n"))
	if r := h.run("encrypt", at("disk.img"), "--output", at("enc")); !strings.Contains(r.stderr, "backup is due") {
		t.Errorf("the first encryption says nothing of a backup: %q", r.stderr)
	}
	if s := h.kmsStatus(); s.Backup.Last != nil || !s.Backup.Due {
		t.Errorf("before the backup: %+v", s.Backup)
	}
	h.serveKMS()
	h.ok("kms", "backup", at("backup"), "--passphrase-file", at("passphrase"))
	if s := h.kmsStatus(); s.Backup.Last == nil || s.Backup.Due {
		t.Errorf("after the backup: %+v", s.Backup)
	}
	if err := os.Remove(filepath.Join(h.dir, "client.pem")); err != nil {
		t.Fatal(err)
	}
	if r := h.run("kms", "backup", at("without"), "--passphrase-file", at("passphrase")); r.code != exitDone || !strings.Contains(r.stderr, "client.pem is not there") {
		t.Errorf("a backup without a certificate: %+v", r)
	}
	h.fails(exitFailure, []string{"backup"}, "kms", "backup", at("backup"), "--passphrase-file", at("passphrase"))

	other := emptyHome(t)
	other.fails(exitFailure, []string{"passphrase"}, "kms", "restore", at("backup"), "--passphrase-file", at("wrong"))
	other.ok("kms", "restore", at("backup"), "--passphrase-file", at("passphrase"))
	other.ok("decrypt", at("enc"), "--output", at("back"))
	if sum(t, at("back")) != sum(t, at("disk.img")) {
		t.Error("the disk came back wrong")
	}
	other.fails(exitFailure, []string{other.dir}, "kms", "restore", at("backup"), "--passphrase-file", at("passphrase"))
}

func (h *home) kmsStatus() kmsReport {
	h.t.Helper()
	return parseJSON[kmsReport](h.t, h.ok("kms", "status", "--json"))
}

func TestKMSStatus(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	s := h.kmsStatus()
	if len(s.Aliases) != 1 || s.Aliases[0].Alias != "local" || len(s.Aliases[0].Servers) != 1 {
		t.Fatalf("%+v", s)
	}
	if srv := s.Aliases[0].Servers[0]; srv.State != "ok" || srv.Version != "1.4" || srv.LatencyMs <= 0 || srv.Error != "" {
		t.Errorf("%+v", srv)
	}
}

func TestWrongKEK(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	path := filepath.Join(t.TempDir(), "disk.img")
	smallImage(t, path)
	ids := make([]string, 2)
	for i, out := range []string{path + ".1", path + ".2"} {
		h.ok("encrypt", path, "--output", out)
		ids[i] = parseJSON[agent.Status](t, h.ok("status", "--json", out)).Disks[0].Recipients[0].KEKID
	}
	descriptor := path + ".1.vmx"
	write(t, descriptor, []byte(strings.Replace(string(read(t, descriptor)), ids[0], ids[1], 1)))
	h.fails(exitKey, []string{"wrong key-encryption key"}, "decrypt", path+".1", "--output", path+".dec")
}

func TestDestroyedKEK(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	path := filepath.Join(t.TempDir(), "disk.img")
	smallImage(t, path)
	h.ok("encrypt", path, "--output", path+".enc")
	id := parseJSON[agent.Status](t, h.ok("status", "--json", path+".enc")).Disks[0].Recipients[0].KEKID
	h.kmip(kmip14.OperationRevoke, kmipwire.RevokeRequest{
		UniqueIdentifier: id,
		RevocationReason: kmipwire.RevocationReason{RevocationReasonCode: kmip14.RevocationReasonCodeCessationOfOperation},
	})
	h.ok("decrypt", path+".enc", "--output", path+".dec") // a revoked key still opens
	h.fails(exitKey, []string{"not active"}, "encrypt", path, "--kek", id, "--output", path+".2")
	h.kmip(kmip14.OperationDestroy, kmipwire.DestroyRequest{UniqueIdentifier: id})
	h.fails(exitKey, []string{id, "destroyed"}, "decrypt", path+".enc", "--output", path+".dec2")
}

// kmip has the local key manager do an operation that vmcrypt has no command for.
func (h *home) kmip(op kmip14.Operation, request any) {
	h.t.Helper()
	conn := h.kmipConn()
	defer conn.Close()
	msg, err := kmipwire.Marshal(kmipwire.RequestMessage{
		RequestHeader: kmipwire.RequestHeader{ProtocolVersion: kmipwire.Versions()[0], BatchCount: 1},
		BatchItem:     []kmipwire.RequestBatchItem{{Operation: op, RequestPayload: request}},
	})
	if err != nil {
		h.t.Fatal(err)
	}
	if err := conn.Write(h.t.Context(), msg); err != nil {
		h.t.Fatal(err)
	}
	if msg, err = conn.Read(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	var answer kmipwire.ResponseMessage
	if err := kmipwire.Unmarshal(msg, &answer); err != nil || answer.BatchItem[0].ResultStatus != kmip14.ResultStatusSuccess {
		h.t.Fatalf("%s: %+v, %v", op, answer, err)
	}
}

func (h *home) kmipConn() *kmipwire.Conn {
	h.t.Helper()
	at := func(name string) string { return filepath.Join(h.dir, name) }
	cert, err := tls.LoadX509KeyPair(at("client.pem"), at("client.key"))
	if err != nil {
		h.t.Fatal(err)
	}
	config := kmipwire.TLSConfig()
	config.Certificates, config.ServerName, config.RootCAs = []tls.Certificate{cert}, "localhost", x509.NewCertPool()
	config.RootCAs.AppendCertsFromPEM(read(h.t, at("ca.pem")))
	raw, err := kms.Home{Config: filepath.Join(h.dir, "config.yaml"), Dir: at("kms")}.Dial(h.t.Context(), "")
	if err != nil {
		h.t.Fatal(err)
	}
	conn := kmipwire.Client(raw, config, kmipwire.DefaultTimeouts)
	if err := conn.Handshake(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	return conn
}

func TestLostKeyManager(t *testing.T) {
	t.Parallel()
	h, other := newHome(t), newHome(t)
	path := filepath.Join(t.TempDir(), "disk.img")
	smallImage(t, path)
	h.ok("encrypt", path, "--output", path+".enc")
	other.fails(exitKey, []string{"no such key"}, "decrypt", path+".enc", "--output", path+".dec")
	if err := os.RemoveAll(filepath.Join(h.dir, "kms")); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(h.dir, "config.yaml") // at KMIP's usual port, another key manager may serve
	write(t, config, bytes.ReplaceAll(read(t, config), []byte(":5696"), []byte(":1")))
	h.fails(exitNoKeyManager, []string{"kms restore"}, "decrypt", path+".enc", "--output", path+".dec")
	if _, err := os.Stat(filepath.Join(h.dir, "kms")); err == nil {
		t.Error("decrypt made a key manager")
	}
}

func TestDamagedCA(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	path := filepath.Join(t.TempDir(), "disk.img")
	smallImage(t, path)
	if err := os.Truncate(filepath.Join(h.dir, "kms/ca.pem"), 0); err != nil {
		t.Fatal(err)
	}
	h.fails(exitFailure, []string{"kms/ca.pem"}, "encrypt", path, "--output", path+".enc")
}

func TestPyKMIPInPlaceOfOurs(t *testing.T) {
	t.Parallel()
	server := pykmip.Start(t)
	h := newHome(t)
	path := filepath.Join(t.TempDir(), "disk.img")
	smallImage(t, path)
	h.configure("local", server.Address, server.ClientCert, server.ClientKey, server.CA)
	h.ok("encrypt", path, "--output", path+".enc")
	h.ok("decrypt", path+".enc", "--output", path+".dec")
	if sum(t, path) != sum(t, path+".dec") {
		t.Error("the disk came back wrong")
	}
	if s := h.kmsStatus().Aliases[0].Servers[0]; s.State != "ok" || s.Address != server.Address {
		t.Errorf("%+v", s)
	}
}

// TestConfigurationOfServices: systemd is told, and nobody else, that it is no use to start
// a service again.
func TestConfigurationOfServices(t *testing.T) {
	wrong := configurationError{usageError{errors.New("no alias")}}
	t.Setenv("NOTIFY_SOCKET", "")
	if code := exitCode(wrong); code != exitUsage {
		t.Errorf("by hand: exit code %d", code)
	}
	t.Setenv("NOTIFY_SOCKET", "/run/systemd/notify")
	if code := exitCode(wrong); code != exitConfiguration {
		t.Errorf("by systemd: exit code %d", code)
	}
	if code := exitCode(errors.New("no room")); code != exitFailure {
		t.Errorf("another failure by systemd: exit code %d", code)
	}
}
