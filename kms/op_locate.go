package kms

import (
	"errors"

	"github.com/gemalto/kmip-go/kmip14"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// maxLocated bounds the answer to a Locate: so many IDs still fit a message.
const maxLocated = 16_000

// locate finds the objects that have all the attributes (section 4.9), in the
// order of their IDs.
func (r *request) locate(p *kmipwire.LocateRequest) (any, error) {
	if p.MaximumItems < 0 || p.OffsetItems < 0 {
		return nil, fail(kmip14.ResultReasonInvalidField, "negative number of items")
	}
	filters, err := newFilters(p.Attribute)
	if err != nil {
		return nil, err
	}
	var ids []string
	if p.StorageStatusMask == 0 || p.StorageStatusMask&kmip14.StorageStatusMaskOnLineStorage != 0 {
		if ids, err = r.search(filters); err != nil {
			return nil, err
		}
	}
	return r.located(p, ids)
}

// located cuts the result to what the client wants.
func (r *request) located(p *kmipwire.LocateRequest, ids []string) (any, error) {
	out := &kmipwire.LocateResponse{}
	if total := len(ids); r.since(3) {
		out.LocatedItems = &total
	}
	ids = ids[min(p.OffsetItems, len(ids)):]
	if p.MaximumItems > 0 {
		ids = ids[:min(p.MaximumItems, len(ids))]
	}
	if len(ids) > maxLocated {
		return nil, fail(kmip14.ResultReasonResponseTooLarge, "%d objects: ask for fewer", len(ids))
	}
	out.UniqueIdentifier = ids
	if r.placeholder = ""; len(ids) == 1 {
		r.placeholder = ids[0]
	}
	return out, nil
}

// search returns the IDs of the objects that pass all filters. A name leads
// straight to the only one that can.
func (r *request) search(filters []filter) (ids []string, err error) {
	match := func(o *object) error { //nolint:unparam // each wants an error
		for _, f := range filters {
			if !f.match(o) {
				return nil
			}
		}
		ids = append(ids, o.id.String())
		return nil
	}
	err = r.store.view(func(t *tx) error {
		for _, f := range filters {
			if n, ok := f.value.(name); ok {
				return t.only(r.client, n, match)
			}
		}
		return t.each(match)
	})
	return ids, err
}

// only calls fn with the object that the owner calls by the name, if there is one.
func (t *tx) only(owner string, n name, fn func(*object) error) error {
	id, err := t.find(owner, n)
	if errors.Is(err, errNoObject) {
		return nil
	}
	if err != nil {
		return err
	}
	o, err := t.get(id)
	if err != nil {
		return err
	}
	defer o.wipe()
	return fn(o)
}

// filter is an attribute that an object must have.
type filter struct {
	attribute *attribute
	value     any
}

func newFilters(attrs []kmipwire.Attribute) ([]filter, error) {
	var filters []filter
	for _, a := range attrs {
		t := attributeNamed(a.AttributeName)
		if t == nil {
			return nil, fail(kmip14.ResultReasonInvalidField, "objects cannot be located by %.60q", a.AttributeName)
		}
		value, ok := t.kind.decode(a.AttributeValue)
		if !ok {
			return nil, badValue(a.AttributeName)
		}
		filters = append(filters, filter{t, value})
	}
	return filters, nil
}

func (f filter) match(o *object) bool {
	for _, v := range f.attribute.get(o) {
		if covers := f.attribute.kind.covers; v == f.value || covers != nil && covers(v, f.value) {
			return true
		}
	}
	return false
}
