package kms

import (
	"slices"

	"github.com/gemalto/kmip-go/kmip14"
	"github.com/gemalto/kmip-go/ttlv"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// Templates (section 2.2.6) are attributes to make objects with. They are not
// the attributes of the template itself.

// takeTemplate makes an object the template of attributes. One without a name
// of its own gets the one among them.
func (o *object) takeTemplate(attrs []kmipwire.Attribute, minor int) error {
	if len(attrs) > maxOthers {
		return fail(kmip14.ResultReasonIndexOutOfBounds, "the template has more than %d attributes", maxOthers)
	}
	unnamed := len(o.Names) == 0
	for _, in := range attrs {
		a := attributeNamed(in.AttributeName, minor)
		if a == nil || a.can&byMaking == 0 {
			return fail(kmip14.ResultReasonInvalidField, "attribute %.60q cannot be set", in.AttributeName)
		}
		value, err := a.decodeNew(in.AttributeValue)
		if err != nil {
			return err
		}
		if n, ok := value.(name); ok && unnamed {
			o.Names = append(o.Names, n)
		}
		o.Template = append(o.Template, other{Name: a.name, Value: []byte(keep(a.kind.encode(value)))})
	}
	return nil
}

// templateAttributes are what a template consists of.
func (o *object) templateAttributes() (all []kmipwire.Attribute) {
	for _, k := range o.Template {
		a := kmipwire.Attribute{AttributeName: k.Name, AttributeValue: ttlv.TTLV(k.Value)}
		if ttlv.TTLV(k.Value).Type() != ttlv.TypeStructure {
			a.AttributeValue = ttlv.TTLV(k.Value).Value()
		}
		all = append(all, a)
	}
	return all
}

// forObject are those of a template that an object can have, but names.
func (o *object) forObject(made *object, by rights) []kmipwire.Attribute {
	return slices.DeleteFunc(o.templateAttributes(), func(in kmipwire.Attribute) bool {
		a := attributeNamed(in.AttributeName, newestMinor)
		return a == nil || a.name == kmipwire.AttrName || a.can&by == 0 || !a.on.has(made.Type)
	})
}
