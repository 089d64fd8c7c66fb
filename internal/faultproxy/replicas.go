package faultproxy

import (
	"context"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/gemalto/kmip-go/kmip14"
	"github.com/gemalto/kmip-go/ttlv"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
	"github.com/vmcrypt/vmcrypt/kms"
)

// Replicas is a cluster of key managers that replicate each other, as proxies
// before one key manager that ships with vmcrypt.
type Replicas struct {
	Proxies []*Proxy
	Journal *Journal // of all of them
	Files            // for all of them alike
	Home    kms.Home // the key manager behind those that do not lag

	t      testing.TB
	memory bool
}

// NewReplicas makes n replicas on the loopback.
func NewReplicas(t testing.TB, n int) *Replicas {
	t.Helper()
	return newReplicas(t, n, false)
}

// NewReplicasInMemory makes n replicas that only Dial reaches.
func NewReplicasInMemory(t testing.TB, n int) *Replicas {
	t.Helper()
	return newReplicas(t, n, true)
}

func newReplicas(t testing.TB, n int, memory bool) *Replicas {
	t.Helper()
	r := &Replicas{Journal: new(Journal), Home: homeIn(t.TempDir()), t: t, memory: memory}
	if err := r.Home.Init([]byte("# made by a test\n")); err != nil {
		t.Fatal(err)
	}
	r.Files = filesOf(r.Home)
	dial := r.run(r.Home)
	for i := range n {
		r.Proxies = append(r.Proxies, r.proxy(i, dial))
	}
	return r
}

func (r *Replicas) proxy(i int, dial DialFunc) *Proxy {
	r.t.Helper()
	if r.memory {
		return StartInMemory(r.t, fmt.Sprintf("127.0.0.1:%d", 5001+i), r.Journal, r.Files, dial)
	}
	return Start(r.t, r.Journal, r.Files, dial)
}

func homeIn(dir string) kms.Home {
	return kms.Home{Config: filepath.Join(dir, "config.yaml"), Dir: filepath.Join(dir, "kms")}
}

func filesOf(h kms.Home) Files {
	config := func(name string) string { return filepath.Join(h.ConfigDir(), name) }
	return Files{
		CA: config("ca.pem"), ClientCert: config("client.pem"), ClientKey: config("client.key"),
		ServerCert: filepath.Join(h.Dir, "server.pem"), ServerKey: filepath.Join(h.Dir, "server.key"),
	}
}

// run makes a key manager reachable. In memory it is opened for each exchange.
func (r *Replicas) run(h kms.Home) DialFunc {
	r.t.Helper()
	if !r.memory {
		serve(r.t, h)
	}
	return func(ctx context.Context) (net.Conn, error) { return h.Dial(ctx, "") }
}

// serve runs a key manager until t ends.
func serve(t testing.TB, h kms.Home) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- h.Serve(ctx, "127.0.0.1:0", func(net.Addr) { close(ready) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-ready:
	case err := <-ended:
		ended <- nil
		t.Fatal(err)
	}
}

// Addresses gives the addresses of the replicas in order.
func (r *Replicas) Addresses() []string {
	var addresses []string
	for _, p := range r.Proxies {
		addresses = append(addresses, p.Address)
	}
	return addresses
}

// Dial is a kek.DialFunc that knows the replicas alone.
func (r *Replicas) Dial(ctx context.Context, address string) (net.Conn, error) {
	for _, p := range r.Proxies {
		if p.Address == address {
			return p.Dial(ctx)
		}
	}
	return nil, dialError(&net.DNSError{Err: "no such host", Name: address, IsNotFound: true})
}

// Lag puts replica i on a store of its own, a copy of what the others have now.
// Nobody may be asking for anything meanwhile.
func (r *Replicas) Lag(i int) {
	r.t.Helper()
	dial := r.run(CopyHome(r.t, r.Home))
	u := r.Proxies[i].upstream
	u.mu.Lock()
	u.dial = dial
	u.mu.Unlock()
	u.close() // what leads to the old store
}

// CopyHome makes a copy of a key manager, of which nobody may be asking for anything.
func CopyHome(t testing.TB, h kms.Home) kms.Home {
	t.Helper()
	dir := t.TempDir()
	if err := copyFiles(dir, h.ConfigDir()); err != nil {
		t.Fatal(err)
	}
	return homeIn(dir)
}

// copyFiles copies the regular files below a folder; what a server that runs has
// beside them is its own.
func copyFiles(to, from string) error {
	root, err := os.OpenRoot(to)
	if err != nil {
		return err
	}
	defer root.Close()
	source := os.DirFS(from)
	return fs.WalkDir(source, ".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			return root.MkdirAll(path, 0o700)
		case !d.Type().IsRegular():
			return nil
		}
		data, err := fs.ReadFile(source, path)
		if err != nil {
			return err
		}
		return root.WriteFile(path, data, 0o600)
	})
}

// Do has the key manager behind replica i do an operation, whatever its proxy is
// set to do. It is not in the journal.
func (r *Replicas) Do(i int, op kmip14.Operation, request, response any) {
	r.t.Helper()
	if err := r.do(i, op, request, response); err != nil {
		r.t.Fatalf("%s at replica %d: %v", op, i, err)
	}
}

func (r *Replicas) do(i int, op kmip14.Operation, request, response any) error {
	msg, err := kmipwire.Marshal(kmipwire.RequestMessage{
		RequestHeader: kmipwire.RequestHeader{ProtocolVersion: kmipwire.Versions()[0], BatchCount: 1},
		BatchItem:     []kmipwire.RequestBatchItem{{Operation: op, RequestPayload: request}},
	})
	if err != nil {
		return err
	}
	out, err := r.Proxies[i].upstream.exchange(context.Background(), msg)
	if err != nil {
		return err
	}
	var resp kmipwire.ResponseMessage
	if err := kmipwire.Unmarshal(out, &resp); err != nil {
		return err
	}
	item := resp.BatchItem[0]
	if item.ResultStatus != kmip14.ResultStatusSuccess {
		return fmt.Errorf("%s: %s", item.ResultReason, item.ResultMessage)
	}
	return kmipwire.UnmarshalPayload(item.ResponsePayload, response)
}

// Keys gives the Unique Identifiers of all keys that replica i has, those that
// were destroyed left out.
func (r *Replicas) Keys(i int) []string {
	r.t.Helper()
	var resp kmipwire.LocateResponse
	r.Do(i, kmip14.OperationLocate, kmipwire.LocateRequest{}, &resp)
	return resp.UniqueIdentifier
}

// Create makes a key at replica i, and activates it.
func (r *Replicas) Create(i int) (id string) {
	r.t.Helper()
	id = r.create(i)
	r.Do(i, kmip14.OperationActivate, kmipwire.ActivateRequest{UniqueIdentifier: id}, new(kmipwire.ActivateResponse))
	return id
}

func (r *Replicas) create(i int) (id string) {
	r.t.Helper()
	var created kmipwire.CreateResponse
	r.Do(i, kmip14.OperationCreate, kmipwire.CreateRequest{
		ObjectType: kmip14.ObjectTypeSymmetricKey,
		TemplateAttribute: kmipwire.TemplateAttribute{Attribute: []kmipwire.Attribute{
			{AttributeName: kmipwire.AttrCryptographicAlgorithm, AttributeValue: kmip14.CryptographicAlgorithmAES},
			{AttributeName: kmipwire.AttrCryptographicLength, AttributeValue: int32(256)},
			{
				AttributeName:  kmipwire.AttrCryptographicUsageMask,
				AttributeValue: kmip14.CryptographicUsageMaskEncrypt | kmip14.CryptographicUsageMaskDecrypt,
			},
		}},
	}, &created)
	return created.UniqueIdentifier
}

// State is the state that replica i has a key in.
func (r *Replicas) State(i int, id string) kmip14.State {
	r.t.Helper()
	state, ok := r.attribute(i, id, kmipwire.AttrState).(ttlv.EnumValue)
	if !ok {
		r.t.Fatalf("replica %d tells no state of %s", i, id)
	}
	return kmip14.State(state)
}

// Name is the name that a key has at replica i, or "".
func (r *Replicas) Name(i int, id string) string {
	r.t.Helper()
	var name kmipwire.Name
	if kmipwire.UnmarshalPayload(r.attribute(i, id, kmipwire.AttrName), &name) != nil {
		return ""
	}
	return name.NameValue
}

// attribute is one of a key at replica i, or nil.
func (r *Replicas) attribute(i int, id, name string) any {
	r.t.Helper()
	var got kmipwire.GetAttributesResponse
	r.Do(i, kmip14.OperationGetAttributes, kmipwire.GetAttributesRequest{UniqueIdentifier: id, AttributeName: []string{name}}, &got)
	if len(got.Attribute) == 0 {
		return nil
	}
	return got.Attribute[0].AttributeValue
}

// Revoke deactivates a key at replica i: at it alone, if it lags.
func (r *Replicas) Revoke(i int, id string) {
	r.t.Helper()
	r.Do(i, kmip14.OperationRevoke, kmipwire.RevokeRequest{
		UniqueIdentifier: id,
		RevocationReason: kmipwire.RevocationReason{RevocationReasonCode: kmip14.RevocationReasonCodeCessationOfOperation},
	}, new(kmipwire.RevokeResponse))
}

// Destroy destroys a key that was revoked.
func (r *Replicas) Destroy(i int, id string) {
	r.t.Helper()
	r.Do(i, kmip14.OperationDestroy, kmipwire.DestroyRequest{UniqueIdentifier: id}, new(kmipwire.DestroyResponse))
}
