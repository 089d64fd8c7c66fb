package kek

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gemalto/kmip-go/kmip14"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
	"github.com/vmcrypt/vmcrypt/internal/pykmip"
)

// theKey is what every fake key manager gives out.
var theKey = []byte("KEYBYTESKEYBYTESKEYBYTESKEYBYTES")

// fake is a key manager with one active key, "7", which tests make misbehave.
type fake struct {
	pki      pykmip.PKI
	address  string
	versions []kmipwire.ProtocolVersion
	edit     func(op kmip14.Operation, resp *kmipwire.ResponseMessage) // answers, before they are encoded
	raw      func(op kmip14.Operation, msg []byte) []byte              // after that; nil closes
	tls      func(*tls.Config)

	open    atomic.Int32
	replica *fake // which knows of the same names
	forgets bool  // the names of keys

	mu    sync.Mutex
	seen  []string // version and operation of each request
	names []string // of the keys that were made
	skips []int    // the offset of each Locate
	conns []net.Conn
}

// startFake starts a fake key manager and a client of it.
func startFake(t *testing.T, f *fake) *Cluster {
	t.Helper()
	if f.pki.CA == "" {
		f.pki = pykmip.NewPKI(t)
	}
	if f.versions == nil {
		f.versions = kmipwire.Versions()
	}
	config := f.serverTLS(t)
	f.address = listen(t, func(raw net.Conn) { f.serve(tls.Server(raw, config)) })
	return open(t, f.pki, f.address)
}

// at gives c servers at other addresses.
func (c *Cluster) at(addresses ...string) {
	c.servers = nil
	for _, address := range addresses {
		c.servers = append(c.servers, &server{Server: Server{Address: address}, cluster: c, places: make(chan struct{}, 4)})
	}
}

// quick gives c timeouts short enough to wait for.
func quick(c *Cluster) *Cluster {
	c.dialTimeout = time.Second
	c.timeouts = kmipwire.Timeouts{Handshake: time.Second, Idle: time.Second, Message: time.Second}
	return c
}

// listen has handle serve each connection to the address that it returns.
func listen(t *testing.T, handle func(net.Conn)) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			context.AfterFunc(t.Context(), func() { conn.Close() })
			wg.Go(func() {
				defer conn.Close()
				handle(conn)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return l.Addr().String()
}

func (f *fake) serverTLS(t *testing.T) *tls.Config {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(f.pki.ServerCert, f.pki.ServerKey)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(f.pki.CA)
	if err != nil {
		t.Fatal(err)
	}
	config := kmipwire.TLSConfig()
	config.Certificates = []tls.Certificate{cert}
	config.ClientAuth = tls.RequireAndVerifyClientCert
	config.ClientCAs = x509.NewCertPool()
	config.ClientCAs.AppendCertsFromPEM(ca)
	if f.tls != nil {
		f.tls(config)
	}
	return config
}

func (f *fake) serve(conn *tls.Conn) {
	f.open.Add(1)
	defer f.open.Add(-1)
	f.mu.Lock()
	f.conns = append(f.conns, conn.NetConn())
	f.mu.Unlock()
	c := kmipwire.NewConn(conn, kmipwire.DefaultTimeouts)
	ctx := context.Background()
	if c.Handshake(ctx) != nil {
		return
	}
	for {
		msg, err := c.Read(ctx)
		if err != nil {
			return
		}
		out := f.answer(msg)
		if out == nil || c.Write(ctx, out) != nil {
			return
		}
	}
}

func (f *fake) answer(msg []byte) []byte {
	var req kmipwire.RequestMessage
	if kmipwire.Unmarshal(msg, &req) != nil || len(req.BatchItem) != 1 {
		return nil
	}
	op := req.BatchItem[0].Operation
	f.mu.Lock()
	f.seen = append(f.seen, req.RequestHeader.ProtocolVersion.String()+" "+op.String())
	f.mu.Unlock()
	payload := f.payload(op)
	switch op {
	case kmip14.OperationCreate:
		var create kmipwire.CreateRequest
		_ = kmipwire.UnmarshalPayload(req.BatchItem[0].RequestPayload, &create) // then it has no name
		f.makes(nameIn(create.TemplateAttribute.Attribute))
	case kmip14.OperationLocate:
		var locate kmipwire.LocateRequest
		_ = kmipwire.UnmarshalPayload(req.BatchItem[0].RequestPayload, &locate) // likewise
		f.mu.Lock()
		f.skips = append(f.skips, locate.OffsetItems)
		f.mu.Unlock()
		payload = f.located(nameIn(locate.Attribute))
	}
	resp := kmipwire.ResponseMessage{
		ResponseHeader: kmipwire.ResponseHeader{ProtocolVersion: req.RequestHeader.ProtocolVersion, BatchCount: 1},
		BatchItem:      []kmipwire.ResponseBatchItem{{Operation: op, ResponsePayload: payload}},
	}
	if f.edit != nil {
		f.edit(op, &resp)
	}
	out, err := kmipwire.Marshal(resp)
	if err != nil {
		return nil
	}
	f.mu.Lock()
	raw := f.raw
	f.mu.Unlock()
	if raw != nil {
		return raw(op, out)
	}
	return out
}

func nameIn(attributes []kmipwire.Attribute) string {
	var name kmipwire.Name
	for _, a := range attributes {
		if a.AttributeName == kmipwire.AttrName {
			_ = kmipwire.UnmarshalPayload(a.AttributeValue, &name) // then it is empty
		}
	}
	return name.NameValue
}

func (f *fake) makes(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.forgets {
		f.names = append(f.names, name)
	}
}

func (f *fake) located(name string) *kmipwire.LocateResponse {
	for g := f; g != nil; g = g.replica {
		g.mu.Lock()
		made := slices.Contains(g.names, name)
		g.mu.Unlock()
		if made {
			return &kmipwire.LocateResponse{UniqueIdentifier: []string{"7"}}
		}
	}
	return new(kmipwire.LocateResponse)
}

// nameAttributes has each name that the fake knows of: it has one key for all.
func (f *fake) nameAttributes() (all []kmipwire.Attribute) {
	for g := f; g != nil; g = g.replica {
		g.mu.Lock()
		for _, name := range g.names {
			all = append(all, nameAttribute(name))
		}
		g.mu.Unlock()
	}
	return all
}

func (f *fake) payload(op kmip14.Operation) any {
	switch op {
	case kmip14.OperationDiscoverVersions:
		return &kmipwire.DiscoverVersionsResponse{ProtocolVersion: f.versions}
	case kmip14.OperationCreate:
		return &kmipwire.CreateResponse{ObjectType: kmip14.ObjectTypeSymmetricKey, UniqueIdentifier: "7"}
	case kmip14.OperationActivate:
		return &kmipwire.ActivateResponse{UniqueIdentifier: "7"}
	case kmip14.OperationGetAttributes:
		return &kmipwire.GetAttributesResponse{UniqueIdentifier: "7", Attribute: append([]kmipwire.Attribute{
			{AttributeName: kmipwire.AttrState, AttributeValue: kmip14.StateActive},
		}, f.nameAttributes()...)}
	}
	return &kmipwire.GetResponse{
		ObjectType: kmip14.ObjectTypeSymmetricKey, UniqueIdentifier: "7",
		SymmetricKey: &kmipwire.SymmetricKey{KeyBlock: kmipwire.KeyBlock{
			KeyFormatType:          kmip14.KeyFormatTypeRaw,
			KeyValue:               kmipwire.KeyValue{KeyMaterial: slices.Clone(theKey)},
			CryptographicAlgorithm: kmip14.CryptographicAlgorithmAES,
			CryptographicLength:    256,
		}},
	}
}

// requests is what the fake was asked, in order.
func (f *fake) requests() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.seen)
}

// fail makes every answer to op a failure.
func fail(failing kmip14.Operation, reason kmip14.ResultReason, message string) func(kmip14.Operation, *kmipwire.ResponseMessage) {
	return func(op kmip14.Operation, resp *kmipwire.ResponseMessage) {
		if op == failing {
			resp.BatchItem = []kmipwire.ResponseBatchItem{{
				ResultStatus: kmip14.ResultStatusOperationFailed, ResultReason: reason, ResultMessage: message,
			}}
		}
	}
}

// drip sends a byte now and then, for ever.
func drip(conn net.Conn) {
	for {
		if _, err := conn.Write([]byte{0x16}); err != nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// silence reads and says nothing.
func silence(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }

// sentinels are all Err values, by name.
var sentinels = map[string]error{
	"ErrUnavailable": ErrUnavailable, "ErrDenied": ErrDenied, "ErrNotFound": ErrNotFound,
	"ErrDestroyed": ErrDestroyed, "ErrUnproven": ErrUnproven, "ErrInactive": ErrInactive, "ErrInUse": ErrInUse, "ErrUnsuitable": ErrUnsuitable,
}

// expect checks that err wraps want, and none of the other Err values.
func expect(t *testing.T, err, want error) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	for name, sentinel := range sentinels {
		if got := errors.Is(err, sentinel); got != (sentinel == want) {
			t.Errorf("errors.Is(err, %s) = %v: %v", name, got, err)
		}
	}
}
