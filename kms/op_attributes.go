package kms

import (
	"errors"
	"slices"

	"github.com/gemalto/kmip-go/kmip14"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// getAttributes tells the attributes that were asked for, or all (section
// 4.12). Those that the object does not have are left out.
func (r *request) getAttributes(p *kmipwire.GetAttributesRequest) (any, error) {
	for i, name := range p.AttributeName {
		if slices.Contains(p.AttributeName[:i], name) {
			return nil, fail(kmip14.ResultReasonInvalidMessage, "attribute %.60q is asked for twice", name)
		}
	}
	o, err := r.load(p.UniqueIdentifier)
	if err != nil {
		return nil, err
	}
	defer o.wipe()
	out := &kmipwire.GetAttributesResponse{UniqueIdentifier: o.id.String()}
	for _, a := range attributesOf(o, r.minor()) {
		if len(p.AttributeName) > 0 && !slices.Contains(p.AttributeName, a.name) {
			continue
		}
		for _, i := range a.instances(o) {
			out.Attribute = append(out.Attribute, a.wire(i, r.minor()))
		}
	}
	return out, nil
}

// getAttributeList names the attributes that the object has (section 4.13).
func (r *request) getAttributeList(p *kmipwire.GetAttributeListRequest) (any, error) {
	o, err := r.load(p.UniqueIdentifier)
	if err != nil {
		return nil, err
	}
	defer o.wipe()
	out := &kmipwire.GetAttributeListResponse{UniqueIdentifier: o.id.String()}
	for _, a := range attributesOf(o, r.minor()) {
		out.AttributeName = append(out.AttributeName, a.name)
	}
	return out, nil
}

// addAttribute is section 4.14.
func (r *request) addAttribute(p *kmipwire.AddAttributeRequest) (any, error) {
	if p.Attribute.AttributeIndex != 0 {
		return nil, fail(kmip14.ResultReasonInvalidField, "the index of a new attribute is the server's to choose")
	}
	a, value, err := r.attribute(&p.Attribute, byAdd)
	if err != nil {
		return nil, err
	}
	var added instance
	id, err := r.changeAttribute(p.UniqueIdentifier, a, func(o *object) error {
		switch {
		case a.can&byAdd != 0 && !a.many && a.on.has(o.Type) && len(a.instances(o)) > 0:
			return fail(kmip14.ResultReasonIllegalOperation, "the object has attribute %.60q: modify it", a.name)
		case !a.allowed(o, byAdd, value):
			return readOnly(a.name)
		}
		added, err = a.insert(o, value)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &kmipwire.AddAttributeResponse{UniqueIdentifier: id, Attribute: a.wire(added, r.minor())}, nil
}

// modifyAttribute is section 4.15.
func (r *request) modifyAttribute(p *kmipwire.ModifyAttributeRequest) (any, error) {
	a, value, err := r.attribute(&p.Attribute, byModify)
	if err != nil {
		return nil, err
	}
	changed := instance{p.Attribute.AttributeIndex, value}
	id, err := r.changeAttribute(p.UniqueIdentifier, a, func(o *object) error {
		all := a.instances(o)
		switch {
		case len(all) == 0:
			return fail(kmip14.ResultReasonInvalidField, "the object does not have attribute %.60q: add it", a.name)
		case !a.allowed(o, byModify, value):
			return readOnly(a.name)
		}
		n, err := a.at(all, changed.index)
		if err != nil {
			return err
		}
		all[n] = changed
		a.replace(o, all)
		return nil
	})
	return &kmipwire.ModifyAttributeResponse{UniqueIdentifier: id, Attribute: a.wire(changed, r.minor())}, err
}

// deleteAttribute is section 4.16.
func (r *request) deleteAttribute(p *kmipwire.DeleteAttributeRequest) (any, error) {
	a := attributeNamed(p.AttributeName, r.minor())
	if a == nil {
		return nil, fail(kmip14.ResultReasonItemNotFound, "there is no attribute %.60q", p.AttributeName)
	}
	if a.can&byDelete == 0 {
		return nil, readOnly(a.name)
	}
	var deleted instance
	id, err := r.changeAttribute(p.UniqueIdentifier, a, func(o *object) error {
		all := a.instances(o)
		n, err := a.at(all, p.AttributeIndex)
		if err != nil {
			return err
		}
		deleted = all[n]
		a.replace(o, slices.Delete(all, n, n+1))
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &kmipwire.DeleteAttributeResponse{UniqueIdentifier: id, Attribute: a.wire(deleted, r.minor())}, nil
}

// attribute decodes one that a client wants to set.
func (r *request) attribute(in *kmipwire.Attribute, by rights) (*attribute, any, error) {
	a := attributeNamed(in.AttributeName, r.minor())
	if a == nil || a.can&by == 0 {
		return nil, nil, readOnly(in.AttributeName)
	}
	value, err := a.decodeNew(in.AttributeValue)
	return a, value, err
}

// at finds the instance with an index.
func (a *attribute) at(all []instance, index int) (int, error) {
	n := slices.IndexFunc(all, func(i instance) bool { return i.index == index })
	if n < 0 {
		return 0, fail(kmip14.ResultReasonItemNotFound, "the object has no instance %d of attribute %.60q", index, a.name)
	}
	return n, nil
}

// changeAttribute is change for attributes.
func (r *request) changeAttribute(id string, a *attribute, fn func(*object) error) (string, error) {
	changed, err := r.change(id, func(o *object) error {
		if err := fn(o); err != nil {
			return err
		}
		if slices.Contains(lifeCycle, a.name) {
			return o.checkDates()
		}
		return nil
	})
	if errors.Is(err, errNameTaken) {
		return "", fail(kmip14.ResultReasonIllegalOperation, "%v", err)
	}
	return changed, err
}

func readOnly(name string) error {
	return fail(kmip14.ResultReasonPermissionDenied, "attribute %.60q of this object is not for clients to set now", name)
}
