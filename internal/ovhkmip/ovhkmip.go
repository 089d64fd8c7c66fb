// Package ovhkmip is a small key manager for tests, built on the server of
// ovh/kmip-go: another vendor's reading of KMIP. It keeps AES keys in memory, and
// makes, activates, finds, gives, revokes and destroys them.
//
//	server := ovhkmip.Start(t)
//	// a KMIP server at server.Address, for who shows server.ClientCert
package ovhkmip

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ovh/kmip-go"
	"github.com/ovh/kmip-go/kmipserver"
	"github.com/ovh/kmip-go/payloads"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
	"github.com/vmcrypt/vmcrypt/internal/pykmip"
)

// Vendor is what the server says to Query that it is.
const Vendor = "ovh/kmip-go in a test of vmcrypt"

// Server is a running key manager and the files that a client of it needs.
type Server struct {
	Address string // host:port on the loopback
	pykmip.PKI
}

// Start starts a key manager with an empty store, in this process, until t ends.
// It speaks the versions given, all from 1.0 to 1.4 if there are none.
func Start(t testing.TB, versions ...kmip.ProtocolVersion) *Server {
	t.Helper()
	s := &Server{PKI: pykmip.NewPKI(t)}
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Address = l.Addr().String()
	server := kmipserver.NewServer(tls.NewListener(l, serverTLS(t, s.PKI)), handler(versions))
	ended := make(chan error, 1)
	go func() { ended <- server.Serve() }()
	t.Cleanup(func() {
		_ = server.Shutdown()
		if err := <-ended; !errors.Is(err, kmipserver.ErrShutdown) {
			t.Error(err)
		}
	})
	return s
}

func serverTLS(t testing.TB, pki pykmip.PKI) *tls.Config {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(pki.ServerCert, pki.ServerKey)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(pki.CA)
	if err != nil {
		t.Fatal(err)
	}
	config := kmipwire.TLSConfig()
	config.Certificates = []tls.Certificate{pair}
	config.ClientAuth = tls.RequireAndVerifyClientCert
	config.ClientCAs = x509.NewCertPool()
	config.ClientCAs.AppendCertsFromPEM(ca)
	return config
}

func handler(versions []kmip.ProtocolVersion) kmipserver.RequestHandler {
	s := &store{keys: map[string]*key{}}
	exec := kmipserver.NewBatchExecutor()
	exec.SetSupportedProtocolVersions(versions...)
	exec.Route(kmip.OperationQuery, kmipserver.HandleFunc(s.query))
	exec.Route(kmip.OperationCreate, kmipserver.HandleFunc(s.create))
	exec.Route(kmip.OperationActivate, kmipserver.HandleFunc(s.activate))
	exec.Route(kmip.OperationLocate, kmipserver.HandleFunc(s.locate))
	exec.Route(kmip.OperationGet, kmipserver.HandleFunc(s.get))
	exec.Route(kmip.OperationGetAttributes, kmipserver.HandleFunc(s.attributes))
	exec.Route(kmip.OperationRevoke, kmipserver.HandleFunc(s.revoke))
	exec.Route(kmip.OperationDestroy, kmipserver.HandleFunc(s.destroy))
	return exec
}

// key is an AES key.
type key struct {
	name     string
	created  time.Time
	state    kmip.State
	material []byte
}

// store is the keys by their Unique Identifiers.
type store struct {
	mu   sync.Mutex
	last int
	keys map[string]*key
}

// find is called with the store locked.
func (s *store) find(id string) (*key, error) {
	if k := s.keys[id]; k != nil {
		return k, nil
	}
	return nil, kmipserver.Errorf(kmip.ResultReasonItemNotFound, "no key %q", id)
}

func (s *store) query(_ context.Context, req *payloads.QueryRequestPayload) (*payloads.QueryResponsePayload, error) {
	resp := new(payloads.QueryResponsePayload)
	if slices.Contains(req.QueryFunction, kmip.QueryFunctionOperations) {
		resp.Operations = []kmip.Operation{
			kmip.OperationQuery, kmip.OperationCreate, kmip.OperationActivate, kmip.OperationLocate, kmip.OperationGet,
			kmip.OperationGetAttributes, kmip.OperationRevoke, kmip.OperationDestroy,
		}
	}
	if slices.Contains(req.QueryFunction, kmip.QueryFunctionServerInformation) {
		resp.VendorIdentification = Vendor
	}
	return resp, nil
}

func (s *store) create(_ context.Context, req *payloads.CreateRequestPayload) (*payloads.CreateResponsePayload, error) {
	k := &key{state: kmip.StatePreActive, created: time.Now().Truncate(time.Second)}
	for _, a := range req.TemplateAttribute.Attribute {
		switch value := a.AttributeValue.(type) {
		case kmip.Name:
			k.name = value.NameValue
		case int32:
			if a.AttributeName == kmip.AttributeNameCryptographicLength {
				k.material = make([]byte, value/8)
			}
		}
	}
	if _, err := rand.Read(k.material); err != nil || len(k.material) != 32 {
		return nil, kmipserver.Errorf(kmip.ResultReasonInvalidField, "only AES-256 keys are made here")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	name := kmip.Attribute{AttributeName: kmip.AttributeNameName, AttributeValue: named(k.name)}
	if k.name != "" && len(s.having([]kmip.Attribute{name})) > 0 {
		return nil, kmipserver.Errorf(kmip.ResultReasonInvalidField, "the name is taken")
	}
	s.last++
	id := strconv.Itoa(s.last)
	s.keys[id] = k
	return &payloads.CreateResponsePayload{ObjectType: kmip.ObjectTypeSymmetricKey, UniqueIdentifier: id}, nil
}

func (s *store) activate(_ context.Context, req *payloads.ActivateRequestPayload) (*payloads.ActivateResponsePayload, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k, err := s.find(req.UniqueIdentifier)
	if err != nil {
		return nil, err
	}
	if k.state != kmip.StatePreActive {
		return nil, kmipserver.Errorf(kmip.ResultReasonPermissionDenied, "the key is not pre-active")
	}
	k.state = kmip.StateActive
	return &payloads.ActivateResponsePayload{UniqueIdentifier: req.UniqueIdentifier}, nil
}

// having gives the IDs of the keys that have all the attributes, the oldest first.
func (s *store) having(attributes []kmip.Attribute) []string {
	var ids []string
	for id, k := range s.keys {
		if !slices.ContainsFunc(attributes, func(a kmip.Attribute) bool { return !k.has(a) }) {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b string) int { return cmp.Or(len(a)-len(b), strings.Compare(a, b)) }) // they are numbers
	return ids
}

func (k *key) has(a kmip.Attribute) bool {
	if a.AttributeName == kmip.AttributeNameObjectType {
		return a.AttributeValue == kmip.ObjectTypeSymmetricKey
	}
	return k.attributes()[a.AttributeName] == a.AttributeValue
}

func (k *key) attributes() map[kmip.AttributeName]any {
	return map[kmip.AttributeName]any{
		kmip.AttributeNameState:                  k.state,
		kmip.AttributeNameName:                   named(k.name),
		kmip.AttributeNameInitialDate:            k.created,
		kmip.AttributeNameCryptographicAlgorithm: kmip.CryptographicAlgorithmAES,
		kmip.AttributeNameCryptographicLength:    int32(256),
	}
}

func named(name string) kmip.Name {
	return kmip.Name{NameValue: name, NameType: kmip.NameTypeUninterpretedTextString}
}

// locate heeds Maximum Items, but not Offset Items: it can't give many keys part by part.
func (s *store) locate(_ context.Context, req *payloads.LocateRequestPayload) (*payloads.LocateResponsePayload, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := s.having(req.Attribute)
	if n := int(req.MaximumItems); n > 0 {
		ids = ids[:min(n, len(ids))]
	}
	return &payloads.LocateResponsePayload{UniqueIdentifier: ids}, nil
}

func (s *store) get(_ context.Context, req *payloads.GetRequestPayload) (*payloads.GetResponsePayload, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k, err := s.find(req.UniqueIdentifier)
	if err != nil {
		return nil, err
	}
	material := slices.Clone(k.material)
	return &payloads.GetResponsePayload{
		ObjectType: kmip.ObjectTypeSymmetricKey, UniqueIdentifier: req.UniqueIdentifier,
		Object: &kmip.SymmetricKey{KeyBlock: kmip.KeyBlock{
			KeyFormatType:          kmip.KeyFormatTypeRaw,
			KeyValue:               &kmip.KeyValue{Plain: &kmip.PlainKeyValue{KeyMaterial: kmip.KeyMaterial{Bytes: &material}}},
			CryptographicAlgorithm: kmip.CryptographicAlgorithmAES,
			CryptographicLength:    256,
		}},
	}, nil
}

func (s *store) attributes(_ context.Context, req *payloads.GetAttributesRequestPayload) (*payloads.GetAttributesResponsePayload, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k, err := s.find(req.UniqueIdentifier)
	if err != nil {
		return nil, err
	}
	resp := &payloads.GetAttributesResponsePayload{UniqueIdentifier: req.UniqueIdentifier}
	for name, value := range k.attributes() {
		if len(req.AttributeName) == 0 || slices.Contains(req.AttributeName, name) {
			resp.Attribute = append(resp.Attribute, kmip.Attribute{AttributeName: name, AttributeValue: value})
		}
	}
	return resp, nil
}

func (s *store) revoke(_ context.Context, req *payloads.RevokeRequestPayload) (*payloads.RevokeResponsePayload, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k, err := s.find(req.UniqueIdentifier)
	if err != nil {
		return nil, err
	}
	k.state = kmip.StateDeactivated
	if req.RevocationReason.RevocationReasonCode == kmip.RevocationReasonCodeKeyCompromise {
		k.state = kmip.StateCompromised
	}
	return &payloads.RevokeResponsePayload{UniqueIdentifier: req.UniqueIdentifier}, nil
}

func (s *store) destroy(_ context.Context, req *payloads.DestroyRequestPayload) (*payloads.DestroyResponsePayload, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k, err := s.find(req.UniqueIdentifier)
	if err != nil {
		return nil, err
	}
	if k.state == kmip.StateActive {
		return nil, kmipserver.Errorf(kmip.ResultReasonPermissionDenied, "the key is active")
	}
	delete(s.keys, req.UniqueIdentifier)
	return &payloads.DestroyResponsePayload{UniqueIdentifier: req.UniqueIdentifier}, nil
}
