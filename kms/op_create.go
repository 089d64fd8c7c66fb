package kms

import (
	"errors"

	"github.com/gemalto/kmip-go/kmip14"
	"github.com/google/uuid"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// create makes a symmetric key (section 4.1).
func (r *request) create(p *kmipwire.CreateRequest) (any, error) {
	if p.ObjectType != kmip14.ObjectTypeSymmetricKey {
		return nil, fail(kmip14.ResultReasonInvalidField, "only symmetric keys can be created")
	}
	o, err := r.newObject(p.ObjectType)
	if err != nil {
		return nil, err
	}
	defer o.wipe()
	if err := r.describe(o, &p.TemplateAttribute, byCreate); err != nil {
		return nil, err
	}
	if err := r.generate(o); err != nil {
		return nil, err
	}
	if err := r.add(o); err != nil {
		return nil, err
	}
	return &kmipwire.CreateResponse{ObjectType: p.ObjectType, UniqueIdentifier: o.id.String()}, nil
}

// newObject begins an object. The times in their IDs keep those that are made
// one after another together, and in this order.
func (r *request) newObject(t kmip14.ObjectType) (*object, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return nil, err
	}
	now := r.now.Unix()
	o := &object{id: id}
	o.Type, o.Owner = uint32(t), r.client
	o.Initial, o.LastChange = now, now
	o.Fresh = t != kmip14.ObjectTypeTemplate
	if cryptographic.has(o.Type) {
		o.State = uint32(kmip14.StatePreActive)
	}
	return o, nil
}

// generate makes the key of an object that has its attributes.
func (r *request) generate(o *object) error {
	if err := o.generate(); err != nil {
		return err
	}
	o.Original = o.Initial
	o.AlwaysSensitive, o.NeverExtractable = o.Sensitive, o.Unextractable
	rng := attributeNamed(kmipwire.AttrRandomNumberGenerator, newestMinor)
	rng.replace(o, []instance{{value: keep(kmipwire.RNGParameters{RNGAlgorithm: kmip14.RNGAlgorithmUnspecified})}})
	return nil
}

// newestMinor is the version 1.4, which knows all attributes.
const newestMinor = 4

// describe gives a new object the attributes of templates and those that the
// client chose itself.
func (r *request) describe(o *object, t *kmipwire.TemplateAttribute, by rights) error {
	for _, n := range t.Name {
		template, err := r.template(n)
		if err != nil {
			return err
		}
		if err := setAttributes(o, template.forObject(o, by), by, newestMinor); err != nil {
			return err
		}
	}
	if err := setAttributes(o, t.Attribute, by, r.minor()); err != nil {
		return err
	}
	if err := o.checkDates(); err != nil {
		return err
	}
	o.advance(r.now.Unix())
	return nil
}

// template finds the template that the client calls by a name.
func (r *request) template(n kmipwire.Name) (found *object, err error) {
	err = r.view(func(t *tx) error {
		id, err := t.find(r.client, name{n.NameValue, uint32(n.NameType)})
		if err != nil {
			return err
		}
		found, err = t.get(id)
		return err
	})
	switch {
	case errors.Is(err, errNoObject):
		return nil, fail(kmip14.ResultReasonItemNotFound, "there is no template %.60q", n.NameValue)
	case err != nil:
		return nil, err
	case found.Type != uint32(kmip14.ObjectTypeTemplate) || found.destroyed():
		found.wipe()
		return nil, fail(kmip14.ResultReasonItemNotFound, "there is no template %.60q", n.NameValue)
	case found.archived():
		return nil, fail(kmip14.ResultReasonObjectArchived, "template %.60q is archived", n.NameValue)
	}
	return found, nil
}

// add stores a new object, which the ID placeholder then stands for.
func (r *request) add(o *object) error {
	err := r.update(func(t *tx) error { return t.add(o) })
	if errors.Is(err, errNameTaken) {
		return fail(kmip14.ResultReasonInvalidField, "%v", err)
	}
	if err == nil {
		r.placeholder = o.id.String()
		r.subject = r.placeholder
	}
	return err
}
