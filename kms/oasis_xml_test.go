package kms

import (
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	_ "github.com/ovh/kmip-go" // registers the names of tags and enumerations
	"github.com/ovh/kmip-go/ttlv"
)

// xmlItem is a TTLV item in the XML encoding of the OASIS test cases (KMIP
// Additional Message Encodings 1.0, section 5.4), values as they are spelled.
type xmlItem struct {
	name, kind, value string
	items             []*xmlItem // of a structure, whose kind is ""
}

// readXML returns the messages of a test case.
func readXML(path string) ([]*xmlItem, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	top := &xmlItem{}
	open := []*xmlItem{top}
	for d := xml.NewDecoder(f); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return top.items[0].items, nil
		}
		if err != nil {
			return nil, err
		}
		switch t := token.(type) {
		case xml.StartElement:
			i, parent := newXMLItem(t), open[len(open)-1]
			parent.items = append(parent.items, i)
			open = append(open, i)
		case xml.EndElement:
			open = open[:len(open)-1]
		}
	}
}

func newXMLItem(e xml.StartElement) *xmlItem {
	i := &xmlItem{name: e.Name.Local}
	for _, a := range e.Attr {
		switch a.Name.Local {
		case "type":
			i.kind = a.Value
		case "value":
			i.value = a.Value
		case "tag":
			i.name = a.Value
		}
	}
	if i.kind == "Structure" {
		i.kind = ""
	}
	if i.name == "AttributeName" { // some have spaces where a line once ended
		i.value = strings.Join(strings.Fields(i.value), " ")
	}
	return i
}

// child returns the first item of that name, or nil.
func (i *xmlItem) child(name string) *xmlItem {
	for _, c := range i.items {
		if c.name == name {
			return c
		}
	}
	return nil
}

// text is the value of the first item of that name, or "".
func (i *xmlItem) text(name string) string {
	if c := i.child(name); c != nil {
		return c.value
	}
	return ""
}

// all returns the items of that name.
func (i *xmlItem) all(name string) []*xmlItem {
	var found []*xmlItem
	for _, c := range i.items {
		if c.name == name {
			found = append(found, c)
		}
	}
	return found
}

// mentions tells whether a value is in an item or below it.
func (i *xmlItem) mentions(value string) bool {
	return i.value == value || slices.ContainsFunc(i.items, func(c *xmlItem) bool { return c.mentions(value) })
}

var tagsByName = sync.OnceValue(func() map[string]int {
	tags := map[string]int{}
	for tag := 0x420001; tag < 0x420200; tag++ {
		tags[ttlv.TagString(tag)] = tag
	}
	return tags
})

func tagNamed(name string) (int, error) {
	if digits, ok := strings.CutPrefix(name, "0x"); ok {
		tag, err := strconv.ParseInt(digits, 16, 32)
		return int(tag), err
	}
	if tag, ok := tagsByName()[name]; ok {
		return tag, nil
	}
	return 0, fmt.Errorf("unknown tag %q", name)
}

// toTTLV converts an item. Placeholders are replaced by resolve. Values of
// attributes get their names from the tag that the attribute is called after.
func (i *xmlItem) toTTLV(attribute string, resolve func(string) (string, error)) (ttlv.Value, error) {
	tag, err := tagNamed(i.name)
	if err != nil {
		return ttlv.Value{}, err
	}
	if i.kind == "" {
		s, err := i.toStruct(resolve)
		return ttlv.Value{Tag: tag, Value: s}, err
	}
	text := i.value
	if strings.HasPrefix(text, "$") {
		if text, err = resolve(text); err != nil {
			return ttlv.Value{}, err
		}
	}
	names := tag
	if i.name == "AttributeValue" {
		names = tagsByName()[strings.ReplaceAll(attribute, " ", "")]
	}
	v, err := parseXMLValue(i.kind, text, names)
	if err != nil {
		err = fmt.Errorf("%s %s %q: %w", i.name, i.kind, text, err)
	}
	return ttlv.Value{Tag: tag, Value: v}, err
}

func (i *xmlItem) toStruct(resolve func(string) (string, error)) (ttlv.Struct, error) {
	s := ttlv.Struct{}
	for _, c := range i.items {
		v, err := c.toTTLV(i.text("AttributeName"), resolve)
		if err != nil {
			return nil, err
		}
		s = append(s, v)
	}
	return s, nil
}

// parseXMLValue reads a value; the names in it are those of a tag.
func parseXMLValue(kind, text string, names int) (any, error) {
	switch kind {
	case "Integer":
		return parseMask(text, names)
	case "LongInteger":
		return strconv.ParseInt(text, 0, 64)
	case "BigInteger":
		n, ok := new(big.Int).SetString(text, 16)
		if !ok {
			return nil, errors.New("not a number")
		}
		return n, nil
	case "Enumeration":
		return parseEnum(text, names)
	case "Boolean":
		return strconv.ParseBool(text)
	case "TextString":
		return text, nil
	case "ByteString":
		return hex.DecodeString(text)
	case "DateTime":
		return parseDate(text)
	case "Interval":
		seconds, err := strconv.ParseUint(text, 0, 32)
		return time.Duration(seconds) * time.Second, err
	}
	return nil, errors.New("unknown type")
}

// parseMask reads a number, or the names of the bits of one.
func parseMask(text string, names int) (any, error) {
	var mask int32
	for _, f := range strings.FieldsFunc(text, func(r rune) bool { return r == ' ' || r == '|' }) {
		n, err := strconv.ParseInt(f, 0, 64)
		if err != nil {
			bit, err := ttlv.BitmaskByStr(names, f)
			if err != nil {
				return nil, err
			}
			n = int64(bit)
		}
		mask |= int32(n)
	}
	return mask, nil
}

func parseEnum(text string, names int) (any, error) {
	if n, err := strconv.ParseUint(text, 0, 32); err == nil {
		return ttlv.Enum(n), nil
	}
	n, err := ttlv.EnumByName(names, text)
	return ttlv.Enum(n), err
}

// parseDate reads a date, or "$NOW", to which seconds may be added. The two
// minutes after which a key expires in some cases take five seconds, in which
// the case must get as far.
func parseDate(text string) (any, error) {
	offset, ok := strings.CutPrefix(text, "$NOW")
	if !ok {
		return time.Parse(time.RFC3339, text)
	}
	now := time.Now().Truncate(time.Second)
	switch offset {
	case "":
		return now, nil
	case "+120":
		return now.Add(5 * time.Second), nil
	}
	seconds, err := strconv.Atoi(offset)
	return now.Add(time.Duration(seconds) * time.Second), err
}
