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

// makeKey creates a key with more attributes than it needs.
func (c *client) makeKey(extra ...kmipwire.Attribute) string {
	c.t.Helper()
	return do[kmipwire.CreateResponse](c, kmip14.OperationCreate, createRequest(extra...)).UniqueIdentifier
}

func (c *client) addAttribute(id, name string, value any) kmipwire.Attribute {
	c.t.Helper()
	return do[kmipwire.AddAttributeResponse](c, kmip14.OperationAddAttribute,
		&kmipwire.AddAttributeRequest{UniqueIdentifier: id, Attribute: attribute1(name, value)}).Attribute
}

func (c *client) modify(id, name string, index int, value any) {
	c.t.Helper()
	a := attribute1(name, value)
	a.AttributeIndex = index
	got := do[kmipwire.ModifyAttributeResponse](c, kmip14.OperationModifyAttribute,
		&kmipwire.ModifyAttributeRequest{UniqueIdentifier: id, Attribute: a})
	if got.Attribute.AttributeName != name || got.Attribute.AttributeIndex != index {
		c.t.Errorf("modified %+v", got.Attribute)
	}
}

func (c *client) delete(id, name string, index int) any {
	c.t.Helper()
	return do[kmipwire.DeleteAttributeResponse](c, kmip14.OperationDeleteAttribute,
		&kmipwire.DeleteAttributeRequest{UniqueIdentifier: id, AttributeName: name, AttributeIndex: index}).Attribute.AttributeValue
}

// TestIndexesOfAttributes: an instance keeps its index when another goes.
func TestIndexesOfAttributes(t *testing.T) {
	t.Parallel()
	c := dial(t, newHome(t))
	for _, name := range []string{"x-many", kmipwire.AttrObjectGroup} {
		t.Run(name, func(t *testing.T) {
			c := &client{t: t, conn: c.conn, version: newest}
			id := c.makeKey(attribute1(name, "a"), attribute1(name, "b"))
			if got := c.addAttribute(id, name, "c"); got.AttributeIndex != 2 || got.AttributeValue != "c" {
				t.Errorf("added %+v", got)
			}
			if got := c.delete(id, name, 1); got != "b" {
				t.Errorf("deleted %v", got)
			}
			c.modify(id, name, 2, "d")
			c.refused(kmip14.ResultReasonItemNotFound, kmip14.OperationDeleteAttribute,
				&kmipwire.DeleteAttributeRequest{UniqueIdentifier: id, AttributeName: name, AttributeIndex: 1})
			if got := c.attributes(id, name); len(got) != 2 || got[name] != "a" || got[name+" 2"] != "d" {
				t.Errorf("got %v", got)
			}
			c.delete(id, name, 2)
			if got := c.addAttribute(id, name, "e"); got.AttributeIndex != 1 {
				t.Errorf("after the last: %+v", got)
			}
		})
	}
}

// TestIndexesOfNames: names are in a field of their own.
func TestIndexesOfNames(t *testing.T) {
	t.Parallel()
	c := dial(t, newHome(t))
	id := c.makeKey(nameAttribute("a"), nameAttribute("b"), nameAttribute("c"))
	c.delete(id, kmipwire.AttrName, 1)
	c.modify(id, kmipwire.AttrName, 2, nameAttribute("d").AttributeValue)
	if got := c.attributes(id, kmipwire.AttrName); len(got) != 2 || got["Name"] == nil || got["Name 2"] == nil {
		t.Errorf("got %v", got)
	}
	for n, want := range map[string][]string{"a": {id}, "b": nil, "c": nil, "d": {id}} {
		if got := c.locate(nameAttribute(n)); !slices.Equal(got, want) {
			t.Errorf("%s: located %v", n, got)
		}
	}
	other := c.create("b") // is free again
	c.refused(kmip14.ResultReasonIllegalOperation, kmip14.OperationModifyAttribute,
		&kmipwire.ModifyAttributeRequest{UniqueIdentifier: other, Attribute: nameAttribute("a")})
	c.refused(kmip14.ResultReasonIllegalOperation, kmip14.OperationAddAttribute,
		&kmipwire.AddAttributeRequest{UniqueIdentifier: other, Attribute: nameAttribute("b")})
}

func TestAddAttributeRefuses(t *testing.T) {
	t.Parallel()
	c := dial(t, newHome(t))
	id := c.makeKey(attribute1(kmipwire.AttrContactInformation, "Joe"), attribute1(kmipwire.AttrActivationDate, time.Now()))
	indexed := attribute1("x-a", "1")
	indexed.AttributeIndex = 1
	tests := map[string]struct {
		attribute kmipwire.Attribute
		want      kmip14.ResultReason
	}{
		"read-only":         {attribute1(kmipwire.AttrState, kmip14.StateActive), kmip14.ResultReasonPermissionDenied},
		"the server's":      {attribute1("y-a", "1"), kmip14.ResultReasonPermissionDenied},
		"unknown":           {attribute1("Usage Limits", "1"), kmip14.ResultReasonPermissionDenied},
		"exists":            {attribute1(kmipwire.AttrContactInformation, "Jim"), kmip14.ResultReasonIllegalOperation},
		"exists, read-only": {attribute1(kmipwire.AttrActivationDate, time.Now()), kmip14.ResultReasonIllegalOperation},
		"indexed":           {indexed, kmip14.ResultReasonInvalidField},
		"wrong type":        {attribute1(kmipwire.AttrObjectGroup, 1), kmip14.ResultReasonInvalidField},
		"long":              {attribute1("x-a", strings.Repeat("x", maxValue)), kmip14.ResultReasonInvalidField},
		"link to nothing":   {attribute1(kmipwire.AttrLink, kmipwire.Link{LinkType: kmip14.LinkTypeNextLink}), kmip14.ResultReasonInvalidField},
		"dates contradict":  {attribute1(kmipwire.AttrDeactivationDate, time.Now().Add(-time.Hour)), kmip14.ResultReasonInvalidField},
	}
	for what, test := range tests {
		t.Run(what, func(t *testing.T) {
			(&client{t: t, conn: c.conn, version: newest}).refused(test.want, kmip14.OperationAddAttribute,
				&kmipwire.AddAttributeRequest{UniqueIdentifier: id, Attribute: test.attribute})
		})
	}
	c.refused(kmip14.ResultReasonItemNotFound, kmip14.OperationAddAttribute,
		&kmipwire.AddAttributeRequest{UniqueIdentifier: uuid.NewString(), Attribute: attribute1("x-a", "1")})
}

func TestModifyAttributeRefuses(t *testing.T) {
	t.Parallel()
	c := dial(t, newHome(t))
	id := c.makeKey(attribute1("x-a", "1"))
	c.activate(id)
	tests := map[string]struct {
		attribute kmipwire.Attribute
		want      kmip14.ResultReason
	}{
		"missing":        {attribute1("x-b", "1"), kmip14.ResultReasonInvalidField},
		"index":          {kmipwire.Attribute{AttributeName: "x-a", AttributeIndex: 1, AttributeValue: "2"}, kmip14.ResultReasonItemNotFound},
		"read-only":      {attribute1(kmipwire.AttrCryptographicLength, 128), kmip14.ResultReasonPermissionDenied},
		"when active":    {attribute1(kmipwire.AttrActivationDate, time.Now()), kmip14.ResultReasonPermissionDenied},
		"less sensitive": {attribute1(kmipwire.AttrSensitive, false), kmip14.ResultReasonPermissionDenied},
	}
	for what, test := range tests {
		t.Run(what, func(t *testing.T) {
			(&client{t: t, conn: c.conn, version: newest}).refused(test.want, kmip14.OperationModifyAttribute,
				&kmipwire.ModifyAttributeRequest{UniqueIdentifier: id, Attribute: test.attribute})
		})
	}
}

func TestDeleteAttributeRefuses(t *testing.T) {
	t.Parallel()
	c := dial(t, newHome(t))
	id := c.makeKey()
	tests := map[string]kmip14.ResultReason{
		kmipwire.AttrState:          kmip14.ResultReasonPermissionDenied,
		kmipwire.AttrActivationDate: kmip14.ResultReasonPermissionDenied,
		"x-a":                       kmip14.ResultReasonItemNotFound,
		"Nothing":                   kmip14.ResultReasonItemNotFound,
	}
	for name, want := range tests {
		c.refused(want, kmip14.OperationDeleteAttribute, &kmipwire.DeleteAttributeRequest{UniqueIdentifier: id, AttributeName: name})
	}
}

// TestCustomAttributes: a value comes back as what it was.
func TestCustomAttributes(t *testing.T) {
	t.Parallel()
	c := dial(t, newHome(t))
	id := c.makeKey()
	when := time.Unix(1_700_000_000, 0).UTC()
	values := []any{"text", int32(-7), int64(1) << 40, true, when, ttlv.EnumValue(7), time.Minute}
	for i, v := range values {
		name := fmt.Sprintf("x-%d", i)
		c.addAttribute(id, name, v)
		if got := c.attributes(id, name)[name]; got != v {
			t.Errorf("%T: got %v, want %v", v, got, v)
		}
		if got := c.locate(attribute1(name, v)); !slices.Equal(got, []string{id}) {
			t.Errorf("%T: located %v", v, got)
		}
	}
	if got := c.locate(attribute1("x-0", "text"), attribute1("x-1", int32(7))); len(got) != 0 {
		t.Errorf("located %v by another value", got)
	}
	if got := c.attributes(id, "x-none"); len(got) != 0 {
		t.Errorf("got %v", got)
	}
}

// TestAttributesOfVersions: each version tells what it defines.
func TestAttributesOfVersions(t *testing.T) {
	t.Parallel()
	c := dial(t, newHome(t))
	id := c.makeKey()
	since := map[string]int{
		kmipwire.AttrFresh: 1, kmipwire.AttrOriginalCreationDate: 2, kmipwire.AttrRandomNumberGenerator: 3, kmipwire.AttrSensitive: 4,
		kmipwire.AttrAlwaysSensitive: 4, kmipwire.AttrExtractable: 4, kmipwire.AttrNeverExtractable: 4, kmipwire.AttrDigest: 0,
	}
	for _, c.version = range kmipwire.Versions() {
		minor := c.version.ProtocolVersionMinor
		list := do[kmipwire.GetAttributeListResponse](c, kmip14.OperationGetAttributeList, &kmipwire.GetAttributeListRequest{UniqueIdentifier: id}).AttributeName
		values := c.attributes(id)
		for name, first := range since {
			if _, told := values[name]; slices.Contains(list, name) != (minor >= first) || told != (minor >= first) {
				t.Errorf("1.%d: %s: in the list %v, told %v", minor, name, slices.Contains(list, name), told)
			}
		}
		var d kmipwire.Digest
		if err := kmipwire.UnmarshalPayload(values[kmipwire.AttrDigest], &d); err != nil || (d.KeyFormatType != 0) != (minor >= 1) {
			t.Errorf("1.%d: digest %+v, %v", minor, d, err)
		}
	}
	c.version.ProtocolVersionMinor = 3
	c.refused(kmip14.ResultReasonPermissionDenied, kmip14.OperationAddAttribute,
		&kmipwire.AddAttributeRequest{UniqueIdentifier: id, Attribute: attribute1(kmipwire.AttrComment, "c")})
	c.refused(kmip14.ResultReasonInvalidMessage, kmip14.OperationGetAttributes,
		&kmipwire.GetAttributesRequest{UniqueIdentifier: id, AttributeName: []string{"State", "State"}})
}

func TestTooManyAttributes(t *testing.T) {
	o := &object{}
	o.Type = uint32(kmip14.ObjectTypeSymmetricKey)
	for i := range maxOthers {
		a := attributeNamed(fmt.Sprintf("x-%d", i/maxInstances), newestMinor)
		if _, err := a.insert(o, keep("v")); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"x-0", "x-new"} {
		if _, err := attributeNamed(name, newestMinor).insert(o, keep("v")); err == nil {
			t.Errorf("%s: one more is taken", name)
		}
	}
}

// TestEveryAttributeHasItsPlace: what the table lets a client set comes back.
func TestEveryAttributeHasItsPlace(t *testing.T) {
	values := map[string]any{
		kmipwire.AttrName: name{"n", 1}, kmipwire.AttrCryptographicAlgorithm: uint32(3), kmipwire.AttrCryptographicLength: int32(128),
		kmipwire.AttrCryptographicUsageMask: int32(4), kmipwire.AttrFresh: true, kmipwire.AttrSensitive: true, kmipwire.AttrExtractable: false,
	}
	for i := range attributeTable {
		a := &attributeTable[i]
		if a.can == byServer {
			continue
		}
		o := &object{}
		o.Type, o.State = uint32(kmip14.ObjectTypeSymmetricKey), uint32(kmip14.StatePreActive)
		value, ok := values[a.name]
		switch {
		case ok:
		case strings.HasSuffix(a.name, "Date"):
			value = int64(1_700_000_000)
		default:
			value = keep("v")
		}
		if _, err := a.insert(o, value); err != nil {
			t.Fatal(err)
		}
		got := a.instances(o)
		if len(got) != 1 || got[0].value != value || !a.allowed(o, a.can, value) {
			t.Errorf("%s: %v, want %v", a.name, got, value)
		}
	}
}
