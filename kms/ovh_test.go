package kms

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ovh/kmip-go"
	"github.com/ovh/kmip-go/kmipclient"
	"github.com/ovh/kmip-go/payloads"
	"github.com/ovh/kmip-go/ttlv"
)

// ovhVersions are those that ovh/kmip-go speaks.
var ovhVersions = []kmip.ProtocolVersion{kmip.V1_0, kmip.V1_1, kmip.V1_2, kmip.V1_3, kmip.V1_4}

// ovhUsage is the usage mask of the keys below.
const ovhUsage = kmip.CryptographicUsageEncrypt | kmip.CryptographicUsageDecrypt

// ovhPeer is a client of ovh/kmip-go that has agreed with the server on a
// version.
type ovhPeer struct {
	*kmipclient.Client
	t *testing.T
}

// TestOVHClient runs every operation that the client of ovh/kmip-go has, in
// every version that it speaks.
func TestOVHClient(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	address, _ := serve(t, h)
	for _, v := range ovhVersions {
		for name, run := range map[string]func(ovhPeer){
			"query": ovhPeer.query, "create": ovhPeer.create, "register": ovhPeer.register,
			"attributes": ovhPeer.attributes, "locate": ovhPeer.locate, "life": ovhPeer.life,
			"rekey": ovhPeer.rekey, "archive": ovhPeer.archive, "batch": ovhPeer.batch,
			"not offered": ovhPeer.notOffered,
		} {
			t.Run(v.String()+"/"+name, func(t *testing.T) {
				c, err := kmipclient.DialContext(t.Context(), address,
					kmipclient.WithTlsConfig(clientTLS(t, h)), kmipclient.WithKmipVersions(v))
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				if c.Version() != v {
					t.Fatalf("agreed on %v", c.Version())
				}
				run(ovhPeer{c, t})
			})
		}
	}
}

// executor is an operation that is ready to be sent.
type executor[R any] interface{ Exec() (R, error) }

// done does an operation that must succeed.
func done[R any](p ovhPeer, e executor[R]) R {
	p.t.Helper()
	r, err := e.Exec()
	if err != nil {
		p.t.Fatal(err)
	}
	return r
}

// denied does an operation that must fail for a reason.
func denied[R any](p ovhPeer, reason string, e executor[R]) {
	p.t.Helper()
	if _, err := e.Exec(); err == nil || !strings.Contains(err.Error(), `reason="`+reason+`"`) {
		p.t.Errorf("error is %v, want reason %s", err, reason)
	}
}

// name is one that no other test uses.
func (p ovhPeer) name(suffix string) string { return p.t.Name() + " " + suffix }

func (p ovhPeer) key(name string) string {
	p.t.Helper()
	return done(p, p.Create().AES(256, ovhUsage).WithName(p.name(name))).UniqueIdentifier
}

func (p ovhPeer) query() {
	r := done(p, p.Query().All())
	for _, op := range []kmip.Operation{
		kmip.OperationCreate, kmip.OperationRegister, kmip.OperationReKey, kmip.OperationLocate,
		kmip.OperationCheck, kmip.OperationGet, kmip.OperationGetAttributes, kmip.OperationGetAttributeList,
		kmip.OperationAddAttribute, kmip.OperationModifyAttribute, kmip.OperationDeleteAttribute,
		kmip.OperationObtainLease, kmip.OperationActivate, kmip.OperationRevoke, kmip.OperationDestroy,
		kmip.OperationArchive, kmip.OperationRecover, kmip.OperationQuery,
	} {
		if !slices.Contains(r.Operations, op) {
			p.t.Errorf("operation %v is not offered", op)
		}
	}
	if p.Version() == kmip.V1_0 && slices.Contains(r.Operations, kmip.OperationDiscoverVersions) {
		p.t.Error("Discover Versions is offered, which 1.0 does not define")
	}
	for _, o := range []kmip.ObjectType{kmip.ObjectTypeSymmetricKey, kmip.ObjectTypeSecretData, kmip.ObjectTypeOpaqueObject} {
		if !slices.Contains(r.ObjectType, o) {
			p.t.Errorf("object type %v is not offered", o)
		}
	}
	if p.Version() == kmip.V1_0 {
		return
	}
	all, err := p.Request(p.t.Context(), &payloads.DiscoverVersionsRequestPayload{})
	if err != nil || len(all.(*payloads.DiscoverVersionsResponsePayload).ProtocolVersion) != len(ovhVersions) {
		p.t.Errorf("versions %+v, %v", all, err)
	}
}

func (p ovhPeer) create() {
	for _, bits := range []int{128, 192, 256} {
		id := done(p, p.Create().AES(bits, ovhUsage)).UniqueIdentifier
		r := done(p, p.Get(id).WithKeyFormat(kmip.KeyFormatTypeRaw))
		key := r.Object.(*kmip.SymmetricKey)
		if b, err := key.KeyMaterial(); err != nil || 8*len(b) != bits {
			p.t.Errorf("%d bytes for %d bits, %v", len(b), bits, err)
		}
		if key.KeyBlock.CryptographicAlgorithm != kmip.CryptographicAlgorithmAES {
			p.t.Errorf("algorithm %v", key.KeyBlock.CryptographicAlgorithm)
		}
	}
	denied(p, "InvalidField", p.Create().AES(100, ovhUsage))
	denied(p, "ItemNotFound", p.Get("no-such-object"))
}

func (p ovhPeer) register() {
	secret := make([]byte, 32)
	_, _ = rand.Read(secret)
	key := done(p, p.Register().SymmetricKey(kmip.CryptographicAlgorithmAES, ovhUsage, secret)).UniqueIdentifier
	if b, err := done(p, p.Get(key)).Object.(*kmip.SymmetricKey).KeyMaterial(); err != nil || !bytes.Equal(b, secret) {
		p.t.Errorf("another key came back, %v", err)
	}
	denied(p, "FeatureNotSupported", p.Get(key).WithKeyWrapping(kmip.KeyWrappingSpecification{
		WrappingMethod:           kmip.WrappingMethodEncrypt,
		EncryptionKeyInformation: &kmip.EncryptionKeyInformation{UniqueIdentifier: key},
	}))
	password := done(p, p.Register().SecretString(kmip.SecretDataTypePassword, "open sesame").WithName(p.name("password"))).UniqueIdentifier
	if b, err := done(p, p.Get(password)).Object.(*kmip.SecretData).Data(); err != nil || string(b) != "open sesame" {
		p.t.Errorf("secret data %q, %v", b, err)
	}
	opaque := &kmip.OpaqueObject{OpaqueDataType: 0x80000001, OpaqueDataValue: secret}
	id := done(p, p.Register().Object(opaque).WithName(p.name("opaque"))).UniqueIdentifier
	if o := done(p, p.Get(id)).Object.(*kmip.OpaqueObject); !bytes.Equal(o.OpaqueDataValue, secret) || o.OpaqueDataType != opaque.OpaqueDataType {
		p.t.Errorf("opaque object %+v", o)
	}
}

func (p ovhPeer) attributes() {
	id := p.key("attributes")
	done(p, p.AddAttribute(id, "x-Host", "alpha"))
	done(p, p.AddAttribute(id, kmip.AttributeNameContactInformation, "ops@example.com"))
	done(p, p.ModifyAttribute(id, "x-Host", "beta"))
	r := done(p, p.GetAttributes(id, "x-Host", kmip.AttributeNameContactInformation, "x-Missing"))
	got := map[kmip.AttributeName]any{}
	for _, a := range r.Attribute {
		got[a.AttributeName] = a.AttributeValue
		if v, custom := a.AttributeValue.(ttlv.Value); custom {
			got[a.AttributeName] = v.Value
		}
	}
	if len(got) != 2 || got["x-Host"] != "beta" || got[kmip.AttributeNameContactInformation] != "ops@example.com" {
		p.t.Errorf("attributes %v", got)
	}
	if names := done(p, p.GetAttributeList(id)).AttributeName; !slices.Contains(names, "x-Host") || !slices.Contains(names, kmip.AttributeNameDigest) {
		p.t.Errorf("attribute names %v", names)
	}
	done(p, p.DeleteAttribute(id, "x-Host"))
	if r := done(p, p.GetAttributes(id, "x-Host")); len(r.Attribute) != 0 {
		p.t.Errorf("attributes %v", r.Attribute)
	}
	denied(p, "ItemNotFound", p.DeleteAttribute(id, "x-Host"))
	denied(p, "PermissionDenied", p.ModifyAttribute(id, kmip.AttributeNameUniqueIdentifier, "mine"))
	if all := done(p, p.GetAttributes(id)).Attribute; len(all) < 10 {
		p.t.Errorf("%d attributes in all", len(all))
	}
}

func (p ovhPeer) locate() {
	a, b := p.key("one"), p.key("two")
	for _, id := range []string{a, b} {
		done(p, p.AddAttribute(id, "x-Rack", p.name("rack")))
	}
	done(p, p.Activate(b))
	rack := p.Locate().WithAttribute("x-Rack", p.name("rack"))
	if ids := done(p, rack).UniqueIdentifier; len(ids) != 2 {
		p.t.Errorf("rack: %v", ids)
	}
	if ids := done(p, rack.WithMaxItems(1)).UniqueIdentifier; len(ids) != 1 {
		p.t.Errorf("at most one: %v", ids)
	}
	active := p.Locate().WithAttribute("x-Rack", p.name("rack")).WithAttribute(kmip.AttributeNameState, kmip.StateActive)
	if ids := done(p, active).UniqueIdentifier; !slices.Equal(ids, []string{b}) {
		p.t.Errorf("active: %v, want %s", ids, b)
	}
	if ids := done(p, p.Locate().WithName(p.name("one"))).UniqueIdentifier; !slices.Equal(ids, []string{a}) {
		p.t.Errorf("by name: %v, want %s", ids, a)
	}
	if ids := done(p, p.Locate().WithName("nobody's")).UniqueIdentifier; len(ids) != 0 {
		p.t.Errorf("found %v", ids)
	}
}

func (p ovhPeer) life() {
	id := p.key("life")
	done(p, p.Activate(id))
	denied(p, "PermissionDenied", p.Destroy(id))
	lease := done(p, p.ObtainLease(id))
	if lease.LeaseTime <= 0 || time.Since(lease.LastChangeDate) > time.Minute {
		p.t.Errorf("lease %+v", lease)
	}
	done(p, p.Revoke(id).WithRevocationReasonCode(kmip.RevocationReasonCodeKeyCompromise).
		WithRevocationMessage("lost").WithCompromiseOccurrenceDate(time.Now().Add(-time.Hour)))
	r := done(p, p.GetAttributes(id, kmip.AttributeNameState, kmip.AttributeNameRevocationReason))
	if len(r.Attribute) != 2 || r.Attribute[0].AttributeValue != kmip.StateCompromised {
		p.t.Errorf("attributes %+v", r.Attribute)
	}
	done(p, p.Destroy(id))
	if _, err := p.Get(id).Exec(); err == nil {
		p.t.Error("a destroyed key came back")
	}
}

func (p ovhPeer) rekey() {
	old := p.key("rekeyed")
	done(p, p.Activate(old))
	id := done(p, p.Rekey(old).WithOffset(0)).UniqueIdentifier
	if id == old {
		p.t.Fatal("the same key came back")
	}
	if ids := done(p, p.Locate().WithName(p.name("rekeyed"))).UniqueIdentifier; !slices.Equal(ids, []string{id}) {
		p.t.Errorf("the name leads to %v, want %s", ids, id)
	}
	r := done(p, p.GetAttributes(id, kmip.AttributeNameLink))
	if len(r.Attribute) != 1 || r.Attribute[0].AttributeValue != (kmip.Link{LinkType: kmip.LinkTypeReplacedObjectLink, LinkedObjectIdentifier: old}) {
		p.t.Errorf("links %+v", r.Attribute)
	}
}

func (p ovhPeer) archive() {
	id := p.key("archived")
	done(p, p.Archive(id))
	if _, err := p.Get(id).Exec(); err == nil {
		p.t.Error("an archived key came back")
	}
	archived := p.Locate().WithStorageStatusMask(kmip.StorageStatusArchivalStorage).WithName(p.name("archived"))
	if ids := done(p, archived).UniqueIdentifier; !slices.Equal(ids, []string{id}) {
		p.t.Errorf("archived: %v, want %s", ids, id)
	}
	if ids := done(p, p.Locate().WithName(p.name("archived"))).UniqueIdentifier; len(ids) != 0 {
		p.t.Errorf("on line: %v", ids)
	}
	done(p, p.Recover(id))
	done(p, p.Get(id))
}

// batch does operations that depend on each other, and one that fails.
func (p ovhPeer) batch() {
	create, err := p.Create().AES(256, ovhUsage).WithName(p.name("batch")).Build()
	if err != nil {
		p.t.Fatal(err)
	}
	r, err := p.BatchOpt(p.t.Context(), []kmip.OperationPayload{
		create, &payloads.ActivateRequestPayload{}, &payloads.GetRequestPayload{UniqueIdentifier: "no-such-object"}, &payloads.GetRequestPayload{},
	}, kmipclient.OnBatchErr(kmip.BatchErrorContinuationOptionContinue))
	if err != nil {
		p.t.Fatal(err)
	}
	want := []kmip.ResultStatus{kmip.ResultStatusSuccess, kmip.ResultStatusSuccess, kmip.ResultStatusOperationFailed, kmip.ResultStatusSuccess}
	for i, item := range r {
		if item.ResultStatus != want[i] {
			p.t.Errorf("item %d: %v", i, item.Err())
		}
	}
}

// notOffered asks for what is valid KMIP but no business of this server.
func (p ovhPeer) notOffered() {
	id := p.key("key")
	done(p, p.Activate(id))
	const not = "OperationNotSupported"
	denied(p, not, p.Client.CreateKeyPair().RSA(2048, kmip.CryptographicUsageSign, kmip.CryptographicUsageVerify))
	denied(p, not, p.Client.RekeyKeyPair(id))
	denied(p, not, p.Client.GetUsageAllocation(id, 1))
	denied(p, not, p.Client.Encrypt(id).Data([]byte("text")))
	denied(p, not, p.Client.Decrypt(id).Data([]byte("text")))
	denied(p, not, p.Client.Sign(id).Data([]byte("text")))
	denied(p, not, p.Client.SignatureVerify(id).Data([]byte("text")).Signature([]byte("signature")))
	denied(p, not, p.Client.Import(id, &kmip.OpaqueObject{OpaqueDataValue: []byte("data")}))
	denied(p, not, p.Client.Export(id))
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		p.t.Fatal(err)
	}
	if _, err := p.Client.Register().RsaPrivateKey(key, kmip.CryptographicUsageSign).Exec(); err == nil {
		p.t.Error("a private key was accepted")
	}
	if _, err := p.Client.Register().Certificate(kmip.CertificateTypeX_509, []byte("certificate")).Exec(); err == nil {
		p.t.Error("a certificate was accepted")
	}
}
