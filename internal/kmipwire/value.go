package kmipwire

import (
	"bytes"
	"fmt"

	"github.com/gemalto/kmip-go/kmip14"
	"github.com/gemalto/kmip-go/ttlv"
)

// EncodeValue gives the bytes of an Attribute Value: v is of the types that an
// Attribute's value decodes to, or a struct of this package. Values that differ
// have different bytes.
func EncodeValue(v any) ([]byte, error) {
	if structure, ok := v.(ttlv.TTLV); ok {
		// kmip-go leaves on it whatever follows it in the attribute.
		return bytes.Clone(structure[:structure.FullLen()]), nil
	}
	var out bytes.Buffer
	if err := ttlv.NewEncoder(&out).EncodeValue(kmip14.TagAttributeValue, v); err != nil {
		return nil, fmt.Errorf("encode attribute value: %w", err)
	}
	return out.Bytes(), nil
}
