package kms

import (
	"crypto/rand"
	"errors"

	"github.com/gemalto/kmip-go/kmip14"
	"github.com/google/uuid"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// create makes an AES key (section 4.1).
func (r *request) create(p *kmipwire.CreateRequest) (any, error) {
	switch {
	case p.ObjectType != kmip14.ObjectTypeSymmetricKey:
		return nil, fail(kmip14.ResultReasonInvalidField, "only symmetric keys can be created")
	case len(p.TemplateAttribute.Name) > 0:
		return nil, fail(kmip14.ResultReasonItemNotFound, "there are no templates")
	}
	o, err := r.newObject(p.TemplateAttribute.Attribute)
	if err != nil {
		return nil, err
	}
	defer o.wipe()
	if err := r.store.update(func(t *tx) error { return t.add(o) }); err != nil {
		return nil, explainAdd(err)
	}
	r.placeholder = o.id.String()
	return &kmipwire.CreateResponse{ObjectType: p.ObjectType, UniqueIdentifier: r.placeholder}, nil
}

func explainAdd(err error) error {
	if errors.Is(err, errNameTaken) {
		return fail(kmip14.ResultReasonInvalidField, "%v", err)
	}
	return err
}

func (r *request) newObject(attrs []kmipwire.Attribute) (*object, error) {
	now := r.now.Unix()
	o := &object{id: uuid.New()}
	o.Type = uint32(kmip14.ObjectTypeSymmetricKey)
	o.State = uint32(kmip14.StatePreActive)
	o.Owner = r.client
	o.Initial, o.LastChange = now, now
	if err := setAttributes(o, attrs); err != nil {
		return nil, err
	}
	if err := checkAES(o, now); err != nil {
		return nil, err
	}
	if o.Activation != 0 {
		o.State = uint32(kmip14.StateActive)
	}
	o.material = make([]byte, o.Length/8)
	_, err := rand.Read(o.material)
	return o, err
}

// checkAES tells whether the client asked for a key that can be made.
func checkAES(o *object, now int64) error {
	switch {
	case o.Algorithm != uint32(kmip14.CryptographicAlgorithmAES):
		return fail(kmip14.ResultReasonInvalidField, "only AES keys can be created")
	case o.Length != 128 && o.Length != 192 && o.Length != 256:
		return fail(kmip14.ResultReasonInvalidField, "an AES key has a length of 128, 192 or 256 bits")
	case o.UsageMask == 0:
		return fail(kmip14.ResultReasonInvalidField, "the cryptographic usage mask is missing")
	case o.Activation > now:
		return fail(kmip14.ResultReasonInvalidField, "keys cannot be activated at a later date")
	}
	return nil
}
