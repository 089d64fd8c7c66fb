package kms

import (
	"time"

	"github.com/gemalto/kmip-go/kmip14"
	"github.com/gemalto/kmip-go/ttlv"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

const (
	maxText  = 1024    // bytes of a name or a message
	maxValue = 8 << 10 // bytes of an attribute that is only kept, encoded
)

// kind is a type of attribute values. Decoded values can be compared with ==.
type kind struct {
	decode func(any) (any, bool) // of a value from the wire
	encode func(any) any
	// covers tells whether an object that has one value is located by another;
	// nil where they must be equal.
	covers func(has, wanted any) bool
	// fit tells why no object can have a value; nil where any can.
	fit func(value any) error
}

// Decoded values: string, int32, uint32 for an enumeration, int64 for a date,
// bool, time.Duration, name, revocation, digest, and encoded for all attributes
// that the server only keeps.
var (
	textKind    = kind{decode: as[string], encode: same}
	integerKind = kind{decode: as[int32], encode: same}
	booleanKind = kind{decode: as[bool], encode: same}
	leaseKind   = kind{decode: as[time.Duration], encode: same}
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
	revocationKind = kind{decode: decodeRevocation, encode: encodeRevocation}
	digestKind     = kind{decode: decodeDigest, encode: encodeDigest}

	customKind      = keptKind(func(any) bool { return true })
	keptTextKind    = keptKind(func(v any) bool { s, ok := v.(string); return ok && s != "" })
	keptStructKind  = keptKind(func(v any) bool { _, ok := v.(ttlv.TTLV); return ok })
	keptBooleanKind = keptKind(func(v any) bool { _, ok := v.(bool); return ok })
	policyKind      = keptKind(func(v any) bool { return v == "default" })
	linkKind        = keptKind(valid(validLink))
	applicationKind = fitting(keptKind(valid(validApplication)), withData)
	alternativeKind = keptKind(valid(validAlternative))
	locationKind    = keptKind(valid(validLocation))
)

func as[T any](v any) (any, bool) { t, ok := v.(T); return t, ok }

func same(v any) any { return v }

// encoded is a value that the server only keeps, as it is encoded.
type encoded string

// keptKind is the kind of attributes whose values the server keeps if they pass
// check.
func keptKind(check func(any) bool) kind {
	return kind{
		decode: func(v any) (any, bool) {
			if !check(v) {
				return nil, false
			}
			text, err := kmipwire.EncodeValue(v)
			return encoded(text), err == nil && len(text) > 0 && len(text) <= maxValue
		},
		encode: func(v any) any { return ttlv.TTLV(v.(encoded)) },
	}
}

// keep gives the value of an attribute that the server sets itself.
func keep(v any) encoded {
	text, err := kmipwire.EncodeValue(v)
	if err != nil {
		panic(err) // not a struct of kmipwire
	}
	return encoded(text)
}

// valid makes a check of values out of one of structures.
func valid[T any](check func(T) bool) func(any) bool {
	return func(v any) bool {
		var s T
		return kmipwire.UnmarshalPayload(v, &s) == nil && check(s)
	}
}

func validLink(l kmipwire.Link) bool {
	return l.LinkType != 0 && l.LinkedObjectIdentifier != ""
}

func validApplication(a kmipwire.ApplicationSpecificInformation) bool {
	return a.ApplicationNamespace != ""
}

func fitting(k kind, fit func(any) error) kind {
	k.fit = fit
	return k
}

// withData refuses to make up Application Data, as a server may that knows what
// a namespace is for (section 3.36).
func withData(v any) error {
	var a kmipwire.ApplicationSpecificInformation
	if err := kmipwire.UnmarshalPayload(ttlv.TTLV(v.(encoded)), &a); err != nil {
		return err
	}
	if a.ApplicationData == "" {
		return fail(kmip14.ResultReasonApplicationNamespaceNotSupported, "there is no application data for the namespace %.60q", a.ApplicationNamespace)
	}
	return nil
}

func validAlternative(a kmipwire.AlternativeName) bool {
	return a.AlternativeNameValue != "" && a.AlternativeNameType != 0
}

func validLocation(l kmipwire.KeyValueLocation) bool {
	return l.KeyValueLocationValue != "" && l.KeyValueLocationType != 0
}

func decodeName(v any) (any, bool) {
	var n kmipwire.Name
	if err := kmipwire.UnmarshalPayload(v, &n); err != nil {
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

func decodeRevocation(v any) (any, bool) {
	var r kmipwire.RevocationReason
	err := kmipwire.UnmarshalPayload(v, &r)
	return revocation{Code: uint32(r.RevocationReasonCode), Message: r.RevocationMessage}, err == nil
}

func encodeRevocation(v any) any {
	r := v.(revocation)
	return kmipwire.RevocationReason{RevocationReasonCode: kmip14.RevocationReasonCode(r.Code), RevocationMessage: r.Message}
}

// digest is the SHA-256 of the material in a format.
type digest struct {
	sum    string
	format uint32 // 0 where the client's version does not tell it
}

func decodeDigest(v any) (any, bool) {
	var d kmipwire.Digest
	err := kmipwire.UnmarshalPayload(v, &d)
	return digest{string(d.DigestValue), uint32(d.KeyFormatType)}, err == nil && d.HashingAlgorithm == kmip14.HashingAlgorithmSHA_256
}

func encodeDigest(v any) any {
	d := v.(digest)
	return kmipwire.Digest{
		HashingAlgorithm: kmip14.HashingAlgorithmSHA_256,
		DigestValue:      []byte(d.sum),
		KeyFormatType:    kmip14.KeyFormatType(d.format),
	}
}
