package kms

import (
	"errors"

	"github.com/gemalto/kmip-go/kmip14"
	"github.com/gemalto/kmip-go/ttlv"
	"github.com/google/uuid"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// get gives out an object (section 4.11).
func (r *request) get(p *kmipwire.GetRequest) (any, error) {
	switch {
	case p.KeyWrappingSpecification != nil:
		return nil, fail(kmip14.ResultReasonFeatureNotSupported, "keys cannot be wrapped")
	case p.KeyCompressionType != 0:
		return nil, fail(kmip14.ResultReasonKeyCompressionTypeNotSupported, "keys cannot be compressed")
	}
	o, err := r.load(p.UniqueIdentifier)
	if err != nil {
		return nil, err
	}
	r.keys = append(r.keys, o.material)
	if err := r.checkGet(o); err != nil {
		return nil, err
	}
	out := &kmipwire.GetResponse{ObjectType: kmip14.ObjectType(o.Type), UniqueIdentifier: o.id.String()}
	if err := o.content(p.KeyFormatType, out); err != nil {
		return nil, err
	}
	return out, r.served(o)
}

// checkGet tells whether the object may be given out, and as it is.
func (r *request) checkGet(o *object) error {
	switch {
	case o.archived():
		return archivedError(o)
	case o.destroyed():
		// The case TC-314 of OASIS wants this reason; there is one of its own
		// since KMIP 2.0. The client sees from the state that there was an object.
		return fail(kmip14.ResultReasonItemNotFound, "object %s was destroyed", o.id)
	case o.Sensitive:
		return fail(r.reason(4, kmip14.ResultReasonSensitive, kmip14.ResultReasonPermissionDenied),
			"key %s is sensitive: it would have to be wrapped", o.id)
	case o.Unextractable:
		return fail(r.reason(4, kmip14.ResultReasonNotExtractable, kmip14.ResultReasonPermissionDenied),
			"key %s is not extractable", o.id)
	}
	return nil
}

// content puts an object into a response, in a format if it is a key.
func (o *object) content(format kmip14.KeyFormatType, out *kmipwire.GetResponse) error {
	if format == 0 {
		format = kmip14.KeyFormatType(o.format())
	}
	switch {
	case out.ObjectType == kmip14.ObjectTypeTemplate:
		out.Template = &kmipwire.Template{Attribute: o.templateAttributes()}
	case out.ObjectType == kmip14.ObjectTypeOpaqueObject:
		out.OpaqueObject = &kmipwire.OpaqueObject{OpaqueDataType: ttlv.EnumValue(o.DataType), OpaqueDataValue: o.material}
	case !o.comesAs(format):
		return fail(kmip14.ResultReasonKeyFormatTypeNotSupported, "the key does not come in the format %s", format)
	case out.ObjectType == kmip14.ObjectTypeSecretData:
		out.SecretData = &kmipwire.SecretData{SecretDataType: kmip14.SecretDataType(o.DataType), KeyBlock: o.keyBlock(format)}
	default:
		out.SymmetricKey = &kmipwire.SymmetricKey{KeyBlock: o.keyBlock(format)}
	}
	return nil
}

// comesAs tells whether a key can be given in a format: its bytes as they are,
// which some clients call Opaque, or, if it is a symmetric key, in a structure.
func (o *object) comesAs(format kmip14.KeyFormatType) bool {
	switch format {
	case kmip14.KeyFormatTypeRaw, kmip14.KeyFormatTypeOpaque:
		return true
	case kmip14.KeyFormatTypeTransparentSymmetricKey:
		return o.Type == uint32(kmip14.ObjectTypeSymmetricKey)
	}
	return false
}

// served notes that a client has the object: it is no longer fresh.
func (r *request) served(o *object) error {
	if !o.Fresh {
		return nil
	}
	return r.update(func(t *tx) error {
		now, err := t.get(o.id)
		if err != nil {
			return err
		}
		defer now.wipe()
		now.Fresh = false
		return t.put(now)
	})
}

// load reads the object that a request means. It must be wiped.
func (r *request) load(id string) (o *object, err error) {
	err = r.view(func(t *tx) error {
		o, err = r.object(t, id)
		return err
	})
	return o, err
}

// object finds the client's object with an ID or, without one, the ID
// placeholder's. Those of others are as unknown as those that there are not.
func (r *request) object(t *tx, id string) (*object, error) {
	if id == "" {
		id = r.placeholder
	}
	key, err := uuid.Parse(id)
	if err != nil || key.String() != id {
		return nil, notFound(id)
	}
	r.subject = id
	o, err := t.get(key)
	switch {
	case errors.Is(err, errNoObject):
		return nil, notFound(id)
	case err != nil:
		return nil, err
	case o.Owner != r.client:
		o.wipe()
		return nil, notFound(id)
	}
	o.advance(r.now.Unix())
	return o, nil
}

// usable is object for operations that an archived object is not there for.
func (r *request) usable(t *tx, id string) (*object, error) {
	o, err := r.object(t, id)
	if err == nil && o.archived() {
		o.wipe()
		return nil, archivedError(o)
	}
	return o, err
}

// change applies fn to the object that a request means, and tells its ID.
func (r *request) change(id string, fn func(*object) error) (changed string, err error) {
	err = r.update(func(t *tx) error {
		o, err := r.usable(t, id)
		if err != nil {
			return err
		}
		defer o.wipe()
		if err := fn(o); err != nil {
			return err
		}
		changed = o.id.String()
		return r.put(t, o)
	})
	return changed, err
}

// put stores an object that was changed.
func (r *request) put(t *tx, o *object) error {
	o.LastChange = r.now.Unix()
	o.advance(r.now.Unix())
	return t.put(o)
}

func notFound(id string) error {
	return fail(kmip14.ResultReasonItemNotFound, "there is no object %.40q", id)
}

func archivedError(o *object) error {
	return fail(kmip14.ResultReasonObjectArchived, "object %s is archived: recover it first", o.id)
}
