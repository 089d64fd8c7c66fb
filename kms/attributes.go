package kms

import (
	"slices"
	"strings"
	"time"

	"github.com/gemalto/kmip-go/kmip14"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

const (
	maxInstances = 64  // of an attribute of an object
	maxOthers    = 256 // instances of attributes that the server only keeps, of an object
)

// leaseTime is for how long a client may use a key without asking again. There
// is nothing that the server does when it ends.
const leaseTime = time.Hour

// attribute says what there is to know of an attribute that objects have
// (section 3). Without get and put it is one that the server only keeps.
type attribute struct {
	name  string
	since int // the minor version of KMIP 1 that brought it
	on    objectTypes
	kind  kind
	many  bool // an object can have several
	can   rights
	// when says whether a client may give an object the value now; nil: always.
	when func(o *object, value any) bool
	access
}

// access reads and replaces all instances of an attribute.
type access struct {
	get func(*object) []instance
	put func(*object, []instance)
}

// instance is one of the values that an object has of an attribute. Its index
// stays the same for life (section 2.1.1).
type instance struct {
	index int
	value any // as kind decodes it
}

// rights say when a client can set an attribute.
type rights uint

const (
	byCreate rights = 1 << iota
	byRegister
	byRekey
	byAdd
	byModify
	byDelete

	byMaking = byCreate | byRegister | byRekey
	byAll    = byMaking | byAdd | byModify | byDelete
	byServer = rights(0)
)

// objectTypes is a set of types of objects.
type objectTypes uint

const (
	symmetricKeys objectTypes = 1 << kmip14.ObjectTypeSymmetricKey
	templates     objectTypes = 1 << kmip14.ObjectTypeTemplate
	secretData    objectTypes = 1 << kmip14.ObjectTypeSecretData
	opaqueObjects objectTypes = 1 << kmip14.ObjectTypeOpaqueObject

	// cryptographic objects have a state.
	cryptographic = symmetricKeys | secretData
	everything    = cryptographic | templates | opaqueObjects
)

func (t objectTypes) has(objectType uint32) bool { return objectType < 32 && t&(1<<objectType) != 0 }

// attributeNamed finds an attribute that KMIP 1.minor knows. Names with the
// prefixes of section 3.45 are custom attributes: x- of clients, y- of servers.
func attributeNamed(name string, minor int) *attribute {
	if len(name) > maxText {
		return nil
	}
	for i := range attributeTable {
		if a := &attributeTable[i]; a.name == name && a.since <= minor {
			return a
		}
	}
	switch {
	case strings.HasPrefix(name, "x-"):
		return &attribute{name: name, on: everything, kind: customKind, many: true, can: byAll}
	case strings.HasPrefix(name, "y-"):
		return &attribute{name: name, on: everything, kind: customKind, many: true, can: byServer}
	}
	return nil
}

// attributesOf lists the attributes that an object has and KMIP 1.minor knows.
func attributesOf(o *object, minor int) []*attribute {
	var all []*attribute
	for i := range attributeTable {
		if a := &attributeTable[i]; a.since <= minor && len(a.instances(o)) > 0 {
			all = append(all, a)
		}
	}
	var custom []string
	for _, k := range o.Others {
		if isCustom(k.Name) && !slices.Contains(custom, k.Name) {
			custom = append(custom, k.Name)
			all = append(all, attributeNamed(k.Name, minor))
		}
	}
	return all
}

func isCustom(name string) bool {
	return strings.HasPrefix(name, "x-") || strings.HasPrefix(name, "y-")
}

// instances are in the order of their indexes.
func (a *attribute) instances(o *object) []instance {
	if !a.on.has(o.Type) {
		return nil
	}
	if a.get != nil {
		return a.get(o)
	}
	var all []instance
	for _, k := range o.Others {
		if k.Name == a.name {
			all = append(all, instance{k.Index, encoded(k.Value)})
		}
	}
	return all
}

// replace gives an object other instances of the attribute.
func (a *attribute) replace(o *object, all []instance) {
	if a.put != nil {
		a.put(o, all)
		return
	}
	rest := slices.DeleteFunc(slices.Clone(o.Others), func(k other) bool { return k.Name == a.name })
	for _, i := range all {
		rest = append(rest, other{a.name, i.index, []byte(i.value.(encoded))})
	}
	o.Others = rest
}

// wire gives an instance of the attribute as it goes over the wire.
func (a *attribute) wire(i instance, minor int) kmipwire.Attribute {
	if d, ok := i.value.(digest); ok && minor == 0 {
		i.value = digest{sum: d.sum}
	}
	return kmipwire.Attribute{AttributeName: a.name, AttributeIndex: i.index, AttributeValue: a.kind.encode(i.value)}
}

// decode takes a value from the wire.
func (a *attribute) decode(v any) (any, error) {
	value, ok := a.kind.decode(v)
	if !ok {
		return nil, fail(kmip14.ResultReasonInvalidField, "the value of attribute %.60q is not valid", a.name)
	}
	return value, nil
}

// decodeNew takes a value that an object is to have.
func (a *attribute) decodeNew(v any) (any, error) {
	value, err := a.decode(v)
	if err == nil && a.kind.fit != nil {
		err = a.kind.fit(value)
	}
	return value, err
}

// allowed tells whether a client can give the object the value in that way.
func (a *attribute) allowed(o *object, by rights, value any) bool {
	return a.can&by != 0 && a.on.has(o.Type) && (a.when == nil || a.when(o, value))
}

// insert gives an object a value: one more instance where it can have several,
// in place of the one it has otherwise. It tells the instance.
func (a *attribute) insert(o *object, value any) (instance, error) {
	var all []instance
	added := instance{value: value}
	if a.many {
		all = a.instances(o)
		if n := len(all); n > 0 {
			added.index = all[n-1].index + 1
		}
	}
	if len(all) >= maxInstances || a.put == nil && len(o.Others) >= maxOthers {
		return added, fail(kmip14.ResultReasonIndexOutOfBounds, "the object has too many instances of attribute %.60q", a.name)
	}
	a.replace(o, append(all, added))
	return added, nil
}

// setAttributes gives a new object the attributes that a client chose. They
// take the place of those that it has from a template or another object.
func setAttributes(o *object, attrs []kmipwire.Attribute, by rights, minor int) error {
	given := map[string]bool{}
	for _, in := range attrs {
		a := attributeNamed(in.AttributeName, minor)
		if a == nil {
			return fail(kmip14.ResultReasonInvalidField, "there is no attribute %.60q", in.AttributeName)
		}
		value, err := a.decodeNew(in.AttributeValue)
		if err != nil {
			return err
		}
		if !a.allowed(o, by, value) {
			return fail(kmip14.ResultReasonInvalidField, "attribute %.60q cannot be set", a.name)
		}
		if given[a.name] && !a.many {
			return fail(kmip14.ResultReasonInvalidField, "attribute %q, of which an object has one, is given twice", a.name)
		}
		given[a.name] = true
		if _, err := a.insert(o, value); err != nil {
			return err
		}
	}
	return nil
}
