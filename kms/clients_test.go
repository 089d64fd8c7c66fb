package kms

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gemalto/kmip-go/kmip14"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// addClient issues a certificate and returns a client's configuration with it.
func addClient(t testing.TB, h Home, name string, replace bool) *tls.Config {
	t.Helper()
	dir := t.TempDir()
	if _, err := h.AddClient(context.Background(), NewClient{Name: name, Dir: dir, Replace: replace}); err != nil {
		t.Fatal(err)
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key"))
	if err != nil {
		t.Fatal(err)
	}
	config := clientTLS(t, h)
	config.Certificates = []tls.Certificate{cert}
	return config
}

// dialAs connects with a configuration of its own.
func dialAs(t testing.TB, h Home, config *tls.Config) (*client, error) {
	t.Helper()
	conn, err := h.Dial(context.Background(), "")
	if err != nil {
		return nil, err
	}
	c := &client{t: t, version: newest, conn: kmipwire.NewConn(tls.Client(conn, config), kmipwire.DefaultTimeouts)}
	t.Cleanup(func() { c.conn.Close() })
	return c, c.ping()
}

// ping asks the server something harmless. In TLS 1.3 a client hears only now
// that it has been refused.
func (c *client) ping() error {
	out, err := c.roundTrip(c.message(items(kmip14.OperationDiscoverVersions, &kmipwire.DiscoverVersionsRequest{})...))
	if err == nil && out.BatchItem[0].ResultStatus != kmip14.ResultStatusSuccess {
		err = errors.New(out.BatchItem[0].ResultMessage)
	}
	return err
}

// mustDialAs fails the test where dialAs fails.
func mustDialAs(t testing.TB, h Home, config *tls.Config) *client {
	t.Helper()
	c, err := dialAs(t, h, config)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// clientOf gives the registry's entry.
func clientOf(t *testing.T, h Home, name string) *Client {
	t.Helper()
	all, err := h.Clients(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range all {
		if c.Name == name {
			return &c
		}
	}
	t.Fatalf("no client %s among %+v", name, all)
	return nil
}

// everyWay runs a test with the key manager being served and not.
func everyWay(t *testing.T, test func(t *testing.T, h Home)) {
	for _, served := range []bool{false, true} {
		t.Run(map[bool]string{false: "in-process", true: "served"}[served], func(t *testing.T) {
			h := newHome(t)
			if served {
				serve(t, h)
			}
			test(t, h)
		})
	}
}

func TestClientLife(t *testing.T) {
	everyWay(t, func(t *testing.T, h Home) {
		config := addClient(t, h, "host-1", false)
		mustDialAs(t, h, config).conn.Close()
		cert, err := x509.ParseCertificate(config.Certificates[0].Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		c := clientOf(t, h, "host-1")
		if len(c.Serial) < 8 || !c.Until.Equal(cert.NotAfter) || c.Revoked != nil || time.Since(c.Since) > time.Minute {
			t.Errorf("%+v", c)
		}
		if err := h.RevokeClient(t.Context(), "host-1"); err != nil {
			t.Fatal(err)
		}
		if _, err := dialAs(t, h, config); err == nil {
			t.Error("a revoked client was let in")
		}
		if clientOf(t, h, "host-1").Revoked == nil {
			t.Error("not revoked")
		}
		again := addClient(t, h, "host-1", true)
		mustDialAs(t, h, again).conn.Close()
		if _, err := dialAs(t, h, config); err == nil {
			t.Error("the replaced certificate works")
		}
	})
}

func TestClientsRefused(t *testing.T) {
	everyWay(t, func(t *testing.T, h Home) {
		addClient(t, h, "a", false)
		for what, test := range map[string]struct {
			client NewClient
			want   error
		}{
			"a name in use":         {NewClient{Name: "a"}, ErrClientExists},
			"nothing to replace":    {NewClient{Name: "b", Replace: true}, ErrNoClient},
			"no name":               {NewClient{}, ErrClientName},
			"a path":                {NewClient{Name: "../a"}, ErrClientName},
			"a name with a newline": {NewClient{Name: "b\n"}, ErrClientName},
			"a long name":           {NewClient{Name: strings.Repeat("b", 65)}, ErrClientName},
			"a file for a folder":   {NewClient{Name: "b", Dir: "/dev/null"}, syscall.ENOTDIR},
		} {
			t.Run(what, func(t *testing.T) {
				if test.client.Dir == "" {
					test.client.Dir = t.TempDir()
				}
				if _, err := h.AddClient(t.Context(), test.client); !errors.Is(err, test.want) {
					t.Errorf("error is %v, want %v", err, test.want)
				}
				if left, _ := os.ReadDir(test.client.Dir); len(left) > 0 {
					t.Errorf("%s was left behind", left[0].Name())
				}
			})
		}
		if err := h.RevokeClient(t.Context(), "b"); !errors.Is(err, ErrNoClient) {
			t.Errorf("revoke: %v", err)
		}
		if all, err := h.Clients(t.Context()); err != nil || len(all) != 2 {
			t.Errorf("%+v %v", all, err)
		}
	})
}

// TestClientFilesAreNotReplaced: a key that is there may be in use.
func TestClientFilesAreNotReplaced(t *testing.T) {
	t.Parallel()
	h, dir := newHome(t), t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.key"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := h.AddClient(t.Context(), NewClient{Name: "a", Dir: dir}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("error is %v", err)
	}
	addClient(t, h, "a", false) // the name is still free
}

func TestClientKeyIsPrivate(t *testing.T) {
	t.Parallel()
	h, dir := newHome(t), t.TempDir()
	if _, err := h.AddClient(t.Context(), NewClient{Name: "a", Dir: dir}); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(dir, "a.key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v, want mode 0600", info, err)
	}
}

// TestRevokedWhileConnected: not one more request is answered.
func TestRevokedWhileConnected(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	serve(t, h)
	gone, stays := mustDialAs(t, h, addClient(t, h, "gone", false)), mustDialAs(t, h, addClient(t, h, "stays", false))
	if err := h.RevokeClient(t.Context(), "gone"); err != nil {
		t.Fatal(err)
	}
	if err := gone.ping(); err == nil {
		t.Error("a revoked client was answered")
	}
	if err := stays.ping(); err != nil {
		t.Error(err)
	}
}

// TestAdmitIsAskedForEveryRequest: even a connection that could not be closed
// would be of no use.
func TestAdmitIsAskedForEveryRequest(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	config := addClient(t, h, "a", false)
	s := newTestServer(t, h)
	local, remote, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { s.handle(t.Context(), s.guests.enter(t.Context(), remote)); close(done) }()
	c := &client{t: t, version: newest, conn: kmipwire.NewConn(tls.Client(local, config), kmipwire.DefaultTimeouts)}
	defer c.conn.Close()
	if err := c.ping(); err != nil {
		t.Fatal(err)
	}
	if err := s.clients.revoke("a"); err != nil { // without expelling it
		t.Fatal(err)
	}
	if err := c.ping(); err == nil {
		t.Error("a revoked client was answered")
	}
	<-done
}

// TestUnregisteredCertificate: the authority's signature alone opens nothing.
func TestUnregisteredCertificate(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	ca, err := h.authority()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"stranger", clientName, ""} {
		cert, files, err := ca.issueClient(NewClient{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		pair, err := tls.X509KeyPair(files[name+".pem"], files[name+".key"])
		if err != nil {
			t.Fatal(err)
		}
		config := clientTLS(t, h)
		config.Certificates = []tls.Certificate{pair}
		if _, err := dialAs(t, h, config); err == nil {
			t.Errorf("%q, serial %x, was let in", name, cert.SerialNumber)
		}
	}
}

// TestRequestsSigned: of a request, only the key counts.
func TestRequestsSigned(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsa2048, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]crypto.Signer{"p256": p256, "rsa": rsa2048, "ed25519": ed} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			n := NewClient{Name: name, Dir: dir, Request: csr(t, key)}
			if _, err := h.AddClient(t.Context(), n); err != nil {
				t.Fatal(err)
			}
			if exists(filepath.Join(dir, name+".key")) {
				t.Error("a key was written")
			}
			pemBytes, err := os.ReadFile(filepath.Join(dir, name+".pem"))
			if err != nil {
				t.Fatal(err)
			}
			block, _ := pem.Decode(pemBytes)
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			if cert.Subject.String() != "CN="+name || cert.IsCA || len(cert.DNSNames) != 0 ||
				len(cert.ExtKeyUsage) != 1 || cert.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth {
				t.Errorf("%+v", cert)
			}
			config := clientTLS(t, h)
			config.Certificates = []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}
			mustDialAs(t, h, config)
		})
	}
}

// csr asks for much more than it will get.
func csr(t *testing.T, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:  pkix.Name{CommonName: "vmcrypt", Organization: []string{"root"}},
		DNSNames: []string{"kms.example.com"},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func TestRequestsRefused(t *testing.T) {
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	forged, _ := pem.Decode(csr(t, p256))
	forged.Bytes[len(forged.Bytes)-1] ^= 1
	for what, text := range map[string][]byte{
		"empty":         {},
		"not PEM":       []byte("hello"),
		"a certificate": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte{1}}),
		"garbage":       pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: []byte{0x30, 0x80}}),
		"P-224":         csr(t, p224),
		"forged":        pem.EncodeToMemory(forged),
	} {
		if _, err := publicKey(text); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
	for what, key := range map[string]any{"RSA 1024": &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 1023)}, "RSA 16384": &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 16383)}, "unknown": 1} {
		if checkKey(key) == nil {
			t.Errorf("%s: accepted", what)
		}
	}
}

// TestAdministrationIsLogged: who changed the registry, and with what success.
func TestAdministrationIsLogged(t *testing.T) {
	everyWay(t, func(t *testing.T, h Home) {
		addClient(t, h, "a", false)
		_ = h.RevokeClient(t.Context(), "b")
		if err := h.RevokeClient(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		wantWhole(t, h, 1, 3)
		text := readAudit(t, h)
		for _, word := range []string{
			`"operation":"Add Client","object":"a","result":"Success"`, `"operation":"Revoke Client","object":"b","result":"Operation Failed"`,
			`"operation":"Revoke Client","object":"a","result":"Success"`, administrator(),
		} {
			if !strings.Contains(text, word) {
				t.Errorf("the log has no %s:\n%s", word, text)
			}
		}
	})
}

// TestRegistryIsBoundToTheStore: a record moved to another name does not open.
func TestRegistryIsBoundToTheStore(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	addClient(t, h, "a", false)
	s, err := h.open(forWriting, storeWait)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	err = s.update(func(x *tx) error {
		b := x.bolt.Bucket(clientsBucket)
		return x.set(clientsBucket, x.sealer.noteKey(clientsBucket, "b"), b.Get(x.sealer.noteKey(clientsBucket, "a")))
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := newRegistry(s); !errors.Is(err, ErrDamaged) {
		t.Errorf("error is %v", err)
	}
	err = s.update(func(x *tx) error { return x.set(clientsBucket, x.sealer.noteKey(clientsBucket, "b"), nil) })
	if err != nil {
		t.Fatal(err)
	}
}

// TestFirstClientOfSchema1: its certificate is not known, only its name, until
// it is replaced.
func TestFirstClientOfSchema1(t *testing.T) {
	h := restore(t, filepath.Join(storeV1, "backup"))
	mustDialAs(t, h, clientTLS(t, h)).conn.Close()
	if c := clientOf(t, h, clientName); c.Serial != "" || c.Revoked != nil {
		t.Errorf("%+v", c)
	}
	config := addClient(t, h, clientName, true)
	mustDialAs(t, h, config).conn.Close()
	if _, err := dialAs(t, h, clientTLS(t, h)); err == nil {
		t.Error("the replaced certificate works")
	}
}

func TestEndedCertificate(t *testing.T) {
	r := &registry{clients: map[string]registered{firstClient.Name: firstClient}}
	cert := &x509.Certificate{Subject: pkix.Name{CommonName: clientName}, NotAfter: time.Now().Add(time.Hour)}
	if err := r.admit(cert); err != nil {
		t.Error(err)
	}
	cert.NotAfter = time.Now().Add(-time.Hour)
	if err := r.admit(cert); err == nil {
		t.Error("a connection outlives its certificate")
	}
}

// TestCertificatesFollowTheirFiles: a server goes on with new ones, and with
// the former ones where the new ones make no sense.
func TestCertificatesFollowTheirFiles(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	address, _ := serve(t, h)
	before := servedSerial(t, h, address)
	renewServer(t, h)
	deadline := time.Now().Add(10 * time.Second)
	for servedSerial(t, h, address) == before {
		if time.Now().After(deadline) {
			t.Fatal("still the former certificate")
		}
		time.Sleep(100 * time.Millisecond)
	}
	after := servedSerial(t, h, address)
	if err := os.WriteFile(h.path("server.pem"), []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	time.Sleep(certificateCheck + 200*time.Millisecond)
	if got := servedSerial(t, h, address); got != after {
		t.Errorf("certificate %s, want %s", got, after)
	}
}

func renewServer(t *testing.T, h Home) {
	t.Helper()
	ca, err := h.authority()
	if err != nil {
		t.Fatal(err)
	}
	id, err := issue(serverTemplate(), ca)
	if err != nil {
		t.Fatal(err)
	}
	key, err := id.keyPEM()
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"server.pem": id.certPEM(), "server.key": key} {
		if err := os.WriteFile(h.path(name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func servedSerial(t *testing.T, h Home, address string) string {
	t.Helper()
	conn, err := tls.Dial("tcp", address, clientTLS(t, h))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
}
