package kms

import (
	"errors"
	"slices"

	"github.com/gemalto/kmip-go/kmip14"
	"github.com/google/uuid"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// maxLocated bounds the answer to a Locate: so many IDs still fit a message.
const maxLocated = 16_000

// locate finds the client's objects that have all the attributes (section 4.9),
// in the order of their IDs, the oldest first.
func (r *request) locate(p *kmipwire.LocateRequest) (any, error) {
	if p.MaximumItems < 0 || p.OffsetItems < 0 {
		return nil, fail(kmip14.ResultReasonInvalidField, "negative number of items")
	}
	s, err := r.newSearch(p)
	if err != nil {
		return nil, err
	}
	ids, err := r.find(s)
	if err != nil {
		return nil, err
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
		r.subject = ids[0]
	}
	return out, nil
}

// search says which objects are wanted.
type search struct {
	owner     string
	filters   []*filter
	storage   kmip14.StorageStatusMask
	fresh     bool // only those that nobody has got yet
	destroyed bool // those, too
}

func (r *request) newSearch(p *kmipwire.LocateRequest) (*search, error) {
	s := &search{owner: r.client, storage: p.StorageStatusMask}
	if s.storage == 0 {
		s.storage = kmip14.StorageStatusMaskOnLineStorage
	}
	s.fresh = r.since(1) && p.ObjectGroupMember == kmip14.ObjectGroupMemberGroupMemberFresh
	for _, a := range p.Attribute {
		if err := s.add(a, r.minor()); err != nil {
			return nil, err
		}
	}
	s.destroyed = s.by(kmipwire.AttrState) != nil || s.by(kmipwire.AttrDestroyDate) != nil
	return s, nil
}

// add adds an attribute that objects must have. A second date makes a range of
// a first.
func (s *search) add(in kmipwire.Attribute, minor int) error {
	a := attributeNamed(in.AttributeName, minor)
	if a == nil {
		return fail(kmip14.ResultReasonInvalidField, "objects cannot be located by %.60q", in.AttributeName)
	}
	value, err := a.decode(in.AttributeValue)
	if err != nil {
		return err
	}
	date, isDate := value.(int64)
	if f := s.by(a.name); f != nil && isDate && !f.isRange {
		first := f.value.(int64)
		f.isRange, f.value, f.until = true, min(first, date), max(first, date)
		return nil
	}
	s.filters = append(s.filters, &filter{attribute: a, value: value})
	return nil
}

// by returns the first filter by an attribute, or nil.
func (s *search) by(name string) *filter {
	i := slices.IndexFunc(s.filters, func(f *filter) bool { return f.attribute.name == name })
	if i < 0 {
		return nil
	}
	return s.filters[i]
}

// wants tells whether an object is one of those.
func (s *search) wants(o *object) bool {
	storage := kmip14.StorageStatusMaskOnLineStorage
	if o.archived() {
		storage = kmip14.StorageStatusMaskArchivalStorage
	}
	if o.Owner != s.owner || s.storage&storage == 0 || o.destroyed() && !s.destroyed || s.fresh && !o.Fresh {
		return false
	}
	return !slices.ContainsFunc(s.filters, func(f *filter) bool { return !f.match(o) })
}

// find returns the IDs of the objects that are wanted. An ID or a name leads
// straight to the only one that can be.
func (r *request) find(s *search) (ids []string, err error) {
	collect := func(o *object) error { //nolint:unparam // each wants an error
		o.advance(r.now.Unix())
		if s.wants(o) {
			ids = append(ids, o.id.String())
		}
		return nil
	}
	err = r.view(func(t *tx) error {
		if f := s.by(kmipwire.AttrUniqueIdentifier); f != nil {
			id, err := uuid.Parse(f.value.(string))
			if err != nil {
				return nil //nolint:nilerr // no object has that ID
			}
			return t.only(id, nil, collect)
		}
		if f := s.by(kmipwire.AttrName); f != nil {
			id, err := t.find(s.owner, f.value.(name))
			return t.only(id, err, collect)
		}
		return t.eachOf(s.owner, collect)
	})
	return ids, err
}

// only calls fn with the object that has an ID, if there is one. It takes the
// error of looking for the ID, too.
func (t *tx) only(id uuid.UUID, err error, fn func(*object) error) error {
	var o *object
	if err == nil {
		o, err = t.get(id)
	}
	if errors.Is(err, errNoObject) {
		return nil
	}
	if err != nil {
		return err
	}
	defer o.wipe()
	return fn(o)
}

// filter is an attribute that an object must have, or a range of dates that it
// must be in.
type filter struct {
	attribute *attribute
	value     any
	isRange   bool
	until     int64
}

func (f *filter) match(o *object) bool {
	return slices.ContainsFunc(f.attribute.instances(o), func(i instance) bool { return f.covers(i.value) })
}

func (f *filter) covers(v any) bool {
	if f.isRange {
		return f.value.(int64) <= v.(int64) && v.(int64) <= f.until
	}
	covers := f.attribute.kind.covers
	return v == f.value || covers != nil && covers(v, f.value)
}
