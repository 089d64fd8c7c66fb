package kms

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"math/bits"
	"slices"

	"github.com/gemalto/kmip-go/kmip14"
	"github.com/gemalto/kmip-go/ttlv"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
	"github.com/vmcrypt/vmcrypt/internal/secret"
)

// algorithms are those that keys can be made for, with the lengths of their
// keys in bits.
var algorithms = map[kmip14.CryptographicAlgorithm][]int32{
	kmip14.CryptographicAlgorithmAES:         {128, 192, 256},
	kmip14.CryptographicAlgorithmDES3:        {112, 168},
	kmip14.CryptographicAlgorithmSKIPJACK:    {80},
	kmip14.CryptographicAlgorithmHMAC_SHA256: {256},
	kmip14.CryptographicAlgorithmHMAC_SHA384: {384},
	kmip14.CryptographicAlgorithmHMAC_SHA512: {512},
}

// generate makes the key that the attributes of an object ask for.
func (o *object) generate() error {
	algorithm := kmip14.CryptographicAlgorithm(o.Algorithm)
	lengths, known := algorithms[algorithm]
	switch {
	case !known:
		return fail(kmip14.ResultReasonInvalidField, "keys are not made for the algorithm %s", algorithm)
	case !slices.Contains(lengths, o.Length):
		return fail(kmip14.ResultReasonInvalidField, "a key for %s has a length of %v bits", algorithm, lengths)
	case o.UsageMask == 0:
		return fail(kmip14.ResultReasonInvalidField, "the cryptographic usage mask is missing")
	}
	o.material = make([]byte, materialSize(algorithm, o.Length))
	_, err := rand.Read(o.material)
	if algorithm == kmip14.CryptographicAlgorithmDES3 {
		setParity(o.material)
	}
	o.Digest = o.digest()
	return err
}

// materialSize is the number of bytes of a key: DES keys have a parity bit in
// each.
func materialSize(algorithm kmip14.CryptographicAlgorithm, length int32) int {
	if algorithm == kmip14.CryptographicAlgorithmDES3 {
		return int(length) / 7
	}
	return int(length) / 8
}

// setParity makes the number of bits in every byte odd.
func setParity(key []byte) {
	for i, b := range key {
		key[i] = b&^1 | byte(1-bits.OnesCount8(b&^1)%2)
	}
}

// format is the Key Format Type of the material.
func (o *object) format() uint32 {
	switch {
	case o.Format != 0:
		return o.Format
	case o.Type == uint32(kmip14.ObjectTypeOpaqueObject):
		return 0
	}
	return uint32(kmip14.KeyFormatTypeRaw)
}

// digest is the SHA-256 of the material in its format; that of a transparent
// key is the structure which holds the key.
func (o *object) digest() []byte {
	h := sha256.New()
	if kmip14.KeyFormatType(o.Format) == kmip14.KeyFormatTypeTransparentSymmetricKey {
		key := header(kmip14.TagKey, ttlv.TypeByteString, len(o.material))
		padded := (len(o.material) + 7) / 8 * 8
		h.Write(header(kmip14.TagKeyMaterial, ttlv.TypeStructure, len(key)+padded))
		h.Write(key)
		h.Write(o.material)
		h.Write(make([]byte, padded-len(o.material)))
	} else {
		h.Write(o.material)
	}
	return h.Sum(nil)
}

// header gives the tag, type and length of a TTLV item.
func header(tag ttlv.Tag, t ttlv.Type, length int) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, uint32(tag)<<8|uint32(t)), uint32(length))
}

// keyBlock gives the material in a format. It shares the bytes of the object.
func (o *object) keyBlock(format kmip14.KeyFormatType) kmipwire.KeyBlock {
	b := kmipwire.KeyBlock{
		KeyFormatType:          format,
		CryptographicAlgorithm: kmip14.CryptographicAlgorithm(o.Algorithm),
		CryptographicLength:    int(o.Length),
	}
	b.KeyValue.KeyMaterial = o.material
	b.KeyValue.Transparent = format == kmip14.KeyFormatTypeTransparentSymmetricKey
	return b
}

// take makes a copy of what a client sent the material of an object.
func (o *object) take(material []byte) error {
	if len(material) == 0 || len(material) > maxMaterial {
		return fail(kmip14.ResultReasonInvalidField, "an object has 1 to %d bytes", maxMaterial)
	}
	secret.Wipe(o.material)
	o.material = slices.Clone(material)
	o.Digest = o.digest()
	return nil
}

// leaveElsewhere notes that the client keeps the material of an object itself, in
// an HSM perhaps (section 3.41).
func (o *object) leaveElsewhere() error {
	_, err := keyValuePresent().insert(o, keep(false))
	return err
}

// elsewhere tells whether the server has never had the material of an object.
func (o *object) elsewhere() bool { return len(keyValuePresent().instances(o)) > 0 }

func keyValuePresent() *attribute { return attributeNamed(kmipwire.AttrKeyValuePresent, newestMinor) }

// maxMaterial leaves room in a message for the rest of an object.
const maxMaterial = 512 << 10 // bytes
