package kms

import (
	"testing"
	"time"

	"github.com/gemalto/kmip-go/kmip14"
	"github.com/google/uuid"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// condition is a line of the tables of section 11: an operation that has to
// fail.
type condition struct {
	operation kmip14.Operation
	what      string
	payload   any
	want      kmip14.ResultReason
}

// TestResultReasons goes through section 11, "Error Handling": which reason each
// operation gives in which case. Cases that are about one operation alone, such
// as the values of attributes, have tests of their own beside this one.
func TestResultReasons(t *testing.T) {
	t.Parallel()
	c := dial(t, newHome(t))
	for _, test := range c.conditions() {
		t.Run(test.operation.String()+" "+test.what, func(t *testing.T) {
			(&client{t: t, conn: c.conn, version: newest}).refused(test.want, test.operation, test.payload)
		})
	}
}

// onObject gives the payload of each operation that is about an object.
func onObject(id string) map[kmip14.Operation]any {
	return map[kmip14.Operation]any{
		kmip14.OperationReKey:            &kmipwire.ReKeyRequest{UniqueIdentifier: id},
		kmip14.OperationCheck:            &kmipwire.CheckRequest{UniqueIdentifier: id},
		kmip14.OperationGet:              &kmipwire.GetRequest{UniqueIdentifier: id},
		kmip14.OperationGetAttributes:    &kmipwire.GetAttributesRequest{UniqueIdentifier: id},
		kmip14.OperationGetAttributeList: &kmipwire.GetAttributeListRequest{UniqueIdentifier: id},
		kmip14.OperationAddAttribute:     &kmipwire.AddAttributeRequest{UniqueIdentifier: id, Attribute: attribute1("x-b", "1")},
		kmip14.OperationModifyAttribute:  &kmipwire.ModifyAttributeRequest{UniqueIdentifier: id, Attribute: attribute1("x-a", "2")},
		kmip14.OperationDeleteAttribute:  &kmipwire.DeleteAttributeRequest{UniqueIdentifier: id, AttributeName: "x-a"},
		kmip14.OperationObtainLease:      &kmipwire.ObtainLeaseRequest{UniqueIdentifier: id},
		kmip14.OperationActivate:         &kmipwire.ActivateRequest{UniqueIdentifier: id},
		kmip14.OperationRevoke:           revokeRequest(id, kmip14.RevocationReasonCodeSuperseded),
		kmip14.OperationDestroy:          &kmipwire.DestroyRequest{UniqueIdentifier: id},
		kmip14.OperationArchive:          &kmipwire.ArchiveRequest{UniqueIdentifier: id},
		kmip14.OperationRecover:          &kmipwire.RecoverRequest{UniqueIdentifier: id},
	}
}

// readsArchived are the operations that an archived object is there for.
var readsArchived = map[kmip14.Operation]bool{
	kmip14.OperationGetAttributes: true, kmip14.OperationGetAttributeList: true, kmip14.OperationRecover: true,
}

func (c *client) conditions() (all []condition) {
	for op, payload := range onObject(uuid.NewString()) {
		all = append(all, condition{op, "of no object", payload, kmip14.ResultReasonItemNotFound})
	}
	for op, payload := range onObject("") {
		all = append(all, condition{op, "of no ID placeholder", payload, kmip14.ResultReasonItemNotFound})
	}
	for op, payload := range onObject(c.archived(c.makeKey(attribute1("x-a", "1")))) {
		if !readsArchived[op] {
			all = append(all, condition{op, "archived", payload, kmip14.ResultReasonObjectArchived})
		}
	}
	all = append(all, c.statesAndTypes()...)
	all = append(all, c.attributesAndNames()...)
	return append(all, c.templatesAndOffsets()...)
}

func (c *client) archived(id string) string {
	c.t.Helper()
	do[kmipwire.ArchiveResponse](c, kmip14.OperationArchive, &kmipwire.ArchiveRequest{UniqueIdentifier: id})
	return id
}

// statesAndTypes are objects that an operation is not for.
func (c *client) statesAndTypes() []condition {
	active, destroyed := c.makeKey(), c.makeKey()
	c.activate(active)
	do[kmipwire.DestroyResponse](c, kmip14.OperationDestroy, &kmipwire.DestroyRequest{UniqueIdentifier: destroyed})
	opaque := onObject(c.register(&kmipwire.RegisterRequest{ObjectType: kmip14.ObjectTypeOpaqueObject,
		OpaqueObject: &kmipwire.OpaqueObject{OpaqueDataType: 0x80000001, OpaqueDataValue: []byte("blob")}}))
	key := onObject(active)
	gone := onObject(destroyed)
	return []condition{
		{kmip14.OperationActivate, "an opaque object", opaque[kmip14.OperationActivate], kmip14.ResultReasonIllegalOperation},
		{kmip14.OperationRevoke, "an opaque object", opaque[kmip14.OperationRevoke], kmip14.ResultReasonIllegalOperation},
		{kmip14.OperationCheck, "an opaque object", opaque[kmip14.OperationCheck], kmip14.ResultReasonIllegalOperation},
		{kmip14.OperationReKey, "an opaque object", opaque[kmip14.OperationReKey], kmip14.ResultReasonIllegalOperation},
		{kmip14.OperationActivate, "an active key", key[kmip14.OperationActivate], kmip14.ResultReasonPermissionDenied},
		{kmip14.OperationDestroy, "an active key", key[kmip14.OperationDestroy], kmip14.ResultReasonPermissionDenied},
		{kmip14.OperationDestroy, "twice", gone[kmip14.OperationDestroy], kmip14.ResultReasonPermissionDenied},
		{kmip14.OperationObtainLease, "of a destroyed key", gone[kmip14.OperationObtainLease], kmip14.ResultReasonPermissionDenied},
		{kmip14.OperationGet, "a destroyed key", gone[kmip14.OperationGet], kmip14.ResultReasonItemNotFound}, // as TC-314 wants
		{kmip14.OperationReKey, "a destroyed key", gone[kmip14.OperationReKey], kmip14.ResultReasonIllegalOperation},
		{kmip14.OperationRevoke, "for no reason", revokeRequest(active, 0), kmip14.ResultReasonInvalidField},
		{kmip14.OperationRevoke, "for an unknown reason", revokeRequest(active, 99), kmip14.ResultReasonInvalidField},
		{kmip14.OperationCheck, "too much", &kmipwire.CheckRequest{UniqueIdentifier: active, CryptographicUsageMask: 1 << 20}, kmip14.ResultReasonPermissionDenied},
		{kmip14.OperationGet, "in an unknown format", &kmipwire.GetRequest{UniqueIdentifier: active, KeyFormatType: kmip14.KeyFormatTypePKCS_1}, kmip14.ResultReasonKeyFormatTypeNotSupported},
		{kmip14.OperationGet, "compressed", &kmipwire.GetRequest{UniqueIdentifier: active, KeyCompressionType: 1}, kmip14.ResultReasonKeyCompressionTypeNotSupported},
		{kmip14.OperationCreate, "an opaque object", &kmipwire.CreateRequest{ObjectType: kmip14.ObjectTypeOpaqueObject}, kmip14.ResultReasonInvalidField},
		{kmip14.OperationCreate, "nothing", &kmipwire.CreateRequest{}, kmip14.ResultReasonInvalidField},
		{kmip14.OperationRegister, "what is not there", &kmipwire.RegisterRequest{ObjectType: kmip14.ObjectTypeSymmetricKey}, kmip14.ResultReasonInvalidField},
	}
}

// attributesAndNames are attributes that cannot be read, given or taken.
func (c *client) attributesAndNames() []condition {
	id := c.makeKey(nameAttribute("mine"), attribute1("x-a", "1"))
	c.create("another's")
	taken, state := nameAttribute("another's"), attribute1(kmipwire.AttrState, kmip14.StateActive)
	indexed := attribute1("x-a", "2")
	indexed.AttributeIndex = 7
	namespace := attribute1(kmipwire.AttrApplicationInformation, kmipwire.ApplicationSpecificInformation{ApplicationNamespace: "ssl"})
	add := func(a kmipwire.Attribute) any {
		return &kmipwire.AddAttributeRequest{UniqueIdentifier: id, Attribute: a}
	}
	modify := func(a kmipwire.Attribute) any {
		return &kmipwire.ModifyAttributeRequest{UniqueIdentifier: id, Attribute: a}
	}
	remove := func(name string, index int) any {
		return &kmipwire.DeleteAttributeRequest{UniqueIdentifier: id, AttributeName: name, AttributeIndex: index}
	}
	return []condition{
		{kmip14.OperationGetAttributes, "the same twice", &kmipwire.GetAttributesRequest{UniqueIdentifier: id, AttributeName: []string{"Name", "Name"}}, kmip14.ResultReasonInvalidMessage},
		{kmip14.OperationLocate, "by an unknown attribute", &kmipwire.LocateRequest{Attribute: []kmipwire.Attribute{attribute1("Colour", "red")}}, kmip14.ResultReasonInvalidField},
		{kmip14.OperationCreate, "with a name in use", createRequest(taken), kmip14.ResultReasonInvalidField},
		{kmip14.OperationCreate, "with a read-only attribute", createRequest(state), kmip14.ResultReasonInvalidField},
		{kmip14.OperationCreate, "with a namespace alone", createRequest(namespace), kmip14.ResultReasonApplicationNamespaceNotSupported},
		{kmip14.OperationAddAttribute, "read-only", add(state), kmip14.ResultReasonPermissionDenied},
		{kmip14.OperationAddAttribute, "not supported", add(attribute1("Usage Limits", "1")), kmip14.ResultReasonPermissionDenied},
		{kmip14.OperationAddAttribute, "that there is", add(attribute1(kmipwire.AttrCryptographicUsageMask, 4)), kmip14.ResultReasonPermissionDenied},
		{kmip14.OperationAddAttribute, "with an index", add(indexed), kmip14.ResultReasonInvalidField},
		{kmip14.OperationAddAttribute, "a name in use", add(taken), kmip14.ResultReasonIllegalOperation},
		{kmip14.OperationAddAttribute, "a namespace alone", add(namespace), kmip14.ResultReasonApplicationNamespaceNotSupported},
		{kmip14.OperationModifyAttribute, "that there is not", modify(attribute1("x-b", "1")), kmip14.ResultReasonInvalidField},
		{kmip14.OperationModifyAttribute, "of no instance", modify(indexed), kmip14.ResultReasonItemNotFound},
		{kmip14.OperationModifyAttribute, "read-only", modify(state), kmip14.ResultReasonPermissionDenied},
		{kmip14.OperationModifyAttribute, "a name in use", modify(taken), kmip14.ResultReasonIllegalOperation},
		{kmip14.OperationDeleteAttribute, "read-only", remove(kmipwire.AttrState, 0), kmip14.ResultReasonPermissionDenied},
		{kmip14.OperationDeleteAttribute, "unknown", remove("Colour", 0), kmip14.ResultReasonItemNotFound},
		{kmip14.OperationDeleteAttribute, "of no instance", remove("x-a", 7), kmip14.ResultReasonItemNotFound},
	}
}

// templatesAndOffsets are what a key cannot be made with.
func (c *client) templatesAndOffsets() []condition {
	key := c.makeKey()
	template := func(name string) string {
		return c.register(&kmipwire.RegisterRequest{ObjectType: kmip14.ObjectTypeTemplate,
			Template: &kmipwire.Template{Attribute: []kmipwire.Attribute{nameAttribute(name)}}})
	}
	c.archived(template("archived"))
	with := func(name string) kmipwire.TemplateAttribute {
		t := createRequest().TemplateAttribute
		t.Name = []kmipwire.Name{{NameValue: name, NameType: kmip14.NameTypeUninterpretedTextString}}
		return t
	}
	var all []condition
	for name, want := range map[string]kmip14.ResultReason{"missing": kmip14.ResultReasonItemNotFound, "archived": kmip14.ResultReasonObjectArchived} {
		register := registerKey(keyBlock(kmip14.KeyFormatTypeRaw))
		register.TemplateAttribute.Name = with(name).Name
		all = append(all,
			condition{kmip14.OperationCreate, name + " template", &kmipwire.CreateRequest{ObjectType: kmip14.ObjectTypeSymmetricKey, TemplateAttribute: with(name)}, want},
			condition{kmip14.OperationRegister, name + " template", register, want},
			condition{kmip14.OperationReKey, name + " template", &kmipwire.ReKeyRequest{UniqueIdentifier: key, TemplateAttribute: kmipwire.TemplateAttribute{Name: with(name).Name}}, want})
	}
	offset := time.Hour
	dated := &kmipwire.ReKeyRequest{UniqueIdentifier: key, Offset: &offset}
	dated.TemplateAttribute.Attribute = []kmipwire.Attribute{attribute1(kmipwire.AttrActivationDate, time.Now())}
	return append(all, condition{kmip14.OperationReKey, "with offset and date", dated, kmip14.ResultReasonInvalidMessage})
}
