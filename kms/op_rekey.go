package kms

import (
	"errors"
	"slices"

	"github.com/gemalto/kmip-go/kmip14"
	"github.com/gemalto/kmip-go/ttlv"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// reKey makes a key to replace another, which loses its names to it (section
// 4.4).
func (r *request) reKey(p *kmipwire.ReKeyRequest) (any, error) {
	var id string
	err := r.update(func(t *tx) error {
		old, err := r.usable(t, p.UniqueIdentifier)
		if err != nil {
			return err
		}
		defer old.wipe()
		key, err := r.replacement(old, p)
		if err != nil {
			return err
		}
		defer key.wipe()
		if err := replace(old, key); err != nil {
			return err
		}
		id = key.id.String()
		if err := r.put(t, old); err != nil {
			return err
		}
		return t.add(key)
	})
	if errors.Is(err, errNameTaken) {
		err = fail(kmip14.ResultReasonInvalidField, "%v", err)
	}
	if err != nil {
		return nil, err
	}
	r.placeholder = id
	return &kmipwire.ReKeyResponse{UniqueIdentifier: id}, nil
}

// replacement makes the new key.
func (r *request) replacement(old *object, p *kmipwire.ReKeyRequest) (*object, error) {
	if err := r.checkReKey(old, p); err != nil {
		return nil, err
	}
	key, err := r.newObject(kmip14.ObjectTypeSymmetricKey)
	if err != nil {
		return nil, err
	}
	key.inherit(old)
	if p.Offset != nil {
		key.shift(key.Initial + int64(p.Offset.Seconds()) - old.Activation)
	}
	if err := r.describe(key, &p.TemplateAttribute, byRekey); err != nil {
		return nil, err
	}
	return key, r.generate(key)
}

var lifeCycle = []string{
	kmipwire.AttrActivationDate, kmipwire.AttrProcessStartDate, kmipwire.AttrProtectStopDate, kmipwire.AttrDeactivationDate,
}

func (r *request) checkReKey(old *object, p *kmipwire.ReKeyRequest) error {
	dated := slices.ContainsFunc(p.TemplateAttribute.Attribute, func(a kmipwire.Attribute) bool {
		return slices.Contains(lifeCycle, a.AttributeName)
	})
	switch {
	case old.Type != uint32(kmip14.ObjectTypeSymmetricKey):
		return fail(kmip14.ResultReasonIllegalOperation, "object %s is not a symmetric key", old.id)
	case old.destroyed():
		return fail(kmip14.ResultReasonIllegalOperation, "key %s was destroyed", old.id)
	case old.elsewhere():
		return fail(r.reason(2, kmip14.ResultReasonKeyValueNotPresent, kmip14.ResultReasonIllegalOperation), "key %s is kept elsewhere", old.id)
	case p.Offset != nil && dated:
		return fail(kmip14.ResultReasonInvalidMessage, "either the offset or the dates can be given")
	case p.Offset != nil && old.Activation == 0:
		return fail(kmip14.ResultReasonIllegalOperation, "key %s has no activation date that an offset could be for", old.id)
	}
	return nil
}

// inherit takes over the attributes that table "Re-key Attribute Requirements"
// does not set anew.
func (o *object) inherit(old *object) {
	o.Algorithm, o.Length, o.UsageMask = old.Algorithm, old.Length, old.UsageMask
	o.Names, o.NameIndexes = slices.Clone(old.Names), slices.Clone(old.NameIndexes)
	o.Activation, o.ProcessStart = old.Activation, old.ProcessStart
	o.ProtectStop, o.Deactivation = old.ProtectStop, old.Deactivation
	o.Sensitive, o.Unextractable = old.Sensitive, old.Unextractable
	for _, k := range old.Others {
		if !slices.Contains(ofOneKey, k.Name) {
			o.Others = append(o.Others, k)
		}
	}
}

// ofOneKey are kept attributes that do not go from a key to its replacement.
var ofOneKey = []string{kmipwire.AttrLink, kmipwire.AttrRandomNumberGenerator, kmipwire.AttrKeyValueLocation}

// shift moves the dates of the life cycle.
func (o *object) shift(seconds int64) {
	for _, date := range []*int64{&o.Activation, &o.ProcessStart, &o.ProtectStop, &o.Deactivation} {
		if *date != 0 {
			*date += seconds
		}
	}
}

// replace links a key and the one in its place, which has its names.
func replace(old, key *object) error {
	old.Names, old.NameIndexes = nil, nil
	if err := old.link(kmip14.LinkTypeReplacementObjectLink, key); err != nil {
		return err
	}
	return key.link(kmip14.LinkTypeReplacedObjectLink, old)
}

// link makes an object's only link of a type.
func (o *object) link(t kmip14.LinkType, to *object) error {
	a := attributeNamed(kmipwire.AttrLink, newestMinor)
	all := slices.DeleteFunc(a.instances(o), func(i instance) bool {
		var l kmipwire.Link
		return kmipwire.UnmarshalPayload(ttlv.TTLV(i.value.(encoded)), &l) == nil && l.LinkType == t
	})
	a.replace(o, all)
	_, err := a.insert(o, keep(kmipwire.Link{LinkType: t, LinkedObjectIdentifier: to.id.String()}))
	return err
}
