package kms

import (
	"time"

	"github.com/gemalto/kmip-go/kmip14"
	"github.com/gemalto/kmip-go/ttlv"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

const (
	maxNames = 16   // of an object
	maxText  = 1024 // bytes of a name or a message
)

// attribute is one that objects have (section 3).
type attribute struct {
	name string
	kind kind
	get  func(*object) []any      // its values, as kind decodes them
	set  func(*object, any) error // by Create; nil where the server decides
}

// attributeTable lists the attributes in the order in which they are told.
var attributeTable = []attribute{
	{kmipwire.AttrUniqueIdentifier, textKind, func(o *object) []any { return one(o.id.String()) }, nil},
	{kmipwire.AttrName, nameKind, names, addName},
	{kmipwire.AttrObjectType, enumKind, func(o *object) []any { return one(o.Type) }, nil},
	{kmipwire.AttrCryptographicAlgorithm, enumKind, func(o *object) []any { return one(o.Algorithm) },
		func(o *object, v any) error { return once(&o.Algorithm, v.(uint32)) }},
	{kmipwire.AttrCryptographicLength, integerKind, func(o *object) []any { return one(int32(o.Length)) },
		func(o *object, v any) error { return once(&o.Length, int(v.(int32))) }},
	{kmipwire.AttrCryptographicUsageMask, maskKind, func(o *object) []any { return one(o.UsageMask) },
		func(o *object, v any) error { return once(&o.UsageMask, v.(int32)) }},
	{kmipwire.AttrState, enumKind, func(o *object) []any { return one(o.State) }, nil},
	{kmipwire.AttrInitialDate, dateKind, func(o *object) []any { return date(o.Initial) }, nil},
	{kmipwire.AttrActivationDate, dateKind, func(o *object) []any { return date(o.Activation) },
		func(o *object, v any) error { return once(&o.Activation, v.(int64)) }},
	{kmipwire.AttrDeactivationDate, dateKind, func(o *object) []any { return date(o.Deactivation) }, nil},
	{kmipwire.AttrDestroyDate, dateKind, func(o *object) []any { return date(o.Destroy) }, nil},
	{"Compromise Occurrence Date", dateKind, func(o *object) []any { return date(o.CompromiseOccr) }, nil},
	{kmipwire.AttrCompromiseDate, dateKind, func(o *object) []any { return date(o.Compromise) }, nil},
	{kmipwire.AttrRevocationReason, revocationKind, revocations, nil},
	{kmipwire.AttrLastChangeDate, dateKind, func(o *object) []any { return date(o.LastChange) }, nil},
}

func attributeNamed(name string) *attribute {
	for i := range attributeTable {
		if attributeTable[i].name == name {
			return &attributeTable[i]
		}
	}
	return nil
}

// instances gives the attribute of an object as it goes over the wire.
func (a *attribute) instances(o *object) []kmipwire.Attribute {
	var out []kmipwire.Attribute
	for i, v := range a.get(o) {
		out = append(out, kmipwire.Attribute{AttributeName: a.name, AttributeIndex: i, AttributeValue: a.kind.encode(v)})
	}
	return out
}

// setAttributes gives a new object the attributes that a client chose.
func setAttributes(o *object, attrs []kmipwire.Attribute) error {
	for _, a := range attrs {
		t := attributeNamed(a.AttributeName)
		if t == nil || t.set == nil {
			return fail(kmip14.ResultReasonInvalidField, "attribute %.60q cannot be set", a.AttributeName)
		}
		value, ok := t.kind.decode(a.AttributeValue)
		if !ok {
			return badValue(a.AttributeName)
		}
		if err := t.set(o, value); err != nil {
			return err
		}
	}
	return nil
}

func badValue(attribute string) error {
	return fail(kmip14.ResultReasonInvalidField, "the value of attribute %q is not valid", attribute)
}

func one(v any) []any { return []any{v} }

func date(seconds int64) []any {
	if seconds == 0 {
		return nil
	}
	return one(seconds)
}

// once sets an attribute that an object has one of.
func once[T comparable](field *T, value T) error {
	var unset T
	if *field != unset {
		return fail(kmip14.ResultReasonInvalidField, "an attribute that an object has one of is given twice")
	}
	*field = value
	return nil
}

func names(o *object) []any {
	var out []any
	for _, n := range o.Names {
		out = append(out, n)
	}
	return out
}

func addName(o *object, v any) error {
	if len(o.Names) == maxNames {
		return fail(kmip14.ResultReasonIndexOutOfBounds, "more than %d names", maxNames)
	}
	o.Names = append(o.Names, v.(name))
	return nil
}

func revocations(o *object) []any {
	if o.Revocation == nil {
		return nil
	}
	return one(*o.Revocation)
}

// kind is a type of attribute values. Decoded values can be compared with ==.
type kind struct {
	decode func(any) (any, bool)
	encode func(any) any
	// covers tells whether an object that has one value is located by another;
	// nil where they must be equal.
	covers func(has, wanted any) bool
}

var (
	textKind    = kind{decode: as[string], encode: same}
	integerKind = kind{decode: as[int32], encode: same}
	maskKind    = kind{
		decode: as[int32], encode: same,
		covers: func(has, wanted any) bool { return has.(int32)&wanted.(int32) == wanted.(int32) },
	}
	enumKind = kind{
		decode: func(v any) (any, bool) { e, ok := v.(ttlv.EnumValue); return uint32(e), ok },
		encode: func(v any) any { return ttlv.EnumValue(v.(uint32)) },
	}
	dateKind = kind{
		decode: func(v any) (any, bool) { t, ok := v.(time.Time); return t.Unix(), ok },
		encode: func(v any) any { return time.Unix(v.(int64), 0) },
	}
	nameKind       = kind{decode: decodeName, encode: encodeName}
	revocationKind = kind{decode: undecodable, encode: encodeRevocation}
)

func as[T any](v any) (any, bool) { t, ok := v.(T); return t, ok }

func same(v any) any { return v }

func undecodable(any) (any, bool) { return nil, false }

func decodeName(v any) (any, bool) {
	structure, ok := v.(ttlv.TTLV)
	if !ok {
		return nil, false
	}
	var n kmipwire.Name
	if err := kmipwire.Unmarshal(structure, &n); err != nil {
		return nil, false
	}
	valid := n.NameValue != "" && len(n.NameValue) <= maxText &&
		(n.NameType == kmip14.NameTypeUninterpretedTextString || n.NameType == kmip14.NameTypeURI)
	return name{Value: n.NameValue, Type: uint32(n.NameType)}, valid
}

func encodeName(v any) any {
	n := v.(name)
	return kmipwire.Name{NameValue: n.Value, NameType: kmip14.NameType(n.Type)}
}

func encodeRevocation(v any) any {
	r := v.(revocation)
	return kmipwire.RevocationReason{RevocationReasonCode: kmip14.RevocationReasonCode(r.Code), RevocationMessage: r.Message}
}
