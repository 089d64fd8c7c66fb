package kms

import (
	"slices"

	"github.com/gemalto/kmip-go/kmip14"
	"github.com/gemalto/kmip-go/ttlv"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// register stores an object that the client brings (section 4.3).
func (r *request) register(p *kmipwire.RegisterRequest) (any, error) {
	content, known := registrations[p.ObjectType]
	if !known {
		return nil, fail(kmip14.ResultReasonInvalidField, "objects of type %s cannot be registered", p.ObjectType)
	}
	o, err := r.newObject(p.ObjectType)
	if err != nil {
		return nil, err
	}
	defer o.wipe()
	if err := r.describe(o, &p.TemplateAttribute, byRegister); err != nil {
		return nil, err
	}
	if err := content(r, o, p); err != nil {
		return nil, err
	}
	if err := r.add(o); err != nil {
		return nil, err
	}
	return &kmipwire.RegisterResponse{UniqueIdentifier: o.id.String()}, nil
}

// registrations gives, for each type that can be registered, the way to take over
// its content.
var registrations = map[kmip14.ObjectType]func(*request, *object, *kmipwire.RegisterRequest) error{
	kmip14.ObjectTypeSymmetricKey: (*request).takeKey,
	kmip14.ObjectTypeSecretData:   (*request).takeSecret,
	kmip14.ObjectTypeOpaqueObject: (*request).takeOpaque,
	kmip14.ObjectTypeTemplate:     (*request).takeTemplate,
}

func (r *request) takeKey(o *object, p *kmipwire.RegisterRequest) error {
	if p.SymmetricKey == nil {
		return wrongObject(p)
	}
	if err := r.takeBlock(o, &p.SymmetricKey.KeyBlock, kmip14.KeyFormatTypeRaw, kmip14.KeyFormatTypeTransparentSymmetricKey); err != nil {
		return err
	}
	switch {
	case o.Algorithm == 0 || o.Length == 0:
		return fail(kmip14.ResultReasonInvalidField, "the algorithm or the length of the key is missing")
	case o.UsageMask == 0:
		return fail(kmip14.ResultReasonInvalidField, "the cryptographic usage mask is missing")
	case !o.elsewhere() && len(o.material) != materialSize(kmip14.CryptographicAlgorithm(o.Algorithm), o.Length):
		return fail(kmip14.ResultReasonInvalidField, "the key has %d bytes and is said to have %d bits", len(o.material), o.Length)
	}
	return nil
}

func (r *request) takeSecret(o *object, p *kmipwire.RegisterRequest) error {
	if p.SecretData == nil {
		return wrongObject(p)
	}
	o.DataType = uint32(p.SecretData.SecretDataType)
	return r.takeBlock(o, &p.SecretData.KeyBlock, kmip14.KeyFormatTypeRaw, kmip14.KeyFormatTypeOpaque)
}

// takeBlock takes over a key in one of the formats.
func (r *request) takeBlock(o *object, b *kmipwire.KeyBlock, formats ...kmip14.KeyFormatType) error {
	switch {
	case b.KeyWrappingData != nil:
		return fail(kmip14.ResultReasonFeatureNotSupported, "wrapped keys cannot be registered")
	case b.KeyCompressionType != 0:
		return fail(kmip14.ResultReasonKeyCompressionTypeNotSupported, "compressed keys cannot be registered")
	case !slices.Contains(formats, b.KeyFormatType):
		return fail(kmip14.ResultReasonKeyFormatTypeNotSupported, "the key format is not one of %v", formats)
	}
	attrs := b.KeyValue.Attribute
	if a := b.CryptographicAlgorithm; a != 0 {
		attrs = append(attrs, kmipwire.Attribute{AttributeName: kmipwire.AttrCryptographicAlgorithm, AttributeValue: ttlv.EnumValue(a)})
	}
	if n := b.CryptographicLength; n != 0 {
		attrs = append(attrs, kmipwire.Attribute{AttributeName: kmipwire.AttrCryptographicLength, AttributeValue: int32(n)})
	}
	algorithm, length := o.Algorithm, o.Length
	if err := setAttributes(o, attrs, byRegister, r.minor()); err != nil {
		return err
	}
	if algorithm != 0 && algorithm != o.Algorithm || length != 0 && length != o.Length {
		return fail(kmip14.ResultReasonInvalidField, "the algorithm or the length of the key is not as the attributes say")
	}
	o.Format = uint32(b.KeyFormatType)
	if b.KeyValue.KeyMaterial == nil && r.since(2) {
		return o.leaveElsewhere()
	}
	return o.take(b.KeyValue.KeyMaterial)
}

func (*request) takeOpaque(o *object, p *kmipwire.RegisterRequest) error {
	if p.OpaqueObject == nil {
		return wrongObject(p)
	}
	o.DataType = uint32(p.OpaqueObject.OpaqueDataType)
	return o.take(p.OpaqueObject.OpaqueDataValue)
}

func (r *request) takeTemplate(o *object, p *kmipwire.RegisterRequest) error {
	if p.Template == nil {
		return wrongObject(p)
	}
	return o.takeTemplate(p.Template.Attribute, r.minor())
}

func wrongObject(p *kmipwire.RegisterRequest) error {
	return fail(kmip14.ResultReasonInvalidField, "the object is not of type %s", p.ObjectType)
}
