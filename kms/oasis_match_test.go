package kms

import (
	"cmp"
	"fmt"
	"math/big"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/ovh/kmip-go/ttlv"
)

// comparison compares a response with the one of a test case, as far as the
// profiles want them to be alike: KMIP Profiles 1.4, section 4.1, permitted test
// case variations. Numbers below are those of its list of variable items.
type comparison struct {
	*player
	request   *xmlItem
	operation string // of the batch item
	object    string // that the payload is about
}

// anyValue names items whose value the server chooses: 4 to 6, and the results
// of Query that describe a server.
var anyValue = []string{
	"TimeStamp", "AsynchronousCorrelationValue", "ServerCorrelationValue", "ResultMessage",
	"VendorIdentification", "LeaseTime", "LastChangeDate",
}

// mayLack names items that a response need not have: 23, 24, 25 and 27.
var mayLack = []string{"TemplateAttribute", "AttributeIndex", "ResultMessage", "VendorIdentification"}

// mayAdd names items that a response may have on top: those, 22, and one that
// section 4.9 of the specification leaves to the server.
var mayAdd = append(slices.Clone(mayLack), "ServerInformation", "MessageExtension", "LocatedItems")

// describeServer names results of Query that differ between servers: 14 to 17.
var describeServer = []string{
	"ObjectType", "Operation", "ApplicationNamespace", "ExtensionInformation", "ServerInformation",
	"AttestationType", "RNGParameters", "ProfileInformation", "ValidationInformation",
	"CapabilityInformation", "ClientRegistrationMethod",
}

// baseline is what every server has to have (KMIP Profiles 1.4, section 5.1.2).
var baseline = []string{
	"Query", "Locate", "Check", "Get", "GetAttributes", "GetAttributeList", "AddAttribute",
	"ModifyAttribute", "DeleteAttribute", "Activate", "Revoke", "Destroy",
}

// variableAttributes are those whose value a server may choose: 9, 18 and Lease
// Time.
var variableAttributes = []string{
	"Activation Date", "Archive Date", "Compromise Date", "Compromise Occurrence Date",
	"Deactivation Date", "Destroy Date", "Initial Date", "Last Change Date", "Lease Time",
	"Original Creation Date", "Process Start Date", "Protect Stop Date", "Validity Date",
	"x-ID",
}

func (c *comparison) message(want *xmlItem, got ttlv.Value) error {
	wantItems := want.all("BatchItem")
	var gotItems, header []ttlv.Value
	for _, v := range children(got) {
		if ttlv.TagString(v.Tag) == "BatchItem" {
			gotItems = append(gotItems, v)
		} else {
			header = append(header, v)
		}
	}
	if len(header) != 1 {
		return fmt.Errorf("%d headers", len(header))
	}
	if err := c.structure(want.child("ResponseHeader"), header[0]); err != nil {
		return fmt.Errorf("%w\ngot %s", err, show(got))
	}
	if len(gotItems) != len(wantItems) {
		return fmt.Errorf("%d batch items, want %d\ngot %s", len(gotItems), len(wantItems), show(got))
	}
	for i, w := range wantItems {
		if err := c.batchItem(w, gotItems[i]); err != nil {
			return fmt.Errorf("batch item %d: %w\ngot %s", i, err, show(got))
		}
	}
	return nil
}

func (c *comparison) batchItem(want *xmlItem, got ttlv.Value) error {
	c.operation, c.object = want.text("Operation"), ""
	if err := c.structure(want, got); err != nil {
		return err
	}
	if c.operation == "Register" {
		c.registered[c.object] = true
	}
	return nil
}

// structure compares the items of a structure: those of different tags must
// come in the order of the specification.
func (c *comparison) structure(want *xmlItem, got ttlv.Value) error {
	var order []string
	byTag := map[string][]ttlv.Value{}
	for _, v := range children(got) {
		name := ttlv.TagString(v.Tag)
		byTag[name] = append(byTag[name], v)
		if !slices.Contains(order, name) {
			order = append(order, name)
		}
	}
	if err := inOrder(want, order); err != nil {
		return err
	}
	for _, name := range tagsOf(want, order) {
		if err := c.items(name, want, byTag[name]); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// tagsOf lists the tags on both sides, the wanted ones first.
func tagsOf(want *xmlItem, got []string) []string {
	var tags []string
	for _, i := range want.items {
		if !slices.Contains(tags, i.name) {
			tags = append(tags, i.name)
		}
	}
	for _, name := range got {
		if !slices.Contains(tags, name) {
			tags = append(tags, name)
		}
	}
	return tags
}

func inOrder(want *xmlItem, got []string) error {
	last := -1
	for _, name := range tagsOf(want, nil) {
		i := slices.Index(got, name)
		if i < 0 {
			continue
		}
		if i < last {
			return fmt.Errorf("%s comes too early", name)
		}
		last = i
	}
	return nil
}

// items compares what both sides have of a tag.
func (c *comparison) items(tag string, parent *xmlItem, got []ttlv.Value) error {
	want := parent.all(tag)
	if c.operation == "Query" && slices.Contains(describeServer, tag) && parent.name == "ResponsePayload" {
		return queried(tag, want, got)
	}
	if c.operation == "DiscoverVersions" && tag == "ProtocolVersion" && parent.name == "ResponsePayload" {
		return c.versions(want, got)
	}
	switch {
	case len(want) == 0 && slices.Contains(mayAdd, tag), len(got) == 0 && slices.Contains(mayLack, tag):
		return nil
	case tag == "Attribute":
		return c.attributes(want, got)
	case tag == "AttributeName" && parent.name == "ResponsePayload":
		return c.attributeNames(want, got)
	case tag == "UniqueIdentifier" && c.operation == "Locate":
		return c.located(want, got)
	case len(want) != len(got):
		return fmt.Errorf("%d, want %d", len(got), len(want))
	}
	for i, w := range want {
		if err := c.item(w, got[i], ""); err != nil {
			return err
		}
	}
	return nil
}

// item compares one with another of the same tag.
func (c *comparison) item(want *xmlItem, got ttlv.Value, attribute string) error {
	_, isStruct := got.Value.(ttlv.Struct)
	if isStruct != (want.kind == "") {
		return fmt.Errorf("%s is a %T", want.name, got.Value)
	}
	if isStruct {
		return c.structure(want, got)
	}
	text, isText := got.Value.(string)
	if strings.HasPrefix(want.value, "$") && !strings.HasPrefix(want.value, "$NOW") && isText {
		if _, known := c.values[want.value]; !known {
			c.values[want.value] = text
		}
	}
	if want.name == "UniqueIdentifier" && isText {
		c.object = text
	}
	v, err := want.toTTLV(attribute, c.resolve)
	if err != nil {
		return err
	}
	if reflect.TypeOf(v.Value) != reflect.TypeOf(got.Value) {
		return fmt.Errorf("%s is a %T, want a %T", want.name, got.Value, v.Value)
	}
	if !c.mayVary(want.name, attribute) && !isNow(want, got) && !equal(v.Value, got.Value) {
		return fmt.Errorf("%s is %s, want %s", want.name, show(got), show(v))
	}
	return nil
}

// mayVary tells whether the server chooses the value.
func (c *comparison) mayVary(tag, attribute string) bool {
	switch tag {
	case "KeyMaterial", "DigestValue", "KeyFormatType": // 7, 11, 12
		return !c.registered[c.object]
	case "AttributeValue":
		return slices.Contains(variableAttributes, attribute)
	case "HashingAlgorithm": // 13
		return true
	}
	return slices.Contains(anyValue, tag)
}

// attributes compares attributes in any order. More than were wanted may come
// if all were asked for (19), and groups may be missing (20).
func (c *comparison) attributes(want []*xmlItem, got []ttlv.Value) error {
	left := slices.Clone(got)
	for _, w := range want {
		name := w.text("AttributeName")
		i := slices.IndexFunc(left, func(v ttlv.Value) bool { return attributeKey(v) == name+"/"+cmp.Or(w.text("AttributeIndex"), "0") })
		if i < 0 && name == "Object Group" && !c.grouped {
			continue
		}
		if i < 0 {
			return fmt.Errorf("no %s", name)
		}
		if err := c.attribute(w, left[i]); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		left = slices.Delete(left, i, i+1)
	}
	if len(left) > 0 && (c.operation != "GetAttributes" || c.asked()) {
		return fmt.Errorf("too much: %s", show(left[0]))
	}
	return nil
}

// asked tells whether the request named the attributes that it wants.
func (c *comparison) asked() bool {
	for _, item := range c.request.all("BatchItem") {
		if item.text("Operation") == c.operation && item.child("RequestPayload").child("AttributeName") != nil {
			return true
		}
	}
	return false
}

func (c *comparison) attribute(want *xmlItem, got ttlv.Value) error {
	name := want.text("AttributeName")
	w, g := want.child("AttributeValue"), childOf(got, "AttributeValue")
	if w == nil || g == nil || name == "Random Number Generator" {
		return nil // Delete Attribute of 1.0 shows none; servers have their own
	}
	return c.item(w, *g, name)
}

// attributeKey is the name and index of an attribute.
func attributeKey(v ttlv.Value) string {
	index := int32(0)
	if i := childOf(v, "AttributeIndex"); i != nil {
		index, _ = i.Value.(int32)
	}
	name := childOf(v, "AttributeName")
	if name == nil {
		return ""
	}
	return fmt.Sprintf("%v/%d", name.Value, index)
}

// attributeNames: the wanted ones must be there (19, 20).
func (c *comparison) attributeNames(want []*xmlItem, got []ttlv.Value) error {
	for _, w := range want {
		if w.value == "Object Group" && !c.grouped {
			continue
		}
		if !slices.ContainsFunc(got, func(v ttlv.Value) bool { return v.Value == w.value }) {
			return fmt.Errorf("%q is missing", w.value)
		}
	}
	return nil
}

// located compares the objects found, in any order. Those that the case has not
// met before get the names that it has for them.
func (c *comparison) located(want []*xmlItem, got []ttlv.Value) error {
	if len(want) != len(got) {
		return fmt.Errorf("%d objects, want %d", len(got), len(want))
	}
	left := slices.Clone(got)
	var unknown []*xmlItem
	for _, w := range want {
		id, known := c.values[w.value]
		if !known {
			unknown = append(unknown, w)
			continue
		}
		i := slices.IndexFunc(left, func(v ttlv.Value) bool { return v.Value == id })
		if i < 0 {
			return fmt.Errorf("%s is not found", w.value)
		}
		left = slices.Delete(left, i, i+1)
	}
	for i, w := range unknown {
		if err := c.item(w, left[i], ""); err != nil {
			return err
		}
	}
	return nil
}

// queried: what the profile requires must be offered, and nothing twice.
func queried(tag string, want []*xmlItem, got []ttlv.Value) error {
	for i, v := range got {
		if slices.ContainsFunc(got[:i], func(o ttlv.Value) bool { return reflect.DeepEqual(o, v) }) {
			return fmt.Errorf("%s is offered twice", show(v))
		}
	}
	if tag != "Operation" {
		return nil
	}
	for _, w := range want {
		n, err := ttlv.EnumByName(tagsByName()["Operation"], w.value)
		if err != nil {
			return err
		}
		if slices.Contains(baseline, w.value) && !slices.ContainsFunc(got, func(v ttlv.Value) bool { return v.Value == ttlv.Enum(n) }) {
			return fmt.Errorf("%s is not offered", w.value)
		}
	}
	return nil
}

// versions: others may be offered where the client named none (26).
func (c *comparison) versions(want []*xmlItem, got []ttlv.Value) error {
	for _, w := range want {
		if !slices.ContainsFunc(got, func(v ttlv.Value) bool { return c.structure(w, v) == nil }) {
			return fmt.Errorf("%s.%s is missing", w.text("ProtocolVersionMajor"), w.text("ProtocolVersionMinor"))
		}
	}
	named := c.request.child("BatchItem").child("RequestPayload").child("ProtocolVersion") != nil
	if named && len(got) != len(want) {
		return fmt.Errorf("%d versions, want %d", len(got), len(want))
	}
	return nil
}

// isNow tells whether a time is the present one, give or take what the case took.
func isNow(want *xmlItem, got ttlv.Value) bool {
	t, ok := got.Value.(time.Time)
	return ok && want.value == "$NOW" && time.Since(t).Abs() < time.Minute
}

func equal(a, b any) bool {
	switch a := a.(type) {
	case time.Time:
		return a.Equal(b.(time.Time))
	case *big.Int:
		return a.Cmp(b.(*big.Int)) == 0
	}
	return reflect.DeepEqual(a, b)
}

func children(v ttlv.Value) ttlv.Struct {
	s, _ := v.Value.(ttlv.Struct)
	return s
}

func childOf(v ttlv.Value, name string) *ttlv.Value {
	for _, c := range children(v) {
		if ttlv.TagString(c.Tag) == name {
			return &c
		}
	}
	return nil
}

// show prints an item for people.
func show(v ttlv.Value) string { return string(ttlv.MarshalText(v)) }
