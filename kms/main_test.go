package kms

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/gemalto/kmip-go/kmip14"
	"github.com/gemalto/kmip-go/ttlv"
	"go.etcd.io/bbolt"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
	"github.com/vmcrypt/vmcrypt/internal/secret"
	"github.com/vmcrypt/vmcrypt/internal/testtool"
)

// These make the test binary do something to the home below a folder, so that it
// can be killed: serve it and print the address, make it, give it new root keys
// for ever.
const (
	serveEnv  = "VMCRYPT_TEST_SERVE"
	initEnv   = "VMCRYPT_TEST_INIT"
	rotateEnv = "VMCRYPT_TEST_ROTATE"
	fewEnv    = "VMCRYPT_TEST_FEW_FILES" // serve it, short of open files
)

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.NewTextHandler(io.Discard, nil)))
	rootKeyCost = cheap
	for env, act := range map[string]func(Home) error{serveEnv: serveForEver, initEnv: initOnce, rotateEnv: rotateForEver, fewEnv: serveWithFewFiles} {
		if dir := os.Getenv(env); dir != "" {
			fmt.Fprintln(os.Stderr, act(homeIn(dir)))
			os.Exit(1)
		}
	}
	testtool.RunMoreAtOnce()
	os.Exit(m.Run())
}

func serveForEver(h Home) error {
	return h.Serve(context.Background(), "127.0.0.1:0", func(a net.Addr) { fmt.Println(a) })
}

func initOnce(h Home) error {
	fmt.Println("init")
	if err := h.Init([]byte("# test\n")); err != nil {
		return err
	}
	fmt.Println("done")
	os.Exit(0)
	return nil
}

func rotateForEver(h Home) error {
	for {
		if err := h.RotateRoot(context.Background()); err != nil {
			return err
		}
		fmt.Println("rotated")
	}
}

func homeIn(dir string) Home {
	return Home{Config: filepath.Join(dir, "config.yaml"), Dir: filepath.Join(dir, "kms")}
}

// emptyHome is a home without a key manager.
func emptyHome(t testing.TB) Home {
	t.Helper()
	return homeIn(filepath.Join(t.TempDir(), "home"))
}

// newHome makes a key manager whose store is checked when the test ends.
func newHome(t testing.TB) Home {
	t.Helper()
	h := emptyHome(t)
	if err := h.Init([]byte("# test\n")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { checkStore(t, h) })
	return h
}

// checkStore fails the test if bbolt or we find anything wrong with the store.
func checkStore(t testing.TB, h Home) census {
	t.Helper()
	s, err := h.open(forReading, storeWait)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	err = s.db.View(func(tx *bbolt.Tx) error {
		for err := range tx.Check() {
			t.Errorf("bbolt: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.count()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// serve runs the home's server until the test ends or stop is called.
func serve(t testing.TB, h Home) (address string, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan string, 1), make(chan error, 1)
	go func() {
		done <- h.Serve(ctx, "127.0.0.1:0", func(a net.Addr) { ready <- a.String() })
	}()
	select {
	case address = <-ready:
	case err := <-done:
		t.Fatalf("serve: %v", err)
	}
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(stop)
	return address, stop
}

// client is a KMIP client as simple as can be.
type client struct {
	t       testing.TB
	conn    *kmipwire.Conn
	version kmipwire.ProtocolVersion
}

var newest = kmipwire.Versions()[0]

// clientTLS is the configuration of a client of the home.
func clientTLS(t testing.TB, h Home) *tls.Config {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(filepath.Join(h.ConfigDir(), "client.pem"), filepath.Join(h.ConfigDir(), "client.key"))
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(filepath.Join(h.ConfigDir(), "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	c := kmipwire.TLSConfig()
	c.ServerName = "127.0.0.1"
	c.Certificates = []tls.Certificate{cert}
	c.RootCAs = x509.NewCertPool()
	c.RootCAs.AppendCertsFromPEM(ca)
	return c
}

// dial opens a connection the way the alias "local" does.
func dial(t testing.TB, h Home) *client {
	t.Helper()
	c, err := dialErr(t, h)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.conn.Close() })
	return c
}

func dialErr(t testing.TB, h Home) (*client, error) {
	conn, err := h.Dial(context.Background(), "")
	if err != nil {
		return nil, err
	}
	c := &client{t: t, version: newest}
	c.conn = kmipwire.NewConn(tls.Client(conn, clientTLS(t, h)), kmipwire.DefaultTimeouts)
	if err := c.conn.Handshake(context.Background()); err != nil {
		c.conn.Close()
		return nil, err
	}
	return c, nil
}

// roundTrip sends a message and returns the answer.
func (c *client) roundTrip(in *kmipwire.RequestMessage) (*kmipwire.ResponseMessage, error) {
	msg, err := kmipwire.Marshal(in)
	if err != nil {
		return nil, err
	}
	if err := c.conn.Write(context.Background(), msg); err != nil {
		return nil, err
	}
	if msg, err = c.conn.Read(context.Background()); err != nil {
		return nil, err
	}
	out := &kmipwire.ResponseMessage{}
	return out, kmipwire.Unmarshal(msg, out)
}

func (c *client) message(items ...kmipwire.RequestBatchItem) *kmipwire.RequestMessage {
	in := &kmipwire.RequestMessage{BatchItem: items}
	in.RequestHeader.ProtocolVersion = c.version
	in.RequestHeader.BatchCount = len(items)
	return in
}

// send does one operation.
func (c *client) send(op kmip14.Operation, payload any) kmipwire.ResponseBatchItem {
	c.t.Helper()
	out, err := c.roundTrip(c.message(kmipwire.RequestBatchItem{Operation: op, RequestPayload: payload}))
	if err != nil {
		c.t.Fatal(err)
	}
	if len(out.BatchItem) != 1 || out.ResponseHeader.ProtocolVersion != c.version {
		c.t.Fatalf("%d items in version %s", len(out.BatchItem), out.ResponseHeader.ProtocolVersion)
	}
	return out.BatchItem[0]
}

// do does one operation that must succeed.
func do[R any](c *client, op kmip14.Operation, payload any) *R {
	c.t.Helper()
	item := c.send(op, payload)
	if item.ResultStatus != kmip14.ResultStatusSuccess {
		c.t.Fatalf("%s: %s: %s", op, item.ResultReason, item.ResultMessage)
	}
	return payloadOf[R](c.t, item)
}

func payloadOf[R any](t testing.TB, item kmipwire.ResponseBatchItem) *R {
	t.Helper()
	r := new(R)
	if err := kmipwire.Unmarshal(item.ResponsePayload.(ttlv.TTLV), r); err != nil {
		t.Fatal(err)
	}
	return r
}

// refused does one operation that must fail for that reason.
func (c *client) refused(want kmip14.ResultReason, op kmip14.Operation, payload any) {
	c.t.Helper()
	item := c.send(op, payload)
	if item.ResultStatus != kmip14.ResultStatusOperationFailed || item.ResultReason != want || item.ResultMessage == "" {
		c.t.Errorf("%s: %s, %s %q, want %s", op, item.ResultStatus, item.ResultReason, item.ResultMessage, want)
	}
}

func attribute1(name string, value any) kmipwire.Attribute {
	return kmipwire.Attribute{AttributeName: name, AttributeValue: value}
}

func nameAttribute(value string) kmipwire.Attribute {
	return attribute1(kmipwire.AttrName, kmipwire.Name{NameValue: value, NameType: kmip14.NameTypeUninterpretedTextString})
}

func createRequest(extra ...kmipwire.Attribute) *kmipwire.CreateRequest {
	r := &kmipwire.CreateRequest{ObjectType: kmip14.ObjectTypeSymmetricKey}
	r.TemplateAttribute.Attribute = append([]kmipwire.Attribute{
		attribute1(kmipwire.AttrCryptographicAlgorithm, kmip14.CryptographicAlgorithmAES),
		attribute1(kmipwire.AttrCryptographicLength, 256),
		attribute1(kmipwire.AttrCryptographicUsageMask, kmip14.CryptographicUsageMaskEncrypt|kmip14.CryptographicUsageMaskDecrypt),
	}, extra...)
	return r
}

func (c *client) create(name string) string {
	c.t.Helper()
	return do[kmipwire.CreateResponse](c, kmip14.OperationCreate, createRequest(nameAttribute(name))).UniqueIdentifier
}

func (c *client) get(id string) string {
	c.t.Helper()
	r := do[kmipwire.GetResponse](c, kmip14.OperationGet, &kmipwire.GetRequest{UniqueIdentifier: id})
	return string(r.SymmetricKey.KeyBlock.KeyValue.KeyMaterial)
}

func (c *client) activate(id string) {
	c.t.Helper()
	do[kmipwire.ActivateResponse](c, kmip14.OperationActivate, &kmipwire.ActivateRequest{UniqueIdentifier: id})
}

func revokeRequest(id string, code kmip14.RevocationReasonCode) *kmipwire.RevokeRequest {
	return &kmipwire.RevokeRequest{UniqueIdentifier: id, RevocationReason: kmipwire.RevocationReason{RevocationReasonCode: code}}
}

func (c *client) state(id string) kmip14.State {
	c.t.Helper()
	r := do[kmipwire.GetAttributesResponse](c, kmip14.OperationGetAttributes,
		&kmipwire.GetAttributesRequest{UniqueIdentifier: id, AttributeName: []string{kmipwire.AttrState}})
	if len(r.Attribute) != 1 {
		c.t.Fatalf("%d attributes", len(r.Attribute))
	}
	return kmip14.State(r.Attribute[0].AttributeValue.(ttlv.EnumValue))
}

func (c *client) locate(attrs ...kmipwire.Attribute) []string {
	c.t.Helper()
	return do[kmipwire.LocateResponse](c, kmip14.OperationLocate, &kmipwire.LocateRequest{Attribute: attrs}).UniqueIdentifier
}

func passphrase(t testing.TB, text string) *secret.Buffer {
	t.Helper()
	b, err := secret.Take([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Destroy)
	return b
}

// within fails the test if fn takes longer.
func within(t *testing.T, limit time.Duration, fn func()) {
	t.Helper()
	start := time.Now()
	fn()
	if took := time.Since(start); took > limit {
		t.Errorf("took %v, want at most %v", took, limit)
	}
}

// withoutFile takes a file out of a home.
func (h Home) withoutFile(t testing.TB, name string) {
	t.Helper()
	if err := os.Remove(h.path(name)); err != nil {
		t.Fatal(err)
	}
}
