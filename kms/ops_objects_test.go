package kms

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math/bits"
	"slices"
	"testing"
	"time"

	"github.com/gemalto/kmip-go/kmip14"
	"github.com/gemalto/kmip-go/ttlv"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

var someKey = []byte("0123456789abcdef")

func keyBlock(format kmip14.KeyFormatType) kmipwire.KeyBlock {
	return kmipwire.KeyBlock{
		KeyFormatType:          format,
		KeyValue:               kmipwire.KeyValue{KeyMaterial: bytes.Clone(someKey), Transparent: format == kmip14.KeyFormatTypeTransparentSymmetricKey},
		CryptographicAlgorithm: kmip14.CryptographicAlgorithmAES,
		CryptographicLength:    128,
	}
}

func registerKey(b kmipwire.KeyBlock) *kmipwire.RegisterRequest {
	r := &kmipwire.RegisterRequest{ObjectType: kmip14.ObjectTypeSymmetricKey, SymmetricKey: &kmipwire.SymmetricKey{KeyBlock: b}}
	r.TemplateAttribute.Attribute = []kmipwire.Attribute{attribute1(kmipwire.AttrCryptographicUsageMask, kmip14.CryptographicUsageMaskEncrypt)}
	return r
}

func (c *client) register(p *kmipwire.RegisterRequest) string {
	c.t.Helper()
	return do[kmipwire.RegisterResponse](c, kmip14.OperationRegister, p).UniqueIdentifier
}

// TestKeyFormats: a symmetric key comes in both formats, first in its own.
func TestKeyFormats(t *testing.T) {
	t.Parallel()
	c := dial(t, newHome(t))
	formats := []kmip14.KeyFormatType{kmip14.KeyFormatTypeRaw, kmip14.KeyFormatTypeTransparentSymmetricKey}
	for _, registered := range formats {
		id := c.register(registerKey(keyBlock(registered)))
		for _, asked := range append(formats, 0) {
			b := do[kmipwire.GetResponse](c, kmip14.OperationGet, &kmipwire.GetRequest{UniqueIdentifier: id, KeyFormatType: asked}).SymmetricKey.KeyBlock
			want := asked
			if asked == 0 {
				want = registered
			}
			if b.KeyFormatType != want || !bytes.Equal(b.KeyValue.KeyMaterial, someKey) || b.CryptographicLength != 128 {
				t.Errorf("%s asked as %s: %+v", registered, asked, b)
			}
		}
		c.refused(kmip14.ResultReasonKeyFormatTypeNotSupported, kmip14.OperationGet,
			&kmipwire.GetRequest{UniqueIdentifier: id, KeyFormatType: kmip14.KeyFormatTypePKCS_8})
		c.refused(kmip14.ResultReasonKeyCompressionTypeNotSupported, kmip14.OperationGet,
			&kmipwire.GetRequest{UniqueIdentifier: id, KeyCompressionType: 1})
	}
}

func TestRegisterRefuses(t *testing.T) {
	t.Parallel()
	c := dial(t, newHome(t))
	tests := map[string]struct {
		want   kmip14.ResultReason
		change func(*kmipwire.RegisterRequest)
	}{
		"type":         {kmip14.ResultReasonInvalidField, func(r *kmipwire.RegisterRequest) { r.ObjectType = kmip14.ObjectTypeCertificate }},
		"other object": {kmip14.ResultReasonInvalidField, func(r *kmipwire.RegisterRequest) { r.ObjectType = kmip14.ObjectTypeSecretData }},
		"no opaque":    {kmip14.ResultReasonInvalidField, func(r *kmipwire.RegisterRequest) { r.ObjectType = kmip14.ObjectTypeOpaqueObject }},
		"no template":  {kmip14.ResultReasonInvalidField, func(r *kmipwire.RegisterRequest) { r.ObjectType = kmip14.ObjectTypeTemplate }},
		"no key":       {kmip14.ResultReasonInvalidField, func(r *kmipwire.RegisterRequest) { r.SymmetricKey = nil }},
		"no mask":      {kmip14.ResultReasonInvalidField, func(r *kmipwire.RegisterRequest) { r.TemplateAttribute.Attribute = nil }},
		"format":       {kmip14.ResultReasonKeyFormatTypeNotSupported, func(r *kmipwire.RegisterRequest) { r.SymmetricKey.KeyBlock.KeyFormatType = kmip14.KeyFormatTypePKCS_8 }},
		"compressed":   {kmip14.ResultReasonKeyCompressionTypeNotSupported, func(r *kmipwire.RegisterRequest) { r.SymmetricKey.KeyBlock.KeyCompressionType = 1 }},
		"empty":        {kmip14.ResultReasonInvalidField, func(r *kmipwire.RegisterRequest) { r.SymmetricKey.KeyBlock.KeyValue.KeyMaterial = []byte{} }},
		"short":        {kmip14.ResultReasonInvalidField, func(r *kmipwire.RegisterRequest) { r.SymmetricKey.KeyBlock.KeyValue.KeyMaterial = []byte{1} }},
		"no length":    {kmip14.ResultReasonInvalidField, func(r *kmipwire.RegisterRequest) { r.SymmetricKey.KeyBlock.CryptographicLength = 0 }},
		"contradiction": {kmip14.ResultReasonInvalidField, func(r *kmipwire.RegisterRequest) {
			r.TemplateAttribute.Attribute = append(r.TemplateAttribute.Attribute, attribute1(kmipwire.AttrCryptographicLength, 256))
		}},
		"wrapped": {kmip14.ResultReasonFeatureNotSupported, func(r *kmipwire.RegisterRequest) {
			r.SymmetricKey.KeyBlock.KeyWrappingData = ttlv.TTLV{0x42, 0x00, 0x46, 1, 0, 0, 0, 0}
		}},
	}
	for what, test := range tests {
		t.Run(what, func(t *testing.T) {
			req := registerKey(keyBlock(kmip14.KeyFormatTypeRaw))
			test.change(req)
			(&client{t: t, conn: c.conn, version: newest}).refused(test.want, kmip14.OperationRegister, req)
		})
	}
	if got := c.locate(); len(got) != 0 {
		t.Errorf("what was refused left objects: %v", got)
	}
}

// TestSecretsAndOpaqueObjects come back as they were.
func TestSecretsAndOpaqueObjects(t *testing.T) {
	t.Parallel()
	c := dial(t, newHome(t))
	block := kmipwire.KeyBlock{KeyFormatType: kmip14.KeyFormatTypeOpaque, KeyValue: kmipwire.KeyValue{KeyMaterial: []byte("hush")}}
	secret := c.register(&kmipwire.RegisterRequest{ObjectType: kmip14.ObjectTypeSecretData,
		SecretData: &kmipwire.SecretData{SecretDataType: kmip14.SecretDataTypePassword, KeyBlock: block}})
	got := do[kmipwire.GetResponse](c, kmip14.OperationGet, &kmipwire.GetRequest{UniqueIdentifier: secret})
	if s := got.SecretData; s == nil || s.SecretDataType != kmip14.SecretDataTypePassword ||
		s.KeyBlock.KeyFormatType != kmip14.KeyFormatTypeOpaque || string(s.KeyBlock.KeyValue.KeyMaterial) != "hush" {
		t.Errorf("secret data: %+v", got)
	}
	const vendors = 0x80000001
	opaque := c.register(&kmipwire.RegisterRequest{ObjectType: kmip14.ObjectTypeOpaqueObject,
		OpaqueObject: &kmipwire.OpaqueObject{OpaqueDataType: vendors, OpaqueDataValue: []byte("blob")}})
	got = do[kmipwire.GetResponse](c, kmip14.OperationGet, &kmipwire.GetRequest{UniqueIdentifier: opaque})
	if o := got.OpaqueObject; o == nil || o.OpaqueDataType != vendors || string(o.OpaqueDataValue) != "blob" {
		t.Errorf("opaque object: %+v", got)
	}
	c.refused(kmip14.ResultReasonIllegalOperation, kmip14.OperationActivate, &kmipwire.ActivateRequest{UniqueIdentifier: opaque})
	c.refused(kmip14.ResultReasonIllegalOperation, kmip14.OperationRevoke, revokeRequest(opaque, kmip14.RevocationReasonCodeSuperseded))
	c.refused(kmip14.ResultReasonIllegalOperation, kmip14.OperationReKey, &kmipwire.ReKeyRequest{UniqueIdentifier: secret})
	for _, id := range []string{secret, opaque} {
		do[kmipwire.DestroyResponse](c, kmip14.OperationDestroy, &kmipwire.DestroyRequest{UniqueIdentifier: id})
		c.refused(kmip14.ResultReasonPermissionDenied, kmip14.OperationDestroy, &kmipwire.DestroyRequest{UniqueIdentifier: id})
		c.refused(kmip14.ResultReasonItemNotFound, kmip14.OperationGet, &kmipwire.GetRequest{UniqueIdentifier: id})
	}
}

// registerValue registers a key with a Key Value that can be anything.
func registerValue(value any) any {
	type keyBlock struct {
		KeyFormatType          kmip14.KeyFormatType
		KeyValue               any
		CryptographicAlgorithm kmip14.CryptographicAlgorithm
		CryptographicLength    int
	}
	type symmetricKey struct{ KeyBlock keyBlock }
	return &struct {
		TTLVTag           struct{} `ttlv:"RequestPayload"`
		ObjectType        kmip14.ObjectType
		TemplateAttribute kmipwire.TemplateAttribute
		SymmetricKey      symmetricKey
	}{
		ObjectType: kmip14.ObjectTypeSymmetricKey, TemplateAttribute: registerKey(kmipwire.KeyBlock{}).TemplateAttribute,
		SymmetricKey: symmetricKey{keyBlock{kmip14.KeyFormatTypeRaw, value, kmip14.CryptographicAlgorithmAES, 128}},
	}
}

// TestKeyElsewhere registers a key without its bytes.
func TestKeyElsewhere(t *testing.T) {
	t.Parallel()
	c := dial(t, newHome(t))
	b := keyBlock(kmip14.KeyFormatTypeRaw)
	b.KeyValue = kmipwire.KeyValue{}
	r := registerKey(b)
	r.TemplateAttribute.Attribute = append(r.TemplateAttribute.Attribute, attribute1(kmipwire.AttrKeyValueLocation,
		kmipwire.KeyValueLocation{KeyValueLocationValue: "pkcs11:object=k", KeyValueLocationType: kmip14.KeyValueLocationTypeURI}))
	id := c.register(r)
	for _, format := range []kmip14.KeyFormatType{kmip14.KeyFormatTypeRaw, kmip14.KeyFormatTypeTransparentSymmetricKey} {
		got := do[kmipwire.GetResponse](c, kmip14.OperationGet, &kmipwire.GetRequest{UniqueIdentifier: id, KeyFormatType: format})
		if b := got.SymmetricKey.KeyBlock; b.KeyValue.KeyMaterial != nil || b.CryptographicLength != 128 {
			t.Errorf("got %+v", b)
		}
	}
	if has := c.attributes(id); has[kmipwire.AttrKeyValuePresent] != false || has[kmipwire.AttrKeyValueLocation] == nil || has[kmipwire.AttrDigest] != nil {
		t.Errorf("attributes %v", has)
	}
	c.refused(kmip14.ResultReasonKeyValueNotPresent, kmip14.OperationReKey, &kmipwire.ReKeyRequest{UniqueIdentifier: id})
	c.refused(kmip14.ResultReasonPermissionDenied, kmip14.OperationModifyAttribute,
		&kmipwire.ModifyAttributeRequest{UniqueIdentifier: id, Attribute: attribute1(kmipwire.AttrKeyValuePresent, true)})
	do[kmipwire.DestroyResponse](c, kmip14.OperationDestroy, &kmipwire.DestroyRequest{UniqueIdentifier: id})
	for _, value := range []any{[]byte{}, struct{ KeyMaterial []byte }{[]byte{}}, struct{ Attribute []kmipwire.Attribute }{}} {
		c.refused(kmip14.ResultReasonInvalidField, kmip14.OperationRegister, registerValue(value))
	}
	c.version.ProtocolVersionMinor = 1
	c.refused(kmip14.ResultReasonInvalidField, kmip14.OperationRegister, registerKey(b))
}

func TestDigest(t *testing.T) {
	t.Parallel()
	c := dial(t, newHome(t))
	id := c.makeKey()
	sum := sha256.Sum256([]byte(c.get(id)))
	check := func() {
		t.Helper()
		var d kmipwire.Digest
		err := kmipwire.UnmarshalPayload(c.attributes(id)[kmipwire.AttrDigest], &d)
		if err != nil || !bytes.Equal(d.DigestValue, sum[:]) || d.HashingAlgorithm != kmip14.HashingAlgorithmSHA_256 || d.KeyFormatType != kmip14.KeyFormatTypeRaw {
			t.Errorf("%+v, %v", d, err)
		}
	}
	check()
	do[kmipwire.DestroyResponse](c, kmip14.OperationDestroy, &kmipwire.DestroyRequest{UniqueIdentifier: id})
	check()
}

func TestKeysOfAlgorithms(t *testing.T) {
	for algorithm, lengths := range algorithms {
		for _, n := range lengths {
			o := &object{}
			o.Algorithm, o.Length, o.UsageMask = uint32(algorithm), n, 4
			if err := o.generate(); err != nil {
				t.Fatal(err)
			}
			want := int(n) / 8
			if algorithm == kmip14.CryptographicAlgorithmDES3 {
				want = int(n) / 56 * 8
			}
			if len(o.material) != want {
				t.Errorf("%s %d: %d bytes", algorithm, n, len(o.material))
			}
			for _, b := range o.material {
				if algorithm == kmip14.CryptographicAlgorithmDES3 && bits.OnesCount8(b)%2 != 1 {
					t.Fatalf("%#x has even parity", b)
				}
			}
		}
	}
}

// TestFresh: a key is fresh until it was given out.
func TestFresh(t *testing.T) {
	t.Parallel()
	c := dial(t, newHome(t))
	group := attribute1(kmipwire.AttrObjectGroup, "g")
	a, b := c.makeKey(group), c.makeKey(group)
	fresh := &kmipwire.LocateRequest{ObjectGroupMember: kmip14.ObjectGroupMemberGroupMemberFresh, Attribute: []kmipwire.Attribute{group}}
	for _, want := range [][]string{{a, b}, {b}, nil} {
		got := do[kmipwire.LocateResponse](c, kmip14.OperationLocate, fresh).UniqueIdentifier
		if !slices.Equal(got, want) {
			t.Fatalf("fresh are %v, want %v", got, want)
		}
		if len(got) > 0 {
			c.get(got[0])
		}
	}
	if got := c.attributes(a, kmipwire.AttrFresh)[kmipwire.AttrFresh]; got != false {
		t.Errorf("fresh: %v", got)
	}
}

func TestSensitiveKeys(t *testing.T) {
	t.Parallel()
	c := dial(t, newHome(t))
	id := c.makeKey()
	c.modify(id, kmipwire.AttrExtractable, 0, false)
	c.refused(kmip14.ResultReasonNotExtractable, kmip14.OperationGet, &kmipwire.GetRequest{UniqueIdentifier: id})
	c.refused(kmip14.ResultReasonPermissionDenied, kmip14.OperationModifyAttribute,
		&kmipwire.ModifyAttributeRequest{UniqueIdentifier: id, Attribute: attribute1(kmipwire.AttrExtractable, true)})
	id = c.makeKey(attribute1(kmipwire.AttrSensitive, true))
	c.refused(kmip14.ResultReasonSensitive, kmip14.OperationGet, &kmipwire.GetRequest{UniqueIdentifier: id})
	if got := c.attributes(id); got[kmipwire.AttrAlwaysSensitive] != true || got[kmipwire.AttrNeverExtractable] != false {
		t.Errorf("got %v", got)
	}
	c.version.ProtocolVersionMinor = 3 // does not know the reason
	c.refused(kmip14.ResultReasonPermissionDenied, kmip14.OperationGet, &kmipwire.GetRequest{UniqueIdentifier: id})
}

func TestArchive(t *testing.T) {
	t.Parallel()
	c := dial(t, newHome(t))
	id := c.makeKey()
	archive := &kmipwire.ArchiveRequest{UniqueIdentifier: id}
	do[kmipwire.ArchiveResponse](c, kmip14.OperationArchive, archive)
	for op, payload := range map[kmip14.Operation]any{
		kmip14.OperationGet:             &kmipwire.GetRequest{UniqueIdentifier: id},
		kmip14.OperationArchive:         archive,
		kmip14.OperationActivate:        &kmipwire.ActivateRequest{UniqueIdentifier: id},
		kmip14.OperationRevoke:          revokeRequest(id, kmip14.RevocationReasonCodeKeyCompromise),
		kmip14.OperationDestroy:         &kmipwire.DestroyRequest{UniqueIdentifier: id},
		kmip14.OperationReKey:           &kmipwire.ReKeyRequest{UniqueIdentifier: id},
		kmip14.OperationCheck:           &kmipwire.CheckRequest{UniqueIdentifier: id},
		kmip14.OperationObtainLease:     &kmipwire.ObtainLeaseRequest{UniqueIdentifier: id},
		kmip14.OperationAddAttribute:    &kmipwire.AddAttributeRequest{UniqueIdentifier: id, Attribute: attribute1("x-a", "1")},
		kmip14.OperationModifyAttribute: &kmipwire.ModifyAttributeRequest{UniqueIdentifier: id, Attribute: attribute1("x-a", "1")},
		kmip14.OperationDeleteAttribute: &kmipwire.DeleteAttributeRequest{UniqueIdentifier: id, AttributeName: "x-a"},
	} {
		c.refused(kmip14.ResultReasonObjectArchived, op, payload)
	}
	if c.attributes(id)[kmipwire.AttrArchiveDate] == nil {
		t.Error("no archive date")
	}
	for mask, want := range map[kmip14.StorageStatusMask][]string{0: nil, 1: nil, 2: {id}, 3: {id}} {
		got := do[kmipwire.LocateResponse](c, kmip14.OperationLocate, &kmipwire.LocateRequest{StorageStatusMask: mask}).UniqueIdentifier
		if !slices.Equal(got, want) {
			t.Errorf("mask %d: %v", mask, got)
		}
	}
	for range 2 { // the second time there is nothing to do
		do[kmipwire.RecoverResponse](c, kmip14.OperationRecover, &kmipwire.RecoverRequest{UniqueIdentifier: id})
	}
	if c.get(id) == "" || c.attributes(id)[kmipwire.AttrArchiveDate] != nil {
		t.Error("not recovered")
	}
	do[kmipwire.DestroyResponse](c, kmip14.OperationDestroy, &kmipwire.DestroyRequest{UniqueIdentifier: id})
	c.refused(kmip14.ResultReasonIllegalOperation, kmip14.OperationArchive, archive)
}

func TestTemplates(t *testing.T) {
	t.Parallel()
	c := dial(t, newHome(t))
	body := []kmipwire.Attribute{
		attribute1(kmipwire.AttrCryptographicLength, 128), attribute1(kmipwire.AttrContactInformation, "Joe"),
		attribute1("x-purpose", "test"), attribute1(kmipwire.AttrFresh, true), nameAttribute("t"),
	}
	id := c.register(&kmipwire.RegisterRequest{ObjectType: kmip14.ObjectTypeTemplate, Template: &kmipwire.Template{Attribute: body}})
	got := do[kmipwire.GetResponse](c, kmip14.OperationGet, &kmipwire.GetRequest{UniqueIdentifier: id})
	if got.Template == nil || len(got.Template.Attribute) != len(body) || got.Template.Attribute[1].AttributeValue != "Joe" {
		t.Errorf("got %+v", got.Template)
	}
	req := createRequest(attribute1("x-purpose", "more"))
	req.TemplateAttribute.Attribute = slices.Delete(req.TemplateAttribute.Attribute, 1, 2) // the length
	req.TemplateAttribute.Name = []kmipwire.Name{{NameValue: "t", NameType: kmip14.NameTypeUninterpretedTextString}}
	key := do[kmipwire.CreateResponse](c, kmip14.OperationCreate, req).UniqueIdentifier
	attrs := c.attributes(key)
	if attrs[kmipwire.AttrCryptographicLength] != int32(128) || attrs[kmipwire.AttrContactInformation] != "Joe" ||
		attrs["x-purpose"] != "test" || attrs["x-purpose 1"] != "more" || attrs[kmipwire.AttrName] != nil {
		t.Errorf("made %v", attrs)
	}
	do[kmipwire.ArchiveResponse](c, kmip14.OperationArchive, &kmipwire.ArchiveRequest{UniqueIdentifier: id})
	c.refused(kmip14.ResultReasonObjectArchived, kmip14.OperationCreate, req)
	req.TemplateAttribute.Name[0].NameValue = "k"
	c.create("k")
	c.refused(kmip14.ResultReasonItemNotFound, kmip14.OperationCreate, req)
}

func TestCheckAndLease(t *testing.T) {
	t.Parallel()
	c := dial(t, newHome(t))
	id := c.makeKey()
	long, short := 2*leaseTime, time.Second
	got := do[kmipwire.CheckResponse](c, kmip14.OperationCheck, &kmipwire.CheckRequest{UniqueIdentifier: id, CryptographicUsageMask: 4, LeaseTime: &short})
	if got.CryptographicUsageMask != nil || got.LeaseTime != nil {
		t.Errorf("allowed: %+v", got)
	}
	in := c.message(items(
		kmip14.OperationLocate, &kmipwire.LocateRequest{},
		kmip14.OperationCheck, &kmipwire.CheckRequest{CryptographicUsageMask: 5, LeaseTime: &long},
		kmip14.OperationGet, &kmipwire.GetRequest{})...)
	in.RequestHeader.BatchErrorContinuationOption = kmip14.BatchErrorContinuationOptionContinue
	out := c.batch(in).BatchItem
	got = payloadOf[kmipwire.CheckResponse](t, out[1])
	if out[1].ResultReason != kmip14.ResultReasonPermissionDenied || got.UniqueIdentifier != "" ||
		got.CryptographicUsageMask == nil || *got.CryptographicUsageMask != 12 || got.LeaseTime == nil || *got.LeaseTime != leaseTime {
		t.Errorf("not allowed: %s %+v", out[1].ResultReason, got)
	}
	if out[2].ResultReason != kmip14.ResultReasonItemNotFound {
		t.Errorf("the ID placeholder is left: %+v", out[2])
	}
	lease := &kmipwire.ObtainLeaseRequest{UniqueIdentifier: id}
	if got := do[kmipwire.ObtainLeaseResponse](c, kmip14.OperationObtainLease, lease); got.LeaseTime != leaseTime || got.LastChangeDate.IsZero() {
		t.Errorf("%+v", got)
	}
	do[kmipwire.RevokeResponse](c, kmip14.OperationRevoke, revokeRequest(id, kmip14.RevocationReasonCodeKeyCompromise))
	c.refused(kmip14.ResultReasonPermissionDenied, kmip14.OperationObtainLease, lease)
}

func TestQuery(t *testing.T) {
	t.Parallel()
	c := dial(t, newHome(t))
	all := &kmipwire.QueryRequest{}
	for f := kmip14.QueryFunctionQueryOperations; f <= kmip14.QueryFunctionQueryClientRegistrationMethods; f++ {
		all.QueryFunction = append(all.QueryFunction, f)
	}
	for _, c.version = range kmipwire.Versions() {
		minor := c.version.ProtocolVersionMinor
		got := do[kmipwire.QueryResponse](c, kmip14.OperationQuery, all)
		info := got.CapabilityInformation
		facts := fmt.Sprint(len(got.ObjectType), slices.Contains(got.Operation, kmip14.OperationReKey),
			slices.Contains(got.Operation, kmip14.OperationDiscoverVersions), got.VendorIdentification, got.ServerInformation != nil,
			len(got.ExtensionInformation), len(got.RNGParameters), len(got.ProfileInformation) > 0, info != nil, info != nil && info.BatchUndoCapability != nil)
		want := fmt.Sprint(4, true, minor >= 1, "vmcrypt", true, 2*min(1, minor), max(0, min(1, minor-2)), minor >= 3, minor >= 3, minor >= 4)
		if facts != want {
			t.Errorf("1.%d: %s, want %s", minor, facts, want)
		}
		if e := got.ExtensionInformation; len(e) == 2 && (e[0].ExtensionTag != 0 || e[1] != kmipwire.ExtensionInformation{ExtensionName: "Product", ExtensionTag: 0x540001, ExtensionType: 7}) {
			t.Errorf("1.%d: extensions %+v", minor, e)
		}
	}
}
