package faultproxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/gemalto/kmip-go/kmip14"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// patience is longer than any client's: a proxy gives nobody up.
var patience = kmipwire.Timeouts{Handshake: time.Hour, Idle: 24 * time.Hour, Message: time.Hour}

// Files are the paths of PEM files: by which a key manager proves who it is, and
// by which its client does.
type Files struct {
	CA, ServerCert, ServerKey, ClientCert, ClientKey string
}

// DialFunc connects to a key manager, TLS not included.
type DialFunc func(ctx context.Context) (net.Conn, error)

// Start has a proxy listen on the loopback before the key manager that dial
// reaches, until t ends. A nil journal is one of its own.
func Start(t testing.TB, journal *Journal, files Files, dial DialFunc) *Proxy {
	t.Helper()
	p := newProxy(t, "127.0.0.1:0", journal, files, dial)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.listen()
	return p
}

// StartInMemory is Start for a proxy that only its Dial reaches; address is what it
// is called. It has at most one connection to the key manager, for as long as a
// request takes, so that nothing waits for a socket in between.
func StartInMemory(t testing.TB, address string, journal *Journal, files Files, dial DialFunc) *Proxy {
	t.Helper()
	p := newProxy(t, address, journal, files, dial)
	p.memory, p.upstream.keep = true, false
	return p
}

func newProxy(t testing.TB, address string, journal *Journal, files Files, dial DialFunc) *Proxy {
	t.Helper()
	if journal == nil {
		journal = new(Journal)
	}
	p := &Proxy{
		Address: address, t: t, journal: journal, config: serverTLS(t, files),
		upstream: &upstream{dial: dial, config: clientTLS(t, files), keep: true},
		faults:   map[kmip14.Operation]Fault{}, open: map[net.Conn]bool{},
	}
	t.Cleanup(p.stop)
	return p
}

func (p *Proxy) stop() {
	p.mu.Lock()
	p.always, p.faults = Refuse, nil
	p.settle()
	p.mu.Unlock()
	p.running.Wait()
	p.upstream.close()
}

// listen is called with the proxy locked. A port that was given up is taken back.
func (p *Proxy) listen() {
	p.t.Helper()
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", p.Address)
	if err != nil {
		p.t.Error(err)
		return
	}
	p.listener, p.Address = l, l.Addr().String()
	p.running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			p.serve(conn)
		}
	})
}

func (p *Proxy) serve(raw net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.always == Refuse {
		raw.Close()
		return
	}
	p.open[raw] = true
	p.most = max(p.most, len(p.open))
	p.running.Go(func() {
		p.handle(raw)
		raw.Close()
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.open, raw)
	})
}

func (p *Proxy) handle(raw net.Conn) {
	f := p.fault(nil)
	p.note("connect", f)
	switch f.kind {
	case Hang.kind:
		silence(raw)
		return
	case Reset.kind:
		reset(raw)
		return
	}
	time.Sleep(f.delay)
	conn := kmipwire.NewConn(tls.Server(raw, p.config), patience)
	ctx := context.Background()
	if conn.Handshake(ctx) != nil {
		return
	}
	for {
		msg, err := conn.Read(ctx)
		if err != nil {
			return
		}
		out := p.answer(ctx, raw, msg)
		if out == nil || conn.Write(ctx, out) != nil {
			return
		}
		kmipwire.Wipe(out)
	}
}

// answer is what the client gets; without one the connection ends.
func (p *Proxy) answer(ctx context.Context, raw net.Conn, msg []byte) []byte {
	var req kmipwire.RequestMessage
	if kmipwire.Unmarshal(msg, &req) != nil || len(req.BatchItem) == 0 {
		return nil
	}
	f := p.fault(operations(&req))
	p.noteRequest(&req, f)
	switch f.kind {
	case Hang.kind:
		silence(raw)
		return nil
	case Reset.kind:
		reset(raw)
		return nil
	case Die.kind:
		reset(raw)
		p.Set(Refuse)
		return nil
	case Deny.kind:
		return refusal(&req, kmip14.ResultReasonPermissionDenied)
	case Missing.kind:
		return refusal(&req, kmip14.ResultReasonItemNotFound)
	}
	time.Sleep(f.delay)
	out, err := p.upstream.exchange(ctx, msg)
	if err != nil {
		return nil
	}
	return spoil(f, raw, out)
}

// spoil is what becomes of an answer under f.
func spoil(f Fault, raw net.Conn, out []byte) []byte {
	switch f.kind {
	case Garble.kind:
		for i := range out[8:] { // the header says how much is coming
			out[8+i] ^= 0xA5
		}
	case Lose.kind:
		reset(raw)
		return nil
	case Swallow.kind:
		silence(raw)
		return nil
	case Alter.kind:
		return alter(out)
	}
	return out
}

// alter changes a bit of the key in an answer, if there is one.
func alter(out []byte) []byte {
	var resp kmipwire.ResponseMessage
	if kmipwire.Unmarshal(out, &resp) != nil {
		return nil
	}
	for i := range resp.BatchItem {
		var get kmipwire.GetResponse
		if resp.BatchItem[i].Operation != kmip14.OperationGet || kmipwire.UnmarshalPayload(resp.BatchItem[i].ResponsePayload, &get) != nil {
			continue
		}
		if get.SymmetricKey != nil && len(get.SymmetricKey.KeyBlock.KeyValue.KeyMaterial) > 0 {
			get.SymmetricKey.KeyBlock.KeyValue.KeyMaterial[0] ^= 1 // which lies in out
		}
	}
	return out
}

func operations(req *kmipwire.RequestMessage) []kmip14.Operation {
	var ops []kmip14.Operation
	for _, item := range req.BatchItem {
		ops = append(ops, item.Operation)
	}
	return ops
}

func (p *Proxy) noteRequest(req *kmipwire.RequestMessage, f Fault) {
	for _, item := range req.BatchItem {
		p.journal.add(Event{
			Server: p.Address, Operation: item.Operation.String(), Fault: f.kind,
			Subject: subject(item), Version: req.RequestHeader.ProtocolVersion.String(),
		})
	}
}

// subject is the Unique Identifier or the Name that an operation is about.
func subject(item kmipwire.RequestBatchItem) string {
	switch item.Operation {
	case kmip14.OperationCreate:
		var create kmipwire.CreateRequest
		_ = kmipwire.UnmarshalPayload(item.RequestPayload, &create)
		return nameIn(create.TemplateAttribute.Attribute)
	case kmip14.OperationLocate:
		var locate kmipwire.LocateRequest
		_ = kmipwire.UnmarshalPayload(item.RequestPayload, &locate)
		return nameIn(locate.Attribute)
	}
	var about kmipwire.ActivateRequest // as of most, of which it takes the first field
	_ = kmipwire.UnmarshalPayload(item.RequestPayload, &about)
	return about.UniqueIdentifier
}

func nameIn(attributes []kmipwire.Attribute) string {
	for _, a := range attributes {
		var name kmipwire.Name
		if a.AttributeName == kmipwire.AttrName && kmipwire.UnmarshalPayload(a.AttributeValue, &name) == nil {
			return name.NameValue
		}
	}
	return ""
}

// refusal is an answer that nothing was done.
func refusal(req *kmipwire.RequestMessage, reason kmip14.ResultReason) []byte {
	resp := kmipwire.ResponseMessage{ResponseHeader: kmipwire.ResponseHeader{
		ProtocolVersion: req.RequestHeader.ProtocolVersion, TimeStamp: time.Now(), BatchCount: len(req.BatchItem),
	}}
	for _, item := range req.BatchItem {
		resp.BatchItem = append(resp.BatchItem, kmipwire.ResponseBatchItem{
			Operation: item.Operation, UniqueBatchItemID: item.UniqueBatchItemID,
			ResultStatus: kmip14.ResultStatusOperationFailed, ResultReason: reason, ResultMessage: "the proxy says so",
		})
	}
	out, err := kmipwire.Marshal(resp)
	if err != nil {
		return nil
	}
	return out
}

// silence says nothing until the other side closes.
func silence(conn net.Conn) {
	_ = conn.SetReadDeadline(time.Time{})
	_, _ = io.Copy(io.Discard, conn)
}

// reset closes so that the other side is told of a reset, where there is a socket.
func reset(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	conn.Close()
}

// upstream is the way to the key manager.
type upstream struct {
	dial   DialFunc
	config *tls.Config
	keep   bool // connections, after an exchange

	one  sync.Mutex // held by the only exchange at a time, unless keep
	mu   sync.Mutex
	idle []*kmipwire.Conn
}

// exchange has the key manager answer msg.
func (u *upstream) exchange(ctx context.Context, msg []byte) ([]byte, error) {
	if !u.keep {
		u.one.Lock()
		defer u.one.Unlock()
	}
	conn, err := u.take(ctx)
	if err != nil {
		return nil, err
	}
	if err := conn.Write(ctx, msg); err != nil {
		conn.Close()
		return nil, err
	}
	out, err := conn.Read(ctx)
	if err != nil || !u.keep {
		return out, errors.Join(err, conn.Close())
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.idle = append(u.idle, conn)
	return out, nil
}

func (u *upstream) take(ctx context.Context) (*kmipwire.Conn, error) {
	if conn := u.takeIdle(); conn != nil {
		return conn, nil
	}
	raw, err := u.dial(ctx)
	if err != nil {
		return nil, err
	}
	conn := kmipwire.NewConn(tls.Client(raw, u.config), kmipwire.DefaultTimeouts)
	if err := conn.Handshake(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

func (u *upstream) takeIdle() *kmipwire.Conn {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.idle) == 0 {
		return nil
	}
	conn := u.idle[len(u.idle)-1]
	u.idle = u.idle[:len(u.idle)-1]
	return conn
}

func (u *upstream) close() {
	for conn := u.takeIdle(); conn != nil; conn = u.takeIdle() {
		conn.Close()
	}
}

func clientTLS(t testing.TB, files Files) *tls.Config {
	t.Helper()
	config := kmipwire.TLSConfig()
	config.RootCAs = pool(t, files.CA)
	config.Certificates = []tls.Certificate{pair(t, files.ClientCert, files.ClientKey)}
	config.ServerName = "localhost"
	return config
}

func serverTLS(t testing.TB, files Files) *tls.Config {
	t.Helper()
	config := kmipwire.TLSConfig()
	config.ClientCAs = pool(t, files.CA)
	config.ClientAuth = tls.RequireAndVerifyClientCert
	config.Certificates = []tls.Certificate{pair(t, files.ServerCert, files.ServerKey)}
	return config
}

func pool(t testing.TB, path string) *x509.CertPool {
	t.Helper()
	pem, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	return pool
}

func pair(t testing.TB, cert, key string) tls.Certificate {
	t.Helper()
	p, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return p
}
