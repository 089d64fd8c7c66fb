package kek

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/gemalto/kmip-go/kmip14"
	"github.com/gemalto/kmip-go/ttlv"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
	"github.com/vmcrypt/vmcrypt/internal/pykmip"
)

func TestCreateAndGet(t *testing.T) {
	f := &fake{}
	c := startFake(t, f)
	for name, call := range map[string]func() (*Key, error){
		"Create": func() (*Key, error) { return c.Create(t.Context()) },
		"Get":    func() (*Key, error) { return c.Get(t.Context(), "7") },
	} {
		key, err := call()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if key.ID != "7" || key.State != Active || !bytes.Equal(key.Material.Bytes(), theKey) {
			t.Errorf("%s: got %+v", name, key)
		}
		if err := key.Usable(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		key.Destroy()
		key.Destroy()
	}
	(*Key)(nil).Destroy()
}

func TestCreateAsksForAUniqueAES256Key(t *testing.T) {
	attrs := newKeyAttributes(newName())
	want := []any{
		kmip14.CryptographicAlgorithmAES, int32(256),
		kmip14.CryptographicUsageMaskEncrypt | kmip14.CryptographicUsageMaskDecrypt,
	}
	for i, w := range want {
		if attrs[i].AttributeValue != w {
			t.Errorf("%s is %v, want %v", attrs[i].AttributeName, attrs[i].AttributeValue, w)
		}
	}
	name, other := attrs[3].AttributeValue.(kmipwire.Name), newKeyAttributes(newName())[3].AttributeValue.(kmipwire.Name)
	if name == other || !strings.HasPrefix(name.NameValue, "vmcrypt-kek-") {
		t.Errorf("names %q and %q", name.NameValue, other.NameValue)
	}
}

func TestNegotiation(t *testing.T) {
	v := func(major, minor int) kmipwire.ProtocolVersion {
		return kmipwire.ProtocolVersion{ProtocolVersionMajor: major, ProtocolVersionMinor: minor}
	}
	for name, test := range map[string]struct {
		server *fake
		want   string
	}{
		"all":              {&fake{}, "1.4"},
		"newer ones too":   {&fake{versions: []kmipwire.ProtocolVersion{v(3, 0), v(2, 1), v(1, 2), v(1, 3)}}, "1.3"},
		"old ones only":    {&fake{versions: []kmipwire.ProtocolVersion{v(1, 0), v(1, 1)}}, "1.1"},
		"not supported":    {&fake{edit: fail(kmip14.OperationDiscoverVersions, kmip14.ResultReasonOperationNotSupported, "")}, "1.0"},
		"1.1 not accepted": {&fake{edit: fail(kmip14.OperationDiscoverVersions, kmip14.ResultReasonInvalidMessage, "")}, "1.0"},
	} {
		t.Run(name, func(t *testing.T) {
			f := test.server
			c := startFake(t, f)
			if s := c.Status(t.Context())[0]; s.State != StateOK || s.Version != test.want || s.Latency <= 0 {
				t.Errorf("status %+v, want %s", s, test.want)
			}
			key, err := c.Get(t.Context(), "7")
			if err != nil {
				t.Fatal(err)
			}
			key.Destroy()
			want := []string{"1.1 DiscoverVersions", test.want + " Query", "1.1 DiscoverVersions", test.want + " Get", test.want + " GetAttributes"}
			if got := f.requests(); !slices.Equal(got, want) {
				t.Errorf("requests %q, want %q", got, want)
			}
		})
	}
}

// item edits the one result for op.
func item(op kmip14.Operation, edit func(*kmipwire.ResponseBatchItem)) func(kmip14.Operation, *kmipwire.ResponseMessage) {
	return func(o kmip14.Operation, resp *kmipwire.ResponseMessage) {
		if o == op {
			edit(&resp.BatchItem[0])
		}
	}
}

// given edits what the server gives for Get.
func given(edit func(*kmipwire.GetResponse)) func(kmip14.Operation, *kmipwire.ResponseMessage) {
	return item(kmip14.OperationGet, func(i *kmipwire.ResponseBatchItem) { edit(i.ResponsePayload.(*kmipwire.GetResponse)) })
}

// state has the server tell another state of the key.
func state(value any) func(kmip14.Operation, *kmipwire.ResponseMessage) {
	return item(kmip14.OperationGetAttributes, func(i *kmipwire.ResponseBatchItem) {
		i.ResponsePayload.(*kmipwire.GetAttributesResponse).Attribute[0].AttributeValue = value
	})
}

// unfit is every way in which an answer may not be what was asked for.
var unfit = map[string]struct {
	edit func(kmip14.Operation, *kmipwire.ResponseMessage)
	want error
}{
	"no result": {func(_ kmip14.Operation, r *kmipwire.ResponseMessage) { r.BatchItem = nil }, ErrUnavailable},
	"two results": {func(_ kmip14.Operation, r *kmipwire.ResponseMessage) {
		r.BatchItem = append(r.BatchItem, r.BatchItem[0])
	}, ErrUnavailable},
	"wrong count": {func(_ kmip14.Operation, r *kmipwire.ResponseMessage) { r.ResponseHeader.BatchCount = 2 }, ErrUnavailable},
	"no version": {func(_ kmip14.Operation, r *kmipwire.ResponseMessage) {
		r.ResponseHeader.ProtocolVersion.ProtocolVersionMajor = 0
	}, ErrUnavailable},
	"other operation": {item(kmip14.OperationGet, func(i *kmipwire.ResponseBatchItem) {
		i.Operation = kmip14.OperationActivate
	}), ErrUnavailable},
	"pending": {item(kmip14.OperationGet, func(i *kmipwire.ResponseBatchItem) {
		i.ResultStatus = kmip14.ResultStatusOperationPending
	}), ErrUnavailable},
	"status 99": {item(kmip14.OperationGet, func(i *kmipwire.ResponseBatchItem) { i.ResultStatus = 99 }), ErrUnavailable},
	"no payload": {item(kmip14.OperationGet, func(i *kmipwire.ResponseBatchItem) {
		i.ResponsePayload = nil
	}), ErrUnavailable},
	"text as payload": {item(kmip14.OperationGet, func(i *kmipwire.ResponseBatchItem) {
		i.ResponsePayload = ttlv.Value{Tag: kmip14.TagResponsePayload, Value: string(theKey)}
	}), ErrUnavailable},
	"key material as text": {item(kmip14.OperationGet, func(i *kmipwire.ResponseBatchItem) {
		i.ResponsePayload = ttlv.NewStruct(kmip14.TagResponsePayload,
			ttlv.NewStruct(kmip14.TagSymmetricKey, ttlv.NewStruct(kmip14.TagKeyBlock, ttlv.NewStruct(kmip14.TagKeyValue,
				ttlv.NewValue(kmip14.TagKeyMaterial, string(theKey))))))
	}), ErrUnavailable},
	"key value as bytes": {item(kmip14.OperationGet, func(i *kmipwire.ResponseBatchItem) {
		i.ResponsePayload = ttlv.NewStruct(kmip14.TagResponsePayload,
			ttlv.NewStruct(kmip14.TagSymmetricKey, ttlv.NewStruct(kmip14.TagKeyBlock,
				ttlv.NewValue(kmip14.TagKeyValue, theKey))))
	}), ErrUnavailable},
	"other key":   {given(func(g *kmipwire.GetResponse) { g.UniqueIdentifier = "8" }), ErrUnavailable},
	"nameless":    {given(func(g *kmipwire.GetResponse) { g.UniqueIdentifier = "" }), ErrUnavailable},
	"certificate": {given(func(g *kmipwire.GetResponse) { g.ObjectType = kmip14.ObjectTypeCertificate }), ErrUnsuitable},
	"no key":      {given(func(g *kmipwire.GetResponse) { g.SymmetricKey = nil }), ErrUnsuitable},
	"128 bits": {given(func(g *kmipwire.GetResponse) {
		g.SymmetricKey.KeyBlock.CryptographicLength = 128
		g.SymmetricKey.KeyBlock.KeyValue.KeyMaterial = theKey[:16]
	}), ErrUnsuitable},
	"256 bits in 16 bytes": {given(func(g *kmipwire.GetResponse) {
		g.SymmetricKey.KeyBlock.KeyValue.KeyMaterial = theKey[:16]
	}), ErrUnsuitable},
	"33 bytes": {given(func(g *kmipwire.GetResponse) {
		g.SymmetricKey.KeyBlock.KeyValue.KeyMaterial = append(slices.Clone(theKey), 'K')
	}), ErrUnsuitable},
	"no bytes": {given(func(g *kmipwire.GetResponse) { g.SymmetricKey.KeyBlock.KeyValue.KeyMaterial = nil }), ErrUnsuitable},
	"3DES": {given(func(g *kmipwire.GetResponse) {
		g.SymmetricKey.KeyBlock.CryptographicAlgorithm = kmip14.CryptographicAlgorithmDES3
	}), ErrUnsuitable},
	"opaque format": {given(func(g *kmipwire.GetResponse) {
		g.SymmetricKey.KeyBlock.KeyFormatType = kmip14.KeyFormatTypeOpaque
	}), ErrUnsuitable},
	"wrapped": {given(func(g *kmipwire.GetResponse) {
		g.SymmetricKey.KeyBlock.KeyWrappingData, _ = ttlv.Marshal(ttlv.NewStruct(kmip14.TagKeyWrappingData))
	}), ErrUnsuitable},
	"no state": {item(kmip14.OperationGetAttributes, func(i *kmipwire.ResponseBatchItem) {
		i.ResponsePayload.(*kmipwire.GetAttributesResponse).Attribute = nil
	}), ErrUnavailable},
	"state of another key": {item(kmip14.OperationGetAttributes, func(i *kmipwire.ResponseBatchItem) {
		i.ResponsePayload.(*kmipwire.GetAttributesResponse).UniqueIdentifier = "8"
	}), ErrUnavailable},
	"state as text":          {state("Active"), ErrUnavailable},
	"unknown state":          {state(kmip14.State(77)), ErrUnavailable},
	"destroyed":              {state(kmip14.StateDestroyed), ErrDestroyed},
	"destroyed, compromised": {state(kmip14.StateDestroyedCompromised), ErrDestroyed},
}

func TestGetRefusesUnfitAnswers(t *testing.T) {
	for name, test := range unfit {
		t.Run(name, func(t *testing.T) {
			c := startFake(t, &fake{edit: test.edit})
			key, err := c.Get(t.Context(), "7")
			if key != nil {
				t.Error("a key comes with the error")
			}
			expect(t, err, test.want)
			checkText(t, err)
		})
	}
}

func TestCreateRefusesUnfitAnswers(t *testing.T) {
	id := func(id string) func(kmip14.Operation, *kmipwire.ResponseMessage) {
		return item(kmip14.OperationCreate, func(i *kmipwire.ResponseBatchItem) {
			i.ResponsePayload.(*kmipwire.CreateResponse).UniqueIdentifier = id
		})
	}
	for name, test := range map[string]struct {
		edit func(kmip14.Operation, *kmipwire.ResponseMessage)
		want error
	}{
		"no ID":            {id(""), ErrUnavailable},
		"ID with a line":   {id("7\n8"), ErrUnavailable},
		"ID too long":      {id(strings.Repeat("7", maxIDLen+1)), ErrUnavailable},
		"another ID":       {id("8"), ErrUnavailable}, // the fake then activates 7
		"not activated":    {state(kmip14.StatePreActive), ErrInactive},
		"compromised":      {state(kmip14.StateCompromised), ErrInactive},
		"create denied":    {fail(kmip14.OperationCreate, kmip14.ResultReasonPermissionDenied, "no"), ErrDenied},
		"activate denied":  {fail(kmip14.OperationActivate, kmip14.ResultReasonPermissionDenied, "no"), ErrDenied},
		"something failed": {fail(kmip14.OperationCreate, kmip14.ResultReasonGeneralFailure, "disk full"), nil},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := startFake(t, &fake{edit: test.edit, forgets: true}).Create(t.Context())
			expect(t, err, test.want)
			checkText(t, err)
		})
	}
}

// checkText checks what every error of this package promises.
func checkText(t *testing.T, err error) {
	t.Helper()
	text := fmt.Sprintf("%v %+v %#v", err, err, err)
	if strings.Contains(text, "KEYBYTES") || strings.Contains(strings.ToLower(text), hex.EncodeToString(theKey[:8])) {
		t.Errorf("the error holds key bytes: %s", text)
	}
	if text := err.Error(); !strings.Contains(text, `alias "test"`) || !strings.Contains(text, "127.0.0.1:") {
		t.Errorf("the error does not name alias and key manager: %s", text)
	}
	if strings.ContainsAny(err.Error(), "\n\x1b") {
		t.Errorf("the error has control characters: %q", err)
	}
}

func TestRefusals(t *testing.T) {
	for reason, want := range map[kmip14.ResultReason]error{
		kmip14.ResultReasonItemNotFound:                ErrNotFound,
		kmip14.ResultReasonPermissionDenied:            ErrDenied,
		kmip14.ResultReasonAuthenticationNotSuccessful: ErrDenied,
		resultReasonObjectDestroyed:                    ErrDestroyed,
		kmip14.ResultReasonGeneralFailure:              nil,
		kmip14.ResultReasonKeyFormatTypeNotSupported:   nil,
		kmip14.ResultReason(0xFFFF):                    nil,
	} {
		t.Run(reason.String(), func(t *testing.T) {
			c := startFake(t, &fake{edit: fail(kmip14.OperationGet, reason, "says\n\x1b[31mwho")})
			_, err := c.Get(t.Context(), "7")
			expect(t, err, want)
			checkText(t, err)
			if !strings.Contains(err.Error(), "who") {
				t.Errorf("the server's message is missing: %v", err)
			}
		})
	}
}

// TestDestroyedKeyIsToldByItsState: servers differ in how they refuse to give a
// destroyed key.
func TestDestroyedKeyIsToldByItsState(t *testing.T) {
	refuse := fail(kmip14.OperationGet, kmip14.ResultReasonIllegalOperation, "gone")
	tell := state(kmip14.StateDestroyed)
	c := startFake(t, &fake{edit: func(op kmip14.Operation, r *kmipwire.ResponseMessage) {
		refuse(op, r)
		tell(op, r)
	}})
	_, err := c.Get(t.Context(), "7")
	expect(t, err, ErrDestroyed)
}

func TestInactiveKeysAreFetchedButNotUsable(t *testing.T) {
	for value, want := range map[kmip14.State]State{
		kmip14.StatePreActive: PreActive, kmip14.StateDeactivated: Deactivated, kmip14.StateCompromised: Compromised,
	} {
		key, err := startFake(t, &fake{edit: state(value)}).Get(t.Context(), "7")
		if err != nil {
			t.Fatal(err)
		}
		if key.State != want {
			t.Errorf("state %s, want %s", key.State, want)
		}
		expect(t, key.Usable(), ErrInactive)
		key.Destroy()
	}
}

func TestWhatIsNoKeyManager(t *testing.T) {
	pki := pykmip.NewPKI(t)
	say := func(text string) func(net.Conn) {
		return func(conn net.Conn) {
			_, _ = conn.Write([]byte(text))
			silence(conn)
		}
	}
	for name, test := range map[string]struct {
		handle func(net.Conn)
		want   ServerState
	}{
		"closes":       {func(net.Conn) {}, StateUnreachable},
		"silent":       {silence, StateUnreachable},
		"drips":        {drip, StateNotKMIP},
		"HTTP":         {say("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"), StateNotKMIP},
		"SSH":          {say("SSH-2.0-OpenSSH_9.2p1\r\n"), StateNotKMIP},
		"TLS alert":    {say("\x15\x03\x03\x00\x02\x02\x28"), StateUnreachable}, // handshake_failure
		"half a hello": {say("\x16\x03\x03\x00\x7a\x02"), StateUnreachable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			checkUnavailable(t, quick(open(t, pki, listen(t, test.handle))), test.want)
		})
	}
	t.Run("nothing", func(t *testing.T) {
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		address := l.Addr().String()
		l.Close()
		checkUnavailable(t, open(t, pki, address), StateUnreachable)
	})
}

func TestWhatSpeaksTLSOnly(t *testing.T) {
	discover := func(out []byte) func(kmip14.Operation, []byte) []byte {
		return func(kmip14.Operation, []byte) []byte { return out }
	}
	for name, test := range map[string]struct {
		server *fake
		want   ServerState
	}{
		"HTTPS":       {&fake{raw: discover([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))}, StateNotKMIP},
		"garbage":     {&fake{raw: discover(bytes.Repeat([]byte{0x42}, 64))}, StateNotKMIP},
		"4 GiB":       {&fake{raw: discover([]byte("\x42\x00\x7b\x01\xff\xff\xff\xff"))}, StateNotKMIP},
		"closes":      {&fake{raw: discover(nil)}, StateUnreachable},
		"cut short":   {&fake{raw: func(_ kmip14.Operation, b []byte) []byte { return b[:len(b)-8] }}, StateUnreachable},
		"an echo":     {&fake{raw: discover([]byte("\x42\x00\x78\x01\x00\x00\x00\x00"))}, StateNotKMIP},
		"KMIP 2 only": {&fake{versions: []kmipwire.ProtocolVersion{{ProtocolVersionMajor: 2}}}, StateNotKMIP},
		"TLS 1.1": {&fake{tls: func(c *tls.Config) {
			c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
		}}, StateUnreachable},
		"CBC suites": {&fake{tls: func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}
		}}, StateUnreachable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			checkUnavailable(t, quick(startFake(t, test.server)), test.want)
		})
	}
}

// checkUnavailable checks what a cluster with one server that is no key manager
// says, and that it says it soon.
func checkUnavailable(t *testing.T, c *Cluster, want ServerState) {
	t.Helper()
	start := time.Now()
	_, err := c.Get(t.Context(), "7")
	expect(t, err, ErrUnavailable)
	checkText(t, err)
	if !strings.Contains(err.Error(), ": check that ") {
		t.Errorf("the error does not say what to do: %v", err)
	}
	s := c.Status(t.Context())[0]
	if s.State != want || s.Version != "" || !errors.Is(s.Err, ErrUnavailable) {
		t.Errorf("status %+v, want %s", s, want)
	}
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestServerMustProveWhoItIs(t *testing.T) {
	f := &fake{}
	startFake(t, f)
	t.Run("other authority", func(t *testing.T) {
		pki := f.pki
		pki.CA = pykmip.NewPKI(t).CA
		checkUnavailable(t, open(t, pki, f.address), StateUntrusted)
	})
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		return tcp(defaultConnectTimeout)(ctx, f.address)
	}
	for address, want := range map[string]error{
		"localhost:5696":       nil,
		"127.0.0.1:1":          nil,
		"kms.example.com:5696": ErrUnavailable,
		"127.0.0.2:5696":       ErrUnavailable,
	} {
		c := open(t, f.pki, address)
		c.dial = dial
		key, err := c.Get(t.Context(), "7")
		if !errors.Is(err, want) {
			t.Errorf("the server as %s: %v, want %v", address, err, want)
		}
		key.Destroy()
	}
}

func TestServerRefusesTheClient(t *testing.T) {
	for version, name := range map[uint16]string{tls.VersionTLS12: "TLS 1.2", tls.VersionTLS13: "TLS 1.3"} {
		t.Run(name, func(t *testing.T) {
			f := &fake{tls: func(c *tls.Config) { c.MaxVersion = version }}
			startFake(t, f)
			stranger := pykmip.NewPKI(t)
			stranger.CA = f.pki.CA
			c := open(t, stranger, f.address)
			_, err := c.Create(t.Context())
			expect(t, err, ErrDenied)
			checkText(t, err)
			if s := c.Status(t.Context())[0]; s.State != StateDenied || !errors.Is(s.Err, ErrDenied) {
				t.Errorf("status %+v", s)
			}
			c.trust.read.client.Leaf.NotAfter = time.Now().Add(-time.Hour)
			if _, err := c.Create(t.Context()); !strings.Contains(err.Error(), "expired on") {
				t.Errorf("an expired certificate: %v", err)
			}
		})
	}
	t.Run("in KMIP", func(t *testing.T) {
		c := startFake(t, &fake{edit: fail(kmip14.OperationDiscoverVersions, kmip14.ResultReasonAuthenticationNotSuccessful, "who?")})
		_, err := c.Get(t.Context(), "7")
		expect(t, err, ErrDenied)
		if s := c.Status(t.Context())[0]; s.State != StateDenied {
			t.Errorf("status %+v", s)
		}
	})
}

func TestStatusIsInOrder(t *testing.T) {
	f := &fake{}
	startFake(t, f)
	down := func() string { return listen(t, func(net.Conn) {}) }
	got := open(t, f.pki, down(), f.address, down()).Status(t.Context())
	for i, want := range []ServerState{StateUnreachable, StateOK, StateUnreachable} {
		if got[i].State != want {
			t.Errorf("server %d: %+v, want %s", i, got[i], want)
		}
	}
}

func TestCallsObeyContext(t *testing.T) {
	pki := pykmip.NewPKI(t)
	c := open(t, pki, listen(t, silence)) // with its long timeouts
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	start := time.Now()
	_, err := c.Get(ctx, "7")
	expect(t, err, nil)
	if took := time.Since(start); took > 5*time.Second || !errors.Is(err, context.Canceled) {
		t.Errorf("after %v: %v, want context.Canceled", took, err)
	}
	c = startFake(t, &fake{})
	_, getErr := c.Get(ctx, "7")
	_, createErr := c.Create(ctx)
	for _, err := range []error{getErr, createErr, c.Revoke(ctx, "7", false)} {
		if !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnavailable) {
			t.Errorf("canceled before: %v", err)
		}
	}
}

func TestMissingAnswerEndsInTime(t *testing.T) {
	f := &fake{raw: func(op kmip14.Operation, b []byte) []byte {
		if op == kmip14.OperationGet {
			<-t.Context().Done()
		}
		return b
	}}
	c := startFake(t, f)
	c.timeouts.Idle = time.Second
	start := time.Now()
	_, err := c.Get(t.Context(), "7")
	expect(t, err, ErrUnavailable)
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("it took %v with a timeout of 1 s", took)
	}
	if !strings.Contains(err.Error(), "no answer in time") {
		t.Error(err)
	}
}

func TestGetRefusesImpossibleIDs(t *testing.T) {
	f := &fake{}
	c := startFake(t, f)
	for _, id := range []string{"", "a\nb", strings.Repeat("x", maxIDLen+1)} {
		_, err := c.Get(t.Context(), id)
		expect(t, err, ErrNotFound)
	}
	if n := len(f.requests()); n != 0 {
		t.Errorf("the server was asked %d times", n)
	}
}

func TestOpenRefuses(t *testing.T) {
	pki := pykmip.NewPKI(t)
	good := Config{Servers: []Server{{Address: "localhost:5696"}}, ClientCert: pki.ClientCert, ClientKey: pki.ClientKey, CA: pki.CA}
	missing := filepath.Join(t.TempDir(), "missing.pem")
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open("a", good, nil); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		edit func(*Config)
		want []string
	}{
		"no servers":   {func(c *Config) { c.Servers = nil }, []string{"servers"}},
		"no port":      {func(c *Config) { c.Servers = []Server{{Address: "localhost"}} }, []string{"localhost", "host:port"}},
		"empty port":   {func(c *Config) { c.Servers = []Server{{Address: "localhost:"}} }, []string{"host:port"}},
		"no host":      {func(c *Config) { c.Servers = []Server{{Address: ":5696"}} }, []string{"host:port"}},
		"a bad second": {func(c *Config) { c.Servers = append(c.Servers[:1:1], Server{}) }, []string{"host:port"}},
		"one twice": {func(c *Config) {
			c.Servers, c.MinReplicas = append(c.Servers[:1:1], Server{Address: "LOCALHOST:5696", Site: "b"}), 2
		}, []string{"LOCALHOST:5696", "twice"}},
		"too many":        {func(c *Config) { c.MinReplicas = 2 }, []string{"minReplicas: 2", "1 key managers"}},
		"no certificate":  {func(c *Config) { c.ClientCert = "" }, []string{"clientCert"}},
		"no key":          {func(c *Config) { c.ClientKey = "" }, []string{"clientKey"}},
		"no ca":           {func(c *Config) { c.CA = "" }, []string{"ca"}},
		"missing cert":    {func(c *Config) { c.ClientCert = missing }, []string{"clientCert", missing}},
		"missing key":     {func(c *Config) { c.ClientKey = missing }, []string{"clientKey", missing}},
		"missing ca":      {func(c *Config) { c.CA = missing }, []string{"ca", missing}},
		"empty ca":        {func(c *Config) { c.CA = empty }, []string{"ca", empty}},
		"key as ca":       {func(c *Config) { c.CA = pki.ClientKey }, []string{"ca", pki.ClientKey}},
		"empty key":       {func(c *Config) { c.ClientKey = empty }, []string{"clientKey", empty}},
		"another's key":   {func(c *Config) { c.ClientKey = pki.ServerKey }, []string{"clientKey", pki.ServerKey}},
		"a folder as key": {func(c *Config) { c.ClientKey = t.TempDir() }, []string{"clientKey"}},
	} {
		t.Run(name, func(t *testing.T) {
			config := good
			test.edit(&config)
			_, err := Open("a", config, nil)
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range append(test.want, `alias "a"`) {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q is not in: %v", want, err)
				}
			}
		})
	}
}

// FuzzTold: no answer to what is asked about keys and servers panics, or yields what can't
// be shown.
func FuzzTold(f *testing.F) {
	server := &fake{}
	for op, payload := range map[kmip14.Operation]any{
		kmip14.OperationGetAttributes: server.payload(kmip14.OperationGetAttributes),
		kmip14.OperationQuery:         &kmipwire.QueryResponse{VendorIdentification: "one\nvendor"},
		kmip14.OperationLocate:        &kmipwire.LocateResponse{UniqueIdentifier: []string{"7"}},
	} {
		msg, err := kmipwire.Marshal(kmipwire.ResponseMessage{
			ResponseHeader: kmipwire.ResponseHeader{ProtocolVersion: kmipwire.Versions()[0], BatchCount: 1},
			BatchItem:      []kmipwire.ResponseBatchItem{{Operation: op, ResponsePayload: payload}},
		})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(msg)
	}
	f.Fuzz(func(t *testing.T, msg []byte) {
		var told kmipwire.GetAttributesResponse
		if decode(msg, kmip14.OperationGetAttributes, &told) == nil {
			if info, err := keyInfo("7", told.Attribute); err == nil && info.State == "" {
				t.Errorf("a key without a state: %+v", info)
			}
		}
		var made queryResponse
		if decode(msg, kmip14.OperationQuery, &made) == nil && strings.ContainsFunc(made.vendor(), unicode.IsControl) {
			t.Errorf("vendor %q", made.vendor())
		}
		var found kmipwire.LocateResponse
		_ = decode(msg, kmip14.OperationLocate, &found) // must not panic
	})
}

// FuzzAnswer: no answer to Get panics, or yields something else than 32 bytes.
func FuzzAnswer(f *testing.F) {
	server := &fake{}
	for name := range unfit {
		resp := kmipwire.ResponseMessage{
			ResponseHeader: kmipwire.ResponseHeader{ProtocolVersion: kmipwire.Versions()[0], BatchCount: 1},
			BatchItem: []kmipwire.ResponseBatchItem{{
				Operation: kmip14.OperationGet, ResponsePayload: server.payload(kmip14.OperationGet),
			}},
		}
		unfit[name].edit(kmip14.OperationGet, &resp)
		msg, err := kmipwire.Marshal(resp)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(msg)
	}
	f.Fuzz(func(t *testing.T, msg []byte) {
		key, err := takeKey(bytes.Clone(msg), "7") // the fuzzer's own must stay
		if (err == nil) != (key != nil) {
			t.Fatalf("key %v, error %v", key, err)
		}
		if key == nil {
			return
		}
		defer key.Destroy()
		if key.Len() != keySize {
			t.Errorf("a key of %d bytes", key.Len())
		}
	})
}
