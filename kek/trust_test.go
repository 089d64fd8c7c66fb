package kek

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmcrypt/vmcrypt/internal/pykmip"
	"github.com/vmcrypt/vmcrypt/kms"
)

// authority issues certificates as tests need them.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

const testDay = 24 * time.Hour

func newAuthority(t *testing.T, ends time.Duration) *authority {
	t.Helper()
	a := &authority{t: t}
	pair := a.issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: "the CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-100 * testDay), NotAfter: time.Now().Add(ends),
	})
	a.cert, a.key = pair.Leaf, pair.PrivateKey.(*ecdsa.PrivateKey)
	return a
}

// issue makes a certificate, valid for ten days unless it says otherwise.
func (a *authority) issue(c *x509.Certificate) tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c.SerialNumber = big.NewInt(time.Now().UnixNano())
	if c.NotBefore.IsZero() {
		c.NotBefore = time.Now().Add(-testDay)
	}
	if c.NotAfter.IsZero() {
		c.NotAfter = time.Now().Add(10 * testDay)
	}
	parent, signer := c, key
	if a.cert != nil {
		parent, signer = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// server is a certificate for 127.0.0.1 and the names given.
func (a *authority) server(names ...string) tls.Certificate {
	return a.issue(&x509.Certificate{DNSNames: names, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
}

func (a *authority) writeCA(path string) {
	a.t.Helper()
	writePEM(a.t, path, "CERTIFICATE", a.cert.Raw)
}

// writeClient writes a new client certificate and its key, and tells when it ends.
func (a *authority) writeClient(cert, key string, ends time.Time) {
	a.t.Helper()
	pair := a.issue(&x509.Certificate{Subject: pkix.Name{CommonName: "host"}, NotAfter: ends})
	der, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		a.t.Fatal(err)
	}
	writePEM(a.t, cert, "CERTIFICATE", pair.Leaf.Raw)
	writePEM(a.t, key, "PRIVATE KEY", der)
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// shower is a key manager whose certificate can be changed while it runs.
type shower struct {
	*fake
	mu   sync.Mutex
	cert tls.Certificate
	seen connections
}

// connections is what a shower saw of them.
type connections struct {
	count   int
	name    string // that the last one asked for
	resumed bool   // the last one resumed a session
}

func (s *shower) saw() connections {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen
}

func (s *shower) show(cert tls.Certificate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cert = cert
}

func startShower(t *testing.T, cert tls.Certificate) *shower {
	t.Helper()
	return startShowerOf(t, tls.VersionTLS13, cert)
}

// startShowerOf has it speak TLS up to version.
func startShowerOf(t *testing.T, version uint16, cert tls.Certificate) *shower {
	t.Helper()
	s := &shower{cert: cert}
	s.fake = &fake{tls: func(c *tls.Config) {
		c.MaxVersion = version
		c.Certificates, c.ClientAuth = nil, tls.RequireAnyClientCert
		c.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.seen.name = hello.ServerName
			shown := s.cert
			return &shown, nil
		}
		c.VerifyConnection = func(state tls.ConnectionState) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.seen.resumed = state.DidResume
			s.seen.count++
			return nil
		}
	}}
	startFake(t, s.fake)
	return s
}

// config has the server's authority in a folder of the test.
func (s *shower) config(t *testing.T, a *authority) Config {
	dir := t.TempDir()
	config := Config{
		Servers:    []Server{{Address: s.address}},
		ClientCert: filepath.Join(dir, "client.pem"), ClientKey: filepath.Join(dir, "client.key"),
		CA: filepath.Join(dir, "ca.pem"),
	}
	a.writeCA(config.CA)
	a.writeClient(config.ClientCert, config.ClientKey, time.Now().Add(10*testDay))
	return config
}

// wantState checks the state of the one server, and what the error says of it.
func wantState(t *testing.T, c *Cluster, want ServerState, says ...string) {
	t.Helper()
	s := c.Status(t.Context())[0]
	if s.State != want {
		t.Errorf("state %s, want %s: %v", s.State, want, s.Err)
	}
	for _, text := range says {
		if s.Err == nil || !strings.Contains(s.Err.Error(), text) {
			t.Errorf("%q is not in: %v", text, s.Err)
		}
	}
	if s.Err != nil && strings.Contains(s.Err.Error(), s.Address) {
		t.Errorf("who asked for one server is told its address again: %v", s.Err)
	}
}

// TestOldTLS: a server that runs, but offers too little, is told from one that does not.
func TestOldTLS(t *testing.T) {
	ours := newAuthority(t, 100*testDay)
	s := startShowerOf(t, tls.VersionTLS12, ours.server())
	config := s.config(t, ours)
	wantState(t, openConfig(t, config, nil), StateOK)
	s = startShowerOf(t, tls.VersionTLS11, ours.server())
	config.Servers[0].Address = s.address
	wantState(t, openConfig(t, config, nil), StateUnreachable, "protocol version", "offers TLS 1.3")
}

// wantUnreachable checks what check and Survey say of a key at the one server.
func wantUnreachable(t *testing.T, c *Cluster, says ...string) {
	t.Helper()
	checks := c.check(t.Context(), "7", nil)
	c.Survey(t.Context(), []string{"7", "8"}, func(_ string, _ int, check KeyCheck, _ *Key) { checks = append(checks, check) })
	for _, check := range checks {
		if check.Result != KeyUnreachable {
			t.Errorf("%+v", check)
		}
		for _, text := range says {
			if !strings.Contains(check.Detail, text) {
				t.Errorf("%q is not in: %s", text, check.Detail)
			}
		}
	}
}

// TestEachFaultOfACertificateHasItsMessage.
func TestEachFaultOfACertificateHasItsMessage(t *testing.T) {
	ours, theirs, ended := newAuthority(t, 100*testDay), newAuthority(t, 100*testDay), newAuthority(t, -2*testDay)
	loopback := []net.IP{net.IPv4(127, 0, 0, 1)}
	past, future := time.Now().Add(-2*testDay), time.Now().Add(2*testDay)
	for name, test := range map[string]struct {
		by   *authority
		cert tls.Certificate
		says []string
	}{
		"expired": {ours, ours.issue(&x509.Certificate{IPAddresses: loopback, NotBefore: past.Add(-testDay), NotAfter: past}),
			[]string{"its certificate expired on " + past.UTC().Format(time.DateOnly), "renew"}},
		"not valid yet": {ours, ours.issue(&x509.Certificate{IPAddresses: loopback, NotBefore: future}),
			[]string{"not valid before", "clocks"}},
		"another host": {ours, ours.issue(&x509.Certificate{DNSNames: []string{"kms-a.example.com"}, IPAddresses: []net.IP{net.IPv4(192, 0, 2, 7)}}),
			[]string{"is for kms-a.example.com, 192.0.2.7, not for 127.0.0.1", "serverName"}},
		"no host":       {ours, ours.issue(&x509.Certificate{}), []string{"no subjectAltName, so it is not for 127.0.0.1", "kms trust test"}},
		"another CA":    {theirs, ours.server(), []string{`issued by "CN=the CA"`, "ca does not vouch", "kms trust test --ca"}},
		"an expired CA": {ended, ended.server(), []string{`authority "CN=the CA" expired on ` + past.UTC().Format(time.DateOnly)}},
		"for clients only": {ours, ours.issue(&x509.Certificate{IPAddresses: loopback, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}),
			[]string{"is not for servers", "serverAuth"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := startShower(t, test.cert)
			c := openConfig(t, s.config(t, test.by), nil)
			wantState(t, c, StateUntrusted, test.says...)
			_, err := c.Get(t.Context(), "7")
			expect(t, err, ErrUnavailable)
			wantUnreachable(t, c, test.says...)
			if len(s.requests()) != 0 {
				t.Errorf("it was asked: %q", s.requests())
			}
		})
	}
}

func TestServerNameIsAskedForAndVerified(t *testing.T) {
	ca := newAuthority(t, 100*testDay)
	s := startShower(t, ca.issue(&x509.Certificate{DNSNames: []string{"kms-a.example.com"}}))
	config := s.config(t, ca)
	wantState(t, openConfig(t, config, nil), StateUntrusted, "not for 127.0.0.1")
	config.Servers[0].ServerName = "kms-a.example.com"
	wantState(t, openConfig(t, config, nil), StateOK)
	if s.saw().name != "kms-a.example.com" {
		t.Errorf("the server was asked for %q", s.saw().name)
	}
	config.Servers[0].ServerName = "kms-b.example.com"
	wantState(t, openConfig(t, config, nil), StateUntrusted, "is for kms-a.example.com, not for kms-b.example.com")
}

func TestPinnedCertificate(t *testing.T) {
	ca := newAuthority(t, 100*testDay)
	pinned := ca.issue(&x509.Certificate{DNSNames: []string{"another.example.com"}})
	s := startShower(t, pinned)
	config := s.config(t, ca)
	config.CA, config.Pin = "", Fingerprint(pinned.Leaf)
	c := openConfig(t, config, nil)
	wantState(t, c, StateOK)
	if ends := c.Status(t.Context())[0].Expires; !ends.Equal(pinned.Leaf.NotAfter) {
		t.Errorf("it expires on %v, want %v", ends, pinned.Leaf.NotAfter)
	}

	changed := ca.server()
	s.show(changed)
	wantState(t, c, StateUntrusted, "not the pinned one", Fingerprint(changed.Leaf), Fingerprint(pinned.Leaf), "vmcrypt kms trust test")
	wantUnreachable(t, c, "not the pinned one", Fingerprint(changed.Leaf), "vmcrypt kms trust test")

	past := time.Now().Add(-2 * testDay)
	old := ca.issue(&x509.Certificate{NotBefore: past.Add(-testDay), NotAfter: past})
	s.show(old)
	config.Pin = Fingerprint(old.Leaf)
	wantState(t, openConfig(t, config, nil), StateUntrusted, "expired on")
}

// TestAServersOwnPinCounts before the alias's and before its authorities.
func TestAServersOwnPinCounts(t *testing.T) {
	ca := newAuthority(t, 100*testDay)
	cert, other := ca.server(), ca.server()
	s := startShower(t, cert)
	for name, test := range map[string]struct {
		alias, own string
		ca         bool
		want       ServerState
	}{
		"own":                           {"", Fingerprint(cert.Leaf), false, StateOK},
		"own before the alias's":        {Fingerprint(other.Leaf), Fingerprint(cert.Leaf), false, StateOK},
		"wrong own, right alias":        {Fingerprint(cert.Leaf), Fingerprint(other.Leaf), false, StateUntrusted},
		"wrong own, the CA vouches":     {"", Fingerprint(other.Leaf), true, StateUntrusted},
		"upper case, colons, no prefix": {"", openSSLForm(cert.Leaf), false, StateOK},
	} {
		t.Run(name, func(t *testing.T) {
			config := s.config(t, ca)
			config.Pin, config.Servers[0].Pin = test.alias, test.own
			if !test.ca {
				config.CA = ""
			}
			wantState(t, openConfig(t, config, nil), test.want)
		})
	}
}

// TestAServerWithoutAPin among others that have one: it alone is not trusted, though the
// system's authorities might vouch for it.
func TestAServerWithoutAPin(t *testing.T) {
	ca := newAuthority(t, 100*testDay)
	file := filepath.Join(t.TempDir(), "system.pem")
	ca.writeCA(file)
	t.Setenv("SSL_CERT_FILE", file)
	cert := ca.server()
	bare, pinned := startShower(t, cert), startShower(t, cert)
	config := bare.config(t, ca)
	config.CA, config.Servers = "", []Server{{Address: bare.address}, {Address: pinned.address, Pin: Fingerprint(cert.Leaf)}}
	c := openConfig(t, config, nil)
	wantState(t, c, StateUntrusted, "is not pinned", "no ca", "vmcrypt kms trust test")
	mustGet(t, c)
	if len(bare.requests()) != 0 || len(pinned.requests()) == 0 {
		t.Errorf("asked were %q and %q", bare.requests(), pinned.requests())
	}
}

// openSSLForm is how "openssl x509 -fingerprint -sha256" writes a fingerprint.
func openSSLForm(cert *x509.Certificate) string {
	digits := strings.ToUpper(strings.TrimPrefix(Fingerprint(cert), "sha256:"))
	var pairs []string
	for i := 0; i < len(digits); i += 2 {
		pairs = append(pairs, digits[i:i+2])
	}
	return strings.Join(pairs, ":")
}

func TestOpenRefusesPins(t *testing.T) {
	pki := pykmip.NewPKI(t)
	good := "sha256:" + strings.Repeat("0a", 32)
	for name, test := range map[string]struct {
		alias, first, ca, says string
	}{
		"too short":           {"sha256:00", "", "", "fingerprint"},
		"SHA-1":               {"sha1:" + strings.Repeat("0a", 20), "", "", "fingerprint"},
		"not hex":             {"", "sha256:" + strings.Repeat("0g", 32), "", "fingerprint"},
		"pin and ca":          {good, "", pki.CA, "not both"},
		"neither":             {"", "", "", "kms trust a --ca FILE"},
		"a CA that is not it": {"", good, pki.ClientKey, "ca " + pki.ClientKey},
	} {
		_, err := Open("a", Config{
			Servers:    []Server{{Address: "a:1", Pin: test.first}, {Address: "b:1"}},
			ClientCert: pki.ClientCert, ClientKey: pki.ClientKey, CA: test.ca, Pin: test.alias,
		}, nil)
		if err == nil || !strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), `alias "a"`) {
			t.Errorf("%s: %v, want %q", name, err, test.says)
		}
	}
}

// TestNoSessionIsResumed, though the server offers it: a change of trust counts for the
// very next connection.
func TestNoSessionIsResumed(t *testing.T) {
	for version, name := range map[uint16]string{tls.VersionTLS12: "TLS 1.2", tls.VersionTLS13: "TLS 1.3"} {
		t.Run(name, func(t *testing.T) {
			ca := newAuthority(t, 100*testDay)
			s := startShowerOf(t, version, ca.server())
			config := s.config(t, ca)
			c := openConfig(t, config, nil)
			for range 2 {
				key, err := c.Get(t.Context(), "7") // reads what a server sends of sessions
				if err != nil {
					t.Fatal(err)
				}
				key.Destroy()
			}
			if s.saw().resumed {
				t.Error("a session was resumed")
			}
			newAuthority(t, 100*testDay).writeCA(config.CA)
			wantState(t, c, StateUntrusted, "ca does not vouch")
		})
	}
}

// TestFilesAreReadAgain: renewed certificates are taken up, and half a renewal is not.
func TestFilesAreReadAgain(t *testing.T) {
	ca := newAuthority(t, 100*testDay)
	s := startShower(t, ca.server())
	config := s.config(t, ca)
	c := openConfig(t, config, nil)
	before := c.Expires()

	dir, ends := t.TempDir(), time.Now().Add(50*testDay).Truncate(time.Second)
	cert, key := filepath.Join(dir, "cert"), filepath.Join(dir, "key")
	ca.writeClient(cert, key, ends)
	rename(t, key, config.ClientKey)
	wantState(t, c, StateOK)
	if !c.Expires().Equal(before) {
		t.Error("half of a pair was taken up")
	}
	rename(t, cert, config.ClientCert)
	wantState(t, c, StateOK)
	if !c.Expires().Equal(ends) {
		t.Errorf("the client's certificate expires on %v, want %v", c.Expires(), ends)
	}

	next := newAuthority(t, 100*testDay)
	s.show(next.server())
	wantState(t, c, StateUntrusted)
	next.writeCA(config.CA)
	wantState(t, c, StateOK)
	if err := os.Remove(config.CA); err != nil {
		t.Fatal(err)
	}
	wantState(t, c, StateOK) // with the authorities that were read
}

// TestKeptConnectionsEndWithTheirCertificates: one that was made by others than are in force
// is not used again.
func TestKeptConnectionsEndWithTheirCertificates(t *testing.T) {
	ca := newAuthority(t, 100*testDay)
	s := startShower(t, ca.server())
	config := s.config(t, ca)
	c := openConfig(t, config, nil)
	get := func() int {
		key, err := c.Get(t.Context(), "7")
		if err != nil {
			t.Fatal(err)
		}
		key.Destroy()
		return s.saw().count
	}
	if get(); get() != 1 {
		t.Errorf("%d connections for two calls", s.saw().count)
	}
	ca.writeClient(config.ClientCert, config.ClientKey, time.Now().Add(50*testDay))
	if get(); get() != 2 {
		t.Errorf("%d connections after a renewal, want another one", s.saw().count)
	}
	newAuthority(t, 100*testDay).writeCA(config.CA)
	_, err := c.Get(t.Context(), "7")
	expect(t, err, ErrUnavailable)
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// TestExpiryIsThatOfTheWholeChain: an authority that ends takes its certificates along.
func TestExpiryIsThatOfTheWholeChain(t *testing.T) {
	ca := newAuthority(t, 5*testDay)
	s := startShower(t, ca.server())
	c := openConfig(t, s.config(t, ca), nil)
	if ends := c.Status(t.Context())[0].Expires; !ends.Equal(ca.cert.NotAfter) {
		t.Errorf("it expires on %v, want %v as its authority", ends, ca.cert.NotAfter)
	}
}

func TestShown(t *testing.T) {
	ca := newAuthority(t, 100*testDay)
	cert := ca.issue(&x509.Certificate{NotBefore: time.Now().Add(-3 * testDay), NotAfter: time.Now().Add(-2 * testDay)})
	s := startShower(t, cert)
	got, err := Shown(t.Context(), Server{Address: s.address, ServerName: "kms-a.example.com"}, nil)
	if err != nil || Fingerprint(got) != Fingerprint(cert.Leaf) {
		t.Fatalf("%v, %v", got, err)
	}
	if s.saw().name != "kms-a.example.com" {
		t.Errorf("the server was asked for %q", s.saw().name)
	}
	down := listen(t, func(net.Conn) {})
	if _, err := Shown(t.Context(), Server{Address: down}, nil); err == nil || !strings.Contains(err.Error(), down) {
		t.Error(err)
	}
}

// TestRevokedClient: the key manager that ships with vmcrypt revokes one while it is used.
func TestRevokedClient(t *testing.T) {
	dir := t.TempDir()
	home := kms.Home{Config: filepath.Join(dir, "config.yaml"), Dir: filepath.Join(dir, "kms")}
	if err := home.Init([]byte("# made by a test\n")); err != nil {
		t.Fatal(err)
	}
	address := serve(t, home)
	if _, err := home.AddClient(t.Context(), kms.NewClient{Name: "host2", Dir: dir}); err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	c := openConfig(t, Config{
		Servers: []Server{{Address: address}}, ClientCert: at("host2.pem"), ClientKey: at("host2.key"), CA: at("host2-ca.pem"),
	}, nil)
	wantState(t, c, StateOK)
	if err := home.RevokeClient(t.Context(), "host2"); err != nil {
		t.Fatal(err)
	}
	wantState(t, c, StateDenied, "revoked clientCert", "kms trust test --csr")

	if _, err := home.AddClient(t.Context(), kms.NewClient{Name: "host2", Dir: t.TempDir(), Replace: true}); err != nil {
		t.Fatal(err)
	}
	wantState(t, c, StateDenied, "revoked clientCert") // its new certificate is elsewhere
}

func TestAdviceOnRefusedClients(t *testing.T) {
	trust := &trust{alias: "test", read: &certificates{client: tls.Certificate{Leaf: &x509.Certificate{NotAfter: time.Now().Add(testDay)}}}}
	seen := map[string]bool{}
	for _, alert := range []string{
		"tls: revoked certificate", "tls: bad certificate", "tls: expired certificate", "tls: unknown certificate authority", "tls: access denied",
	} {
		seen[trust.clientAdvice(alert)] = true
	}
	trust.read.client.Leaf.NotAfter = time.Now().Add(-time.Hour)
	seen[trust.clientAdvice("tls: bad certificate")] = true
	if len(seen) != 6 {
		t.Errorf("not each refusal has its own advice: %v", seen)
	}
}

// TestFingerprintSpellings: as openssl, browsers and Windows show them.
func TestFingerprintSpellings(t *testing.T) {
	digits := strings.Repeat("0a", 32)
	pairs := func(between string) string { return strings.TrimSuffix(strings.Repeat("0A"+between, 32), between) }
	for _, text := range []string{
		"sha256:" + digits, digits, strings.ToUpper(digits), pairs(":"), pairs(" "), pairs("-"), " " + digits + "\n",
		"SHA256:" + pairs(":"), "sha256 Fingerprint=" + pairs(":"), "SHA256 Fingerprint=" + pairs(":"), "SHA-256: " + pairs(" "),
	} {
		if got, err := ParseFingerprint(text); err != nil || got != "sha256:"+digits {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "sha256:", digits[2:], digits + "0a", "sha1 Fingerprint=" + pairs(":"), "sha1:" + digits, "sha256:sha256:" + digits} {
		if got, err := ParseFingerprint(text); err == nil {
			t.Errorf("%q is %q", text, got)
		}
	}
}
