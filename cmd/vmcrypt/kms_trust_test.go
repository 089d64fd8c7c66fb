package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmcrypt/vmcrypt/internal/config"
	"github.com/vmcrypt/vmcrypt/kek"
)

// stranger is a host that knows the address of a key manager, and nothing else of it.
func stranger(t *testing.T, addresses ...string) *home {
	t.Helper()
	h := emptyHome(t)
	if err := os.MkdirAll(h.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	text := "defaultAlias: prod\naliases:\n\n  # the house's\n  prod:\n    servers:\n"
	for _, address := range addresses {
		text += "      - address: " + address + "   # mind the order\n"
	}
	write(t, h.at("config.yaml"), []byte(text))
	return h
}

func (h *home) at(name string) string { return filepath.Join(h.dir, name) }

func (h *home) alias(name string) kek.Config {
	h.t.Helper()
	c, err := config.Load(h.at("config.yaml"))
	if err != nil {
		h.t.Fatal(err)
	}
	k, _ := c.Alias(name)
	return k
}

// TestTrustByRequest: a request is signed by the key manager's CA, which vouches for the
// key manager, too. Later the certificate is renewed in place.
func TestTrustByRequest(t *testing.T) {
	t.Parallel()
	manager := newHome(t)
	address := manager.serveKMS()
	h, dir := stranger(t, address), t.TempDir()
	csr := filepath.Join(dir, "host2.csr")
	report := parseJSON[trustReport](t, h.ok("kms", "trust", "prod", "--csr", csr, "--name", "host2.example.com", "--json"))
	if !strings.Contains(report.Next, "kms trust prod --cert") {
		t.Errorf("%+v", report)
	}
	checkRequest(t, csr, "host2.example.com")
	manager.ok("kms", "client", "add", "host2", "--csr", csr, "--out", dir)
	signed := filepath.Join(dir, "host2.pem")
	h.ok("kms", "trust", "prod", "--cert", signed)
	h.ok("kms", "trust", "prod", "--ca", filepath.Join(dir, "host2-ca.pem"))
	h.ok("kms", "status", "prod")
	path := filepath.Join(dir, "disk.img")
	smallImage(t, path)
	h.ok("encrypt", path, "--output", path+".enc")

	k := h.alias("prod")
	for _, file := range []string{k.ClientKey, k.ClientCert} {
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", file, info, err)
		}
	}
	before := read(t, h.at("config.yaml"))
	for _, comment := range []string{"# the house's\n", "# mind the order\n"} {
		if !strings.Contains(string(before), comment) {
			t.Errorf("%q is lost:\n%s", comment, before)
		}
	}
	h.ok("kms", "trust", "prod", "--csr", csr+"2")
	renewed := t.TempDir()
	manager.ok("kms", "client", "add", "host2", "--csr", csr+"2", "--out", renewed, "--replace")
	r := h.run("kms", "status", "prod") // the old one ended when it was replaced
	if r.code != exitNoKeyManager || !strings.Contains(r.stdout, "revoked clientCert") {
		t.Errorf("%+v", r)
	}
	h.ok("kms", "trust", "prod", "--cert", filepath.Join(renewed, "host2.pem"))
	h.ok("kms", "status", "prod")
	h.ok("decrypt", path+".enc", "--output", path+".dec")
	if string(read(t, h.at("config.yaml"))) != string(before) {
		t.Error("a renewal changes the configuration")
	}
}

func checkRequest(t *testing.T, path, name string) {
	t.Helper()
	block, _ := pem.Decode(read(t, path))
	if block == nil {
		t.Fatal("no PEM in the request")
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil || request.CheckSignature() != nil || request.Subject.CommonName != name {
		t.Errorf("%+v, %v", request, err)
	}
}

// TestTrustByImport: a certificate and key that somebody else made, and again by others.
func TestTrustByImport(t *testing.T) {
	t.Parallel()
	manager := newHome(t)
	h, dir := stranger(t, manager.serveKMS()), t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	manager.ok("kms", "client", "add", "host2", "--out", dir)
	manager.ok("kms", "client", "add", "host3", "--out", dir)
	h.ok("kms", "trust", "prod", "--ca", at("host2-ca.pem"))
	h.fails(exitFailure, []string{"--key"}, "kms", "trust", "prod", "--cert", at("host2.pem"))
	h.fails(exitFailure, []string{"private key does not match"}, "kms", "trust", "prod", "--cert", at("host2.pem"), "--key", at("host3.key"))
	h.fails(exitFailure, []string{"missing.pem"}, "kms", "trust", "prod", "--cert", at("missing.pem"))
	h.ok("kms", "trust", "prod", "--cert", at("host2.pem"), "--key", at("host2.key"))
	h.ok("kms", "status", "prod")

	configured := read(t, h.at("config.yaml"))
	out := h.ok("kms", "trust", "prod", "--cert", at("host3.pem"), "--key", at("host3.key"))
	if strings.Contains(out, "restarted") || string(read(t, h.at("config.yaml"))) != string(configured) {
		t.Errorf("a renewal changes the configuration: %s", out)
	}
	h.ok("kms", "status", "prod")
	if string(read(t, h.alias("prod").ClientCert)) != string(read(t, at("host3.pem"))) {
		t.Error("the certificate was not put into place")
	}
}

// TestTrustKeepsKeysSecret: whatever modes the files had, and though somebody has the key in
// one file with its certificate, nobody else can read a key.
func TestTrustKeepsKeysSecret(t *testing.T) {
	t.Parallel()
	manager, dir := newHome(t), t.TempDir()
	manager.ok("kms", "client", "add", "host2", "--out", dir)
	address, both := manager.serveKMS(), filepath.Join(dir, "both.pem")
	write(t, both, append(read(t, filepath.Join(dir, "host2.pem")), read(t, filepath.Join(dir, "host2.key"))...))
	for config, keyMode := range map[string]os.FileMode{
		"    clientCert: old.pem\n    clientKey: old.key\n": 0o640, // whose group is meant to read it
		"    clientCert: old.pem\n    clientKey: old.pem\n": 0o640,
		"": 0o600,
	} {
		h := stranger(t, address)
		write(t, h.at("config.yaml"), append(read(t, h.at("config.yaml")), []byte(config)...))
		for _, name := range []string{"old.pem", "old.key"} {
			write(t, h.at(name), []byte("the former\n"))
			if err := os.Chmod(h.at(name), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		h.ok("kms", "trust", "prod", "--ca", filepath.Join(dir, "host2-ca.pem"))
		h.ok("kms", "trust", "prod", "--cert", both, "--key", both)
		h.ok("kms", "status", "prod")
		k := h.alias("prod")
		if k.ClientCert != k.ClientKey && strings.Contains(string(read(t, k.ClientCert)), "PRIVATE") {
			t.Errorf("%q: the key is in the file of the certificate", config)
		}
		if info, err := os.Stat(k.ClientKey); err != nil || info.Mode() != keyMode {
			t.Errorf("%q: the key has the mode %v, want %v, %v", config, info.Mode(), keyMode, err)
		}
	}
}

// TestTrustKeepsWhatWorks: the former key stays in force if the certificate can't be put into
// place.
func TestTrustKeepsWhatWorks(t *testing.T) {
	t.Parallel()
	manager, dir := newHome(t), t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	manager.ok("kms", "client", "add", "host2", "--out", dir)
	manager.ok("kms", "client", "add", "host3", "--out", dir)
	address := manager.serveKMS()
	h := stranger(t, address)
	both := append(read(t, at("host2.pem")), read(t, at("host2.key"))...)
	write(t, h.at("both.pem"), both)
	write(t, h.at("own.key"), read(t, at("host2.key")))
	write(t, h.at("config.yaml"), append(read(t, h.at("config.yaml")), []byte(
		"    clientCert: both.pem\n    clientKey: own.key\n    ca: "+at("host2-ca.pem")+"\n  other: {servers: [{address: \""+address+"\"}], clientCert: both.pem}\n")...))
	write(t, h.at("prod.pem"), []byte("somebody's"))
	h.ok("kms", "status", "prod")
	h.fails(exitFailure, []string{"prod.pem"}, "kms", "trust", "prod", "--cert", at("host3.pem"), "--key", at("host3.key"))
	h.ok("kms", "status", "prod")
}

// TestTrustKeepsTheKeyOfARequest: until the certificate for it has come, whatever other one is
// used meanwhile.
func TestTrustKeepsTheKeyOfARequest(t *testing.T) {
	t.Parallel()
	manager, dir := newHome(t), t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	h := stranger(t, "127.0.0.1:1")
	h.ok("kms", "trust", "prod", "--csr", at("host2.csr"))
	manager.ok("kms", "client", "add", "host3", "--out", dir)
	h.ok("kms", "trust", "prod", "--cert", at("host3.pem"), "--key", at("host3.key"))
	manager.ok("kms", "client", "add", "host2", "--csr", at("host2.csr"), "--out", dir)
	h.ok("kms", "trust", "prod", "--cert", at("host2.pem"))
	if string(read(t, h.alias("prod").ClientCert)) != string(read(t, at("host2.pem"))) {
		t.Error("the certificate is not in place")
	}
}

// TestTrustByOwnCertificate: it is good for who has it as an authority of clients.
func TestTrustByOwnCertificate(t *testing.T) {
	t.Parallel()
	h := stranger(t, "127.0.0.1:1")
	file := h.at("upload.pem")
	h.ok("kms", "trust", "prod", "--self-signed", file, "--name", "host2")
	if h.alias("prod").ClientCert != "" {
		t.Error("it is used before it was uploaded")
	}
	h.fails(exitFailure, []string{"upload.pem"}, "kms", "trust", "prod", "--self-signed", file) // it is there
	h.ok("kms", "trust", "prod", "--self-signed", h.at("again.pem"), "--name", "host2")         // by the same key
	h.ok("kms", "trust", "prod", "--cert", file)

	k := h.alias("prod")
	pair, err := tls.LoadX509KeyPair(k.ClientCert, k.ClientKey)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(pair.Leaf)
	_, err = pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil || pair.Leaf.Subject.CommonName != "host2" || time.Until(pair.Leaf.NotAfter) < 9*365*24*time.Hour {
		t.Errorf("%+v, %v", pair.Leaf.Subject, err)
	}
	if _, err := os.Stat(k.ClientKey + ".new"); !os.IsNotExist(err) {
		t.Errorf("the key is there twice: %v", err)
	}
}

// TestTrustByPin: the key managers' certificates are shown, and pinned once confirmed.
func TestTrustByPin(t *testing.T) {
	t.Parallel()
	manager, dir := newHome(t), t.TempDir()
	manager.ok("kms", "client", "add", "host2", "--out", dir)
	address, dead := manager.serveKMS(), deadAddress(t)
	h := stranger(t, address, dead)
	h.ok("kms", "trust", "prod", "--cert", filepath.Join(dir, "host2.pem"), "--key", filepath.Join(dir, "host2.key"))
	pin := fingerprintAt(t, address)
	other := "sha256:" + strings.Repeat("00", 32)

	before := string(read(t, h.at("config.yaml")))
	h.fails(exitUsage, []string{pin, "vmcrypt key manager", "--fingerprint"}, "kms", "trust", "prod") // no terminal
	h.fails(exitUsage, []string{"hex digits"}, "kms", "trust", "prod", "--fingerprint", "sha256:00")
	r := h.run("kms", "trust", "prod", "--fingerprint", other)
	if r.code == exitDone || !strings.Contains(r.stderr, pin) || !strings.Contains(r.stderr, dead) {
		t.Errorf("another fingerprint: %+v", r)
	}
	if string(read(t, h.at("config.yaml"))) != before {
		t.Error("what was not confirmed was pinned")
	}

	r = h.run("kms", "trust", "prod", "--json", "--fingerprint", strings.ToUpper(strings.TrimPrefix(pin, "sha256:")))
	if r.code != exitNoKeyManager || !strings.Contains(r.stderr, dead) { // one was pinned, one does not answer
		t.Errorf("exit code %d: %s", r.code, r.stderr)
	}
	report := parseJSON[trustReport](t, r.stdout)
	if len(report.Certificates) != 1 || report.Certificates[0].Server != address || report.Certificates[0].Fingerprint != pin {
		t.Errorf("%+v", report)
	}
	if k := h.alias("prod"); k.Servers[0].Pin != pin || k.Servers[1].Pin != "" {
		t.Errorf("%+v", k.Servers)
	}

	if !strings.Contains(report.Next, "vmcrypt kms trust prod") {
		t.Errorf("%+v", report)
	}
	if text := h.ok("kms", "status", "prod"); !strings.Contains(text, dead+"  unreachable") { // without a CA
		t.Error(text)
	}
	smallImage(t, h.at("disk.img"))
	if r := h.run("encrypt", h.at("disk.img")); r.code != exitDone || !strings.Contains(r.stderr, "1 of 2") || !strings.Contains(r.stderr, dead) {
		t.Errorf("no warning of a key that is at one key manager only: %+v", r)
	}
	manager.copied().serveKMS("--listen", dead)
	if text := h.ok("kms", "status", "prod"); !strings.Contains(text, dead+"  untrusted") || !strings.Contains(text, "is not pinned") || !strings.Contains(text, "vmcrypt kms trust prod") {
		t.Error(text)
	}
	if r := h.run("verify", h.at("disk.img")); r.code != exitNoKeyManager || !strings.Contains(r.stderr, "could be asked") || !strings.Contains(r.stdout, dead+"  unreachable") || !strings.Contains(r.stdout, "is not pinned") {
		t.Errorf("%+v", r)
	}
	h.ok("kms", "trust", "prod", "--fingerprint", pin)
	if text := h.ok("kms", "status", "prod"); strings.Contains(text, "untrusted") || strings.Contains(text, "unreachable") {
		t.Error(text)
	}
	h.ok("kms", "trust", "prod")                         // nothing to ask
	h.ok("kms", "trust", "prod", "--fingerprint", other) // nor to pin
	if out := h.ok("kms", "trust", "prod", "--ca", filepath.Join(dir, "host2-ca.pem")); !strings.Contains(out, "the pins are gone") {
		t.Error(out)
	}
	if k := h.alias("prod"); k.Servers[0].Pin != "" || k.CA == "" {
		t.Errorf("%+v", k)
	}
	h.ok("kms", "status", "prod")
}

// TestTrustByThePinOfAll: what is pinned already is not asked about, for all servers too.
func TestTrustByThePinOfAll(t *testing.T) {
	t.Parallel()
	address := newHome(t).serveKMS()
	h, pin := stranger(t, address), fingerprintAt(t, address)
	write(t, h.at("config.yaml"), append(read(t, h.at("config.yaml")), []byte("    pin: "+pin+"\n")...))
	h.ok("kms", "trust", "prod")
	if k := h.alias("prod"); k.Pin != "" || k.Servers[0].Pin != pin {
		t.Errorf("%+v", k)
	}
}

// TestTrustAsks: only "yes" is yes, and each certificate is asked about.
func TestTrustAsks(t *testing.T) {
	t.Parallel()
	first, second := newHome(t).serveKMS(), newHome(t).serveKMS()
	h := stranger(t, first, second)
	for _, answers := range []string{"no\nnever\n", "y\n\n", "\x04\x04"} {
		if r := h.typing(answers, "kms", "trust", "prod"); r.code != exitFailure || !strings.Contains(r.stderr, "not confirmed") {
			t.Errorf("%q: %+v", answers, r)
		}
	}
	r := h.typing("no\nyes\n", "kms", "trust", "prod")
	if k := h.alias("prod"); r.code != exitFailure || k.Servers[0].Pin != "" || k.Servers[1].Pin != fingerprintAt(t, second) {
		t.Errorf("%+v: %+v", k.Servers, r)
	}
	r = h.typing("yes\n", "kms", "trust", "prod") // the second is pinned already
	if k := h.alias("prod"); r.code != exitDone || k.Servers[0].Pin != fingerprintAt(t, first) || !strings.Contains(r.stderr, k.Servers[0].Pin) {
		t.Errorf("%+v: %+v", k.Servers, r)
	}
}

func deadAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// fingerprintAt is what an administrator would read off the key manager.
func fingerprintAt(t *testing.T, address string) string {
	t.Helper()
	cert, err := kek.Shown(t.Context(), kek.Server{Address: address}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return kek.Fingerprint(cert)
}

// TestTrustTellsWhatToWrite where the configuration is not for programs to change.
func TestTrustTellsWhatToWrite(t *testing.T) {
	t.Parallel()
	address, h := newHome(t).serveKMS(), stranger(t)
	write(t, h.at("config.yaml"), []byte("aliases:\n  old: &old {servers: [{address: \""+address+"\"}]}\n  prod: *old\n"))
	pin := fingerprintAt(t, address)
	h.fails(exitFailure, []string{h.at("config.yaml"), `pin: "` + pin + `"`, address}, "kms", "trust", "prod", "--fingerprint", pin)
}

func TestTrustRefuses(t *testing.T) {
	t.Parallel()
	h := stranger(t, "127.0.0.1:1")
	h.fails(exitUsage, nil, "kms", "trust")
	h.fails(exitKey, []string{"nowhere", "config.yaml"}, "kms", "trust", "nowhere")
	h.fails(exitUsage, []string{"--ca"}, "kms", "trust", "prod", "--csr", h.at("x"), "--ca", h.at("y"))
	h.fails(exitUsage, []string{"--key"}, "kms", "trust", "prod", "--key", h.at("x"))
	h.fails(exitUsage, []string{"--name"}, "kms", "trust", "prod", "--name", "x")
	write(t, h.at("empty"), nil)
	h.fails(exitFailure, []string{"no certificate"}, "kms", "trust", "prod", "--ca", h.at("empty"))
	h.ok("kms", "trust", "prod", "--csr", h.at("csr"))
	h.fails(exitFailure, []string{"PRIVATE KEY"}, "kms", "trust", "prod", "--ca", h.at("prod.key.new"))

	manager, dir := newHome(t), t.TempDir()
	manager.ok("kms", "client", "add", "host2", "--out", dir)
	write(t, h.at("prod-ca.pem"), []byte("somebody's"))
	h.fails(exitFailure, []string{"prod-ca.pem"}, "kms", "trust", "prod", "--ca", filepath.Join(dir, "host2-ca.pem"))
	if string(read(t, h.at("prod-ca.pem"))) != "somebody's" {
		t.Error("a file that is not configured was replaced")
	}
}

// TestTrustOfAnotherAlias: what two aliases share is not changed for both.
func TestTrustOfAnotherAlias(t *testing.T) {
	t.Parallel()
	manager, dir := newHome(t), t.TempDir()
	manager.ok("kms", "client", "add", "host2", "--out", dir)
	h := stranger(t, "127.0.0.1:1")
	write(t, h.at("ca.pem"), read(t, filepath.Join(dir, "host2-ca.pem")))
	text := string(read(t, h.at("config.yaml")))
	write(t, h.at("config.yaml"), []byte(text+"    ca: ca.pem\n  other: {servers: [{address: \"127.0.0.1:1\"}], ca: ca.pem}\n"))
	second := newHome(t)
	h.ok("kms", "trust", "prod", "--ca", second.at("ca.pem"))
	if a, b := h.alias("prod").CA, h.alias("other").CA; a == b || string(read(t, b)) != string(read(t, filepath.Join(dir, "host2-ca.pem"))) {
		t.Errorf("%s and %s", a, b)
	}
}
