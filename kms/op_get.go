package kms

import (
	"errors"
	"slices"

	"github.com/gemalto/kmip-go/kmip14"
	"github.com/google/uuid"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// get gives out a key (section 4.11).
func (r *request) get(p *kmipwire.GetRequest) (any, error) {
	switch {
	case p.KeyFormatType != 0 && p.KeyFormatType != kmip14.KeyFormatTypeRaw:
		return nil, fail(kmip14.ResultReasonKeyFormatTypeNotSupported, "keys come in the format Raw only")
	case p.KeyWrappingSpecification != nil:
		return nil, fail(kmip14.ResultReasonFeatureNotSupported, "keys cannot be wrapped")
	}
	o, err := r.load(p.UniqueIdentifier)
	if err != nil {
		return nil, err
	}
	if o.material == nil {
		// Section 11 has no reason for it before KMIP 2.0: the client sees from
		// the state that there was a key.
		return nil, fail(kmip14.ResultReasonIllegalOperation, "key %s was destroyed", o.id)
	}
	r.keys = append(r.keys, o.material)
	return &kmipwire.GetResponse{
		ObjectType:       kmip14.ObjectType(o.Type),
		UniqueIdentifier: o.id.String(),
		SymmetricKey:     &kmipwire.SymmetricKey{KeyBlock: o.keyBlock()},
	}, nil
}

func (o *object) keyBlock() kmipwire.KeyBlock {
	return kmipwire.KeyBlock{
		KeyFormatType:          kmip14.KeyFormatTypeRaw,
		KeyValue:               kmipwire.KeyValue{KeyMaterial: o.material},
		CryptographicAlgorithm: kmip14.CryptographicAlgorithm(o.Algorithm),
		CryptographicLength:    o.Length,
	}
}

// getAttributes tells the attributes that were asked for, or all (section
// 4.12). Those that the object does not have are left out.
func (r *request) getAttributes(p *kmipwire.GetAttributesRequest) (any, error) {
	o, err := r.load(p.UniqueIdentifier)
	if err != nil {
		return nil, err
	}
	defer o.wipe()
	out := &kmipwire.GetAttributesResponse{UniqueIdentifier: o.id.String()}
	for _, a := range attributeTable {
		if len(p.AttributeName) == 0 || slices.Contains(p.AttributeName, a.name) {
			out.Attribute = append(out.Attribute, a.instances(o)...)
		}
	}
	return out, nil
}

// load reads the object that a request means. It must be wiped.
func (r *request) load(id string) (o *object, err error) {
	err = r.store.view(func(t *tx) error {
		o, err = r.object(t, id)
		return err
	})
	return o, err
}

// object finds the object with an ID or, without one, the ID placeholder's.
func (r *request) object(t *tx, id string) (*object, error) {
	if id == "" {
		id = r.placeholder
	}
	key, err := uuid.Parse(id)
	if err != nil || key.String() != id {
		return nil, notFound(id)
	}
	o, err := t.get(key)
	if errors.Is(err, errNoObject) {
		return nil, notFound(id)
	}
	return o, err
}

func notFound(id string) error {
	return fail(kmip14.ResultReasonItemNotFound, "there is no object %.40q", id)
}
