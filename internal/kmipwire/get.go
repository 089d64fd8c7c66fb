package kmipwire

import (
	"fmt"

	"github.com/gemalto/kmip-go/kmip14"
	"github.com/gemalto/kmip-go/ttlv"
)

// Get is what a key manager is asked most: as with the frame, its payloads are
// read and written item by item.

// UnmarshalTTLV decodes the payload.
func (g *GetRequest) UnmarshalTTLV(_ *ttlv.Decoder, v ttlv.TTLV) error {
	for item := v.ValueStructure(); len(item) > 0; item = item.Next() {
		if err := g.take(item); err != nil {
			return err
		}
	}
	return nil
}

// take sorts in the first item.
func (g *GetRequest) take(item ttlv.TTLV) error {
	want := ttlv.TypeEnumeration
	switch item.Tag() {
	case kmip14.TagUniqueIdentifier:
		want, g.UniqueIdentifier = ttlv.TypeTextString, item.ValueTextString()
	case kmip14.TagKeyFormatType:
		g.KeyFormatType = kmip14.KeyFormatType(item.ValueEnumeration())
	case kmip14.TagKeyCompressionType:
		g.KeyCompressionType = kmip14.KeyCompressionType(item.ValueEnumeration())
	case kmip14.TagKeyWrappingSpecification:
		want, g.KeyWrappingSpecification = ttlv.TypeStructure, item[:item.FullLen()]
	default:
		return nil
	}
	if item.Type() != want {
		return fmt.Errorf("%s is no %s", item.Tag(), want)
	}
	return nil
}

// encodeSymmetricKey writes the payload of a response that holds such a key.
func (g *GetResponse) encodeSymmetricKey(e *ttlv.Encoder) error {
	return e.EncodeStructure(kmip14.TagResponsePayload, func(e *ttlv.Encoder) error {
		e.EncodeEnumeration(kmip14.TagObjectType, uint32(g.ObjectType))
		e.EncodeTextString(kmip14.TagUniqueIdentifier, g.UniqueIdentifier)
		return e.EncodeStructure(kmip14.TagSymmetricKey, func(e *ttlv.Encoder) error {
			return e.EncodeStructure(kmip14.TagKeyBlock, g.SymmetricKey.KeyBlock.encode)
		})
	})
}

func (k *KeyBlock) encode(e *ttlv.Encoder) error {
	e.EncodeEnumeration(kmip14.TagKeyFormatType, uint32(k.KeyFormatType))
	if k.KeyCompressionType != 0 {
		e.EncodeEnumeration(kmip14.TagKeyCompressionType, uint32(k.KeyCompressionType))
	}
	if err := k.KeyValue.MarshalTTLV(e, kmip14.TagKeyValue); err != nil {
		return err
	}
	if k.CryptographicAlgorithm != 0 {
		e.EncodeEnumeration(kmip14.TagCryptographicAlgorithm, uint32(k.CryptographicAlgorithm))
	}
	if k.CryptographicLength != 0 {
		e.EncodeInteger(kmip14.TagCryptographicLength, int32(k.CryptographicLength))
	}
	return nil
}
