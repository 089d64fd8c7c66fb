package kms

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gemalto/kmip-go/kmip14"
	"github.com/gemalto/kmip-go/ttlv"
	"github.com/google/uuid"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

func TestLifeOfAKeyInEveryVersion(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	c := dial(t, h)
	for _, v := range kmipwire.Versions() {
		t.Run(v.String(), func(t *testing.T) {
			c := &client{t: t, conn: c.conn, version: v}
			id := c.create("kek " + v.String())
			key := c.get(id)
			if len(key) != 32 || key == strings.Repeat("\x00", 32) {
				t.Fatalf("key of %d bytes", len(key))
			}
			c.activate(id)
			if got := c.locate(nameAttribute("kek " + v.String())); !slices.Equal(got, []string{id}) {
				t.Errorf("located %v, want %s", got, id)
			}
			if c.get(id) != key || c.state(id) != kmip14.StateActive {
				t.Error("activating changed the key")
			}
			do[kmipwire.RevokeResponse](c, kmip14.OperationRevoke, revokeRequest(id, kmip14.RevocationReasonCodeSuperseded))
			if got := c.state(id); got != kmip14.StateDeactivated {
				t.Errorf("state after revoke: %s", got)
			}
			do[kmipwire.DestroyResponse](c, kmip14.OperationDestroy, &kmipwire.DestroyRequest{UniqueIdentifier: id})
			if got := c.state(id); got != kmip14.StateDestroyed {
				t.Errorf("state after destroy: %s", got)
			}
			c.refused(kmip14.ResultReasonItemNotFound, kmip14.OperationGet, &kmipwire.GetRequest{UniqueIdentifier: id})
		})
	}
}

func TestGetSaysWhatTheKeyIs(t *testing.T) {
	t.Parallel()
	c := dial(t, newHome(t))
	for _, bits := range []int{128, 192, 256} {
		req := createRequest()
		req.TemplateAttribute.Attribute[1].AttributeValue = bits
		id := do[kmipwire.CreateResponse](c, kmip14.OperationCreate, req).UniqueIdentifier
		got := do[kmipwire.GetResponse](c, kmip14.OperationGet,
			&kmipwire.GetRequest{UniqueIdentifier: id, KeyFormatType: kmip14.KeyFormatTypeRaw})
		b := got.SymmetricKey.KeyBlock
		if got.ObjectType != kmip14.ObjectTypeSymmetricKey || got.UniqueIdentifier != id ||
			b.KeyFormatType != kmip14.KeyFormatTypeRaw || b.CryptographicAlgorithm != kmip14.CryptographicAlgorithmAES ||
			b.CryptographicLength != bits || len(b.KeyValue.KeyMaterial)*8 != bits {
			t.Errorf("%d bits: %+v", bits, got)
		}
	}
}

func TestGetRefuses(t *testing.T) {
	t.Parallel()
	c := dial(t, newHome(t))
	id := c.create("k")
	c.refused(kmip14.ResultReasonItemNotFound, kmip14.OperationGet, &kmipwire.GetRequest{UniqueIdentifier: uuid.NewString()})
	c.refused(kmip14.ResultReasonItemNotFound, kmip14.OperationGet, &kmipwire.GetRequest{UniqueIdentifier: strings.ToUpper(id)})
	c.refused(kmip14.ResultReasonItemNotFound, kmip14.OperationGet, &kmipwire.GetRequest{UniqueIdentifier: "{" + id + "}"})
	c.refused(kmip14.ResultReasonItemNotFound, kmip14.OperationGet, &kmipwire.GetRequest{})
	c.refused(kmip14.ResultReasonKeyFormatTypeNotSupported, kmip14.OperationGet,
		&kmipwire.GetRequest{UniqueIdentifier: id, KeyFormatType: kmip14.KeyFormatTypePKCS_8})
	// Asked to wrap a key, the server must not give it out bare.
	type wrappingSpecification struct{ WrappingMethod kmip14.WrappingMethod }
	c.refused(kmip14.ResultReasonFeatureNotSupported, kmip14.OperationGet, &struct {
		TTLVTag                  struct{} `ttlv:"RequestPayload"`
		UniqueIdentifier         string
		KeyWrappingSpecification wrappingSpecification
	}{UniqueIdentifier: id, KeyWrappingSpecification: wrappingSpecification{kmip14.WrappingMethodEncrypt}})
}

func TestCreateRefuses(t *testing.T) {
	t.Parallel()
	c := dial(t, newHome(t))
	id := c.create("taken")
	invalid := kmip14.ResultReasonInvalidField
	tests := map[string]struct {
		want   kmip14.ResultReason
		change func(*kmipwire.CreateRequest)
	}{
		"object type": {invalid, func(r *kmipwire.CreateRequest) { r.ObjectType = kmip14.ObjectTypeSecretData }},
		"algorithm":   {invalid, setTo(0, kmip14.CryptographicAlgorithmRSA)},
		"length":      {invalid, setTo(1, 257)},
		"no length":   {invalid, func(r *kmipwire.CreateRequest) { remove(r, 1) }},
		"no mask":     {invalid, func(r *kmipwire.CreateRequest) { remove(r, 2) }},
		"wrong type":  {invalid, setTo(1, "256")},
		"twice":       {invalid, add(attribute1(kmipwire.AttrCryptographicLength, 256))},
		"state":       {invalid, add(attribute1(kmipwire.AttrState, kmip14.StateActive))},
		"unknown":     {invalid, add(attribute1("Mine", "1"))},
		"server's":    {invalid, add(attribute1("y-mine", "1"))},
		"dates":       {invalid, add(attribute1(kmipwire.AttrActivationDate, time.Now()), attribute1(kmipwire.AttrDeactivationDate, time.Now().Add(-time.Hour)))},
		"name taken":  {invalid, add(nameAttribute("taken"))},
		"same names":  {invalid, add(nameAttribute("a"), nameAttribute("a"))},
		"empty name":  {invalid, add(nameAttribute(""))},
		"long name":   {invalid, add(nameAttribute(strings.Repeat("n", maxText+1)))},
		"name type":   {invalid, add(attribute1(kmipwire.AttrName, kmipwire.Name{NameValue: "n", NameType: 9}))},
		"template": {kmip14.ResultReasonItemNotFound, func(r *kmipwire.CreateRequest) {
			r.TemplateAttribute.Name = []kmipwire.Name{{NameValue: "t", NameType: kmip14.NameTypeUninterpretedTextString}}
		}},
		"many names": {kmip14.ResultReasonIndexOutOfBounds, func(r *kmipwire.CreateRequest) {
			for i := range maxInstances + 1 {
				add(nameAttribute(strings.Repeat("x", i+1)))(r)
			}
		}},
	}
	for what, test := range tests {
		t.Run(what, func(t *testing.T) {
			req := createRequest()
			test.change(req)
			(&client{t: t, conn: c.conn, version: newest}).refused(test.want, kmip14.OperationCreate, req)
		})
	}
	if got := c.locate(); !slices.Equal(got, []string{id}) {
		t.Errorf("what was refused left objects: %v", got)
	}
}

func setTo(i int, value any) func(*kmipwire.CreateRequest) {
	return func(r *kmipwire.CreateRequest) { r.TemplateAttribute.Attribute[i].AttributeValue = value }
}

func add(attrs ...kmipwire.Attribute) func(*kmipwire.CreateRequest) {
	return func(r *kmipwire.CreateRequest) {
		r.TemplateAttribute.Attribute = append(r.TemplateAttribute.Attribute, attrs...)
	}
}

func remove(r *kmipwire.CreateRequest, i int) {
	r.TemplateAttribute.Attribute = slices.Delete(r.TemplateAttribute.Attribute, i, i+1)
}

func TestCreateActive(t *testing.T) {
	t.Parallel()
	c := dial(t, newHome(t))
	req := createRequest(attribute1(kmipwire.AttrActivationDate, time.Now().Add(-time.Minute)))
	id := do[kmipwire.CreateResponse](c, kmip14.OperationCreate, req).UniqueIdentifier
	if got := c.state(id); got != kmip14.StateActive {
		t.Errorf("state %s", got)
	}
}

func TestNamesStayTakenAfterDestroy(t *testing.T) {
	t.Parallel()
	c := dial(t, newHome(t))
	id := c.create("once")
	do[kmipwire.DestroyResponse](c, kmip14.OperationDestroy, &kmipwire.DestroyRequest{UniqueIdentifier: id})
	c.refused(kmip14.ResultReasonInvalidField, kmip14.OperationCreate, createRequest(nameAttribute("once")))
	if got := c.locate(nameAttribute("once")); len(got) != 0 {
		t.Errorf("located %v", got)
	}
	if got := c.locate(nameAttribute("once"), attribute1(kmipwire.AttrState, kmip14.StateDestroyed)); !slices.Equal(got, []string{id}) {
		t.Errorf("located %v", got)
	}
}

func TestStates(t *testing.T) {
	t.Parallel()
	c := dial(t, newHome(t))
	const compromise, superseded = kmip14.RevocationReasonCodeKeyCompromise, kmip14.RevocationReasonCodeSuperseded
	// Each step is an operation and what comes of it; "!" says that it is refused.
	tests := map[string]string{
		"usual":                 "activate Active revoke Deactivated destroy Destroyed",
		"unused":                "destroy Destroyed activate! Destroyed destroy! Destroyed revoke! Destroyed",
		"active":                "activate Active activate! Active destroy! Active",
		"pre-active":            "revoke! PreActive compromise Compromised destroy DestroyedCompromised",
		"compromised":           "activate Active compromise Compromised compromise! Compromised activate! Compromised revoke! Compromised",
		"compromised late":      "activate Active revoke Deactivated compromise Compromised destroy DestroyedCompromised",
		"compromised when gone": "destroy Destroyed compromise DestroyedCompromised compromise! DestroyedCompromised",
	}
	do := map[string]func(id string) kmipwire.ResponseBatchItem{
		"activate": func(id string) kmipwire.ResponseBatchItem {
			return c.send(kmip14.OperationActivate, &kmipwire.ActivateRequest{UniqueIdentifier: id})
		},
		"revoke": func(id string) kmipwire.ResponseBatchItem {
			return c.send(kmip14.OperationRevoke, revokeRequest(id, superseded))
		},
		"compromise": func(id string) kmipwire.ResponseBatchItem {
			return c.send(kmip14.OperationRevoke, revokeRequest(id, compromise))
		},
		"destroy": func(id string) kmipwire.ResponseBatchItem {
			return c.send(kmip14.OperationDestroy, &kmipwire.DestroyRequest{UniqueIdentifier: id})
		},
	}
	for what, steps := range tests {
		t.Run(what, func(t *testing.T) {
			id := c.create(what)
			f := strings.Fields(steps)
			for i := 0; i < len(f); i += 2 {
				op, refused := strings.CutSuffix(f[i], "!")
				item := do[op](id)
				if failed := item.ResultStatus != kmip14.ResultStatusSuccess; failed != refused {
					t.Fatalf("%s: %s %s", f[i], item.ResultStatus, item.ResultMessage)
				}
				if got := c.state(id).String(); got != f[i+1] {
					t.Fatalf("state after %s is %s, want %s", f[i], got, f[i+1])
				}
			}
		})
	}
}

func TestGetAttributes(t *testing.T) {
	t.Parallel()
	c := dial(t, newHome(t))
	before := time.Now().Add(-time.Second)
	id := c.create("a")
	c.activate(id)
	req := revokeRequest(id, kmip14.RevocationReasonCodeKeyCompromise)
	req.RevocationReason.RevocationMessage = "found on a bus"
	occurred := time.Unix(1_700_000_000, 0)
	req.CompromiseOccurrenceDate = &occurred
	do[kmipwire.RevokeResponse](c, kmip14.OperationRevoke, req)
	got := c.attributes(id)
	want := map[string]any{
		kmipwire.AttrUniqueIdentifier:       id,
		kmipwire.AttrObjectType:             ttlv.EnumValue(kmip14.ObjectTypeSymmetricKey),
		kmipwire.AttrCryptographicAlgorithm: ttlv.EnumValue(kmip14.CryptographicAlgorithmAES),
		kmipwire.AttrCryptographicLength:    int32(256),
		kmipwire.AttrCryptographicUsageMask: int32(12),
		kmipwire.AttrState:                  ttlv.EnumValue(kmip14.StateCompromised),
		"Compromise Occurrence Date":        occurred.UTC(),
		kmipwire.AttrDestroyDate:            nil,
	}
	for name, value := range want {
		if got[name] != value {
			t.Errorf("%s is %v, want %v", name, got[name], value)
		}
	}
	for _, name := range []string{kmipwire.AttrInitialDate, kmipwire.AttrActivationDate, kmipwire.AttrCompromiseDate, kmipwire.AttrLastChangeDate} {
		if d, ok := got[name].(time.Time); !ok || d.Before(before) || d.After(time.Now()) {
			t.Errorf("%s is %v", name, got[name])
		}
	}
	var reason kmipwire.RevocationReason
	if err := kmipwire.Unmarshal(got[kmipwire.AttrRevocationReason].(ttlv.TTLV), &reason); err != nil || reason != req.RevocationReason {
		t.Errorf("revocation reason %+v, %v", reason, err)
	}
}

// attributes returns the values of an object's attributes; all of them or those
// named.
func (c *client) attributes(id string, names ...string) map[string]any {
	c.t.Helper()
	got := map[string]any{}
	r := do[kmipwire.GetAttributesResponse](c, kmip14.OperationGetAttributes, &kmipwire.GetAttributesRequest{UniqueIdentifier: id, AttributeName: names})
	for _, a := range r.Attribute {
		key := a.AttributeName
		if a.AttributeIndex > 0 {
			key = fmt.Sprintf("%s %d", a.AttributeName, a.AttributeIndex)
		}
		if _, ok := got[key]; ok {
			c.t.Errorf("%s is told twice", key)
		}
		got[key] = a.AttributeValue
	}
	return got
}

func TestGetSomeAttributes(t *testing.T) {
	t.Parallel()
	c := dial(t, newHome(t))
	id := do[kmipwire.CreateResponse](c, kmip14.OperationCreate, createRequest(nameAttribute("a"), nameAttribute("b"))).UniqueIdentifier
	got := c.attributes(id, kmipwire.AttrName, kmipwire.AttrDestroyDate, "x-unknown")
	if len(got) != 2 || got["Name"] == nil || got["Name 1"] == nil {
		t.Errorf("asked for names, got %v", got)
	}
}

func TestOwnerIsTheClient(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	c := dial(t, h)
	id := uuid.MustParse(c.create("mine"))
	c.conn.Close()
	s, err := h.open(forReading, storeWait)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if err := s.view(func(tx *tx) error {
		o, err := tx.get(id)
		if err == nil && o.Owner != clientName {
			t.Errorf("owner is %q", o.Owner)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

func TestLocate(t *testing.T) {
	t.Parallel()
	c := dial(t, newHome(t))
	a, b := c.create("a"), c.create("b")
	c.activate(b)
	both := []string{a, b}
	slices.Sort(both)
	tests := map[string]struct {
		filter []kmipwire.Attribute
		want   []string
	}{
		"all":            {nil, both},
		"name":           {[]kmipwire.Attribute{nameAttribute("a")}, []string{a}},
		"unknown name":   {[]kmipwire.Attribute{nameAttribute("A")}, nil},
		"state":          {[]kmipwire.Attribute{attribute1(kmipwire.AttrState, kmip14.StateActive)}, []string{b}},
		"name and state": {[]kmipwire.Attribute{attribute1(kmipwire.AttrState, kmip14.StateActive), nameAttribute("a")}, nil},
		"length":         {[]kmipwire.Attribute{attribute1(kmipwire.AttrCryptographicLength, 256)}, both},
		"part of mask":   {[]kmipwire.Attribute{attribute1(kmipwire.AttrCryptographicUsageMask, kmip14.CryptographicUsageMaskDecrypt)}, both},
		"other mask":     {[]kmipwire.Attribute{attribute1(kmipwire.AttrCryptographicUsageMask, kmip14.CryptographicUsageMaskWrapKey)}, nil},
		"id":             {[]kmipwire.Attribute{attribute1(kmipwire.AttrUniqueIdentifier, b)}, []string{b}},
		"object type":    {[]kmipwire.Attribute{attribute1(kmipwire.AttrObjectType, kmip14.ObjectTypeCertificate)}, nil},
	}
	for what, test := range tests {
		t.Run(what, func(t *testing.T) {
			if got := c.locate(test.filter...); !slices.Equal(got, test.want) {
				t.Errorf("located %v, want %v", got, test.want)
			}
		})
	}
	c.refused(kmip14.ResultReasonInvalidField, kmip14.OperationLocate, &kmipwire.LocateRequest{Attribute: []kmipwire.Attribute{attribute1("Mine", "1")}})
	c.refused(kmip14.ResultReasonInvalidField, kmip14.OperationLocate, &kmipwire.LocateRequest{Attribute: []kmipwire.Attribute{attribute1(kmipwire.AttrState, "Active")}})
	c.refused(kmip14.ResultReasonInvalidField, kmip14.OperationLocate, &kmipwire.LocateRequest{MaximumItems: -1})
}

func TestLocatePages(t *testing.T) {
	t.Parallel()
	c := dial(t, newHome(t))
	var all []string
	for _, n := range []string{"a", "b", "c"} {
		all = append(all, c.create(n))
	}
	slices.Sort(all)
	for _, minor := range []int{2, 3} {
		c.version = kmipwire.ProtocolVersion{ProtocolVersionMajor: 1, ProtocolVersionMinor: minor}
		got := do[kmipwire.LocateResponse](c, kmip14.OperationLocate, &kmipwire.LocateRequest{MaximumItems: 1, OffsetItems: 1})
		if !slices.Equal(got.UniqueIdentifier, all[1:2]) {
			t.Errorf("1.%d: located %v", minor, got.UniqueIdentifier)
		}
		if total := got.LocatedItems; (total != nil) != (minor >= 3) || total != nil && *total != 3 {
			t.Errorf("1.%d: located items %v", minor, total)
		}
	}
	if got := do[kmipwire.LocateResponse](c, kmip14.OperationLocate, &kmipwire.LocateRequest{OffsetItems: 9}); len(got.UniqueIdentifier) != 0 {
		t.Errorf("beyond the end: %v", got.UniqueIdentifier)
	}
	archived := &kmipwire.LocateRequest{StorageStatusMask: kmip14.StorageStatusMaskArchivalStorage}
	if got := do[kmipwire.LocateResponse](c, kmip14.OperationLocate, archived); len(got.UniqueIdentifier) != 0 {
		t.Errorf("archived: %v", got.UniqueIdentifier)
	}
}

func TestRevokeNeedsAReason(t *testing.T) {
	t.Parallel()
	c := dial(t, newHome(t))
	id := c.create("k")
	c.refused(kmip14.ResultReasonInvalidField, kmip14.OperationRevoke, revokeRequest(id, 0))
	c.refused(kmip14.ResultReasonInvalidField, kmip14.OperationRevoke, revokeRequest(id, 99))
}

func TestDiscoverVersions(t *testing.T) {
	t.Parallel()
	c := dial(t, newHome(t))
	v := func(major, minor int) kmipwire.ProtocolVersion {
		return kmipwire.ProtocolVersion{ProtocolVersionMajor: major, ProtocolVersionMinor: minor}
	}
	tests := map[string]struct{ offer, want []kmipwire.ProtocolVersion }{
		"all":     {nil, kmipwire.Versions()},
		"some":    {[]kmipwire.ProtocolVersion{v(1, 0), v(2, 1), v(1, 2)}, []kmipwire.ProtocolVersion{v(1, 2), v(1, 0)}},
		"nothing": {[]kmipwire.ProtocolVersion{v(3, 0)}, nil},
	}
	for what, test := range tests {
		t.Run(what, func(t *testing.T) {
			got := do[kmipwire.DiscoverVersionsResponse](c, kmip14.OperationDiscoverVersions, &kmipwire.DiscoverVersionsRequest{ProtocolVersion: test.offer})
			if !slices.Equal(got.ProtocolVersion, test.want) {
				t.Errorf("got %v, want %v", got.ProtocolVersion, test.want)
			}
		})
	}
}
