package libvirtxml

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Bounds of what is read, which others wrote.
const (
	maxElements = 100_000
	maxDepth    = 200
)

// element is an XML element with the text that it was read from: what nobody changes
// is written as it was, byte for byte.
type element struct {
	before   string // the text between the sibling before it, or its parent's tag, and it
	tag      string // its start tag
	children []*element
	tail     string // the text after its last child
	end      string // its end tag; "" if it has none of its own

	name  xml.Name // with its namespace
	attrs []xml.Attr
}

// document is an element and the text around it.
type document struct {
	root *element
	tail string
}

// parse reads a document with one root. Its errors say where the text is no XML.
func parse(text string) (*document, error) {
	r := reader{text: text, decoder: xml.NewDecoder(strings.NewReader(text))}
	for {
		from := r.decoder.InputOffset()
		token, err := r.decoder.Token()
		if errors.Is(err, io.EOF) {
			return r.document()
		}
		if err != nil {
			return nil, err
		}
		if err := r.take(token, int(from), int(r.decoder.InputOffset())); err != nil {
			return nil, err
		}
	}
}

// reader is how far a document was read.
type reader struct {
	text    string
	decoder *xml.Decoder
	root    *element
	open    []*element // from the root to the innermost
	count   int
	done    int // up to which offset the text belongs to an element
}

func (r *reader) take(token xml.Token, from, to int) error {
	switch token := token.(type) {
	case xml.StartElement:
		if err := checkAttrs(token); err != nil {
			return err
		}
		return r.begin(&element{
			before: r.text[r.done:from], tag: r.text[from:to], name: token.Name, attrs: slices.Clone(token.Attr),
		}, to)
	case xml.EndElement:
		e := r.open[len(r.open)-1]
		e.tail, e.end = r.text[r.done:from], r.text[from:to]
		r.open = r.open[:len(r.open)-1]
		r.done = to
	}
	return nil
}

// checkAttrs refuses an attribute that is there twice, as XML does and encoding/xml does
// not.
func checkAttrs(e xml.StartElement) error {
	seen := make(map[xml.Name]bool, len(e.Attr))
	for _, a := range e.Attr {
		if seen[a.Name] {
			return fmt.Errorf("%s has the attribute %s twice", e.Name.Local, a.Name.Local)
		}
		seen[a.Name] = true
	}
	return nil
}

func (r *reader) begin(e *element, to int) error {
	r.count++
	switch {
	case r.count > maxElements || len(r.open) >= maxDepth:
		return fmt.Errorf("more than %d elements, or more than %d in each other", maxElements, maxDepth)
	case len(r.open) > 0:
		parent := r.open[len(r.open)-1]
		parent.children = append(parent.children, e)
	case r.root != nil:
		return errors.New("there are two documents")
	default:
		r.root = e
	}
	r.open = append(r.open, e)
	r.done = to
	return nil
}

func (r *reader) document() (*document, error) {
	if r.root == nil {
		return nil, errors.New("it is empty")
	}
	return &document{root: r.root, tail: r.text[r.done:]}, nil
}

func (d *document) String() string {
	var b strings.Builder
	d.root.write(&b)
	b.WriteString(d.tail)
	return b.String()
}

func (e *element) write(b *strings.Builder) {
	b.WriteString(e.before)
	b.WriteString(e.tag)
	for _, c := range e.children {
		c.write(b)
	}
	b.WriteString(e.tail)
	b.WriteString(e.end)
}

// is tells an element of libvirt's, which have no namespace.
func (e *element) is(name string) bool { return e.name == xml.Name{Local: name} }

// child gives the first child of a name, or nil. So it does where e is nil.
func (e *element) child(name string) *element {
	if e == nil {
		return nil
	}
	if i := slices.IndexFunc(e.children, func(c *element) bool { return c.is(name) }); i >= 0 {
		return e.children[i]
	}
	return nil
}

// attr gives an attribute's value, "" where there is none.
func (e *element) attr(name string) string {
	if e == nil {
		return ""
	}
	for _, a := range e.attrs {
		if a.Name == (xml.Name{Local: name}) {
			return a.Value
		}
	}
	return ""
}

// setAttrs gives an element attributes in place of those that it has: an empty value
// takes one away. Those that are not named stay as they are.
func (e *element) setAttrs(values ...xml.Attr) {
	for _, v := range values {
		if e.attr(v.Name.Local) != v.Value {
			e.setAttr(v)
		}
	}
}

func attr(name, value string) xml.Attr { return xml.Attr{Name: xml.Name{Local: name}, Value: value} }

// setAttr writes the start tag anew.
func (e *element) setAttr(v xml.Attr) {
	raw := e.rawTag()
	e.attrs, raw.Attr = withAttr(e.attrs, v), withAttr(raw.Attr, v)
	end := ">"
	if strings.HasSuffix(e.tag, "/>") {
		end = "/>"
	}
	quote := "'"
	if i := strings.IndexAny(e.tag, `'"`); i >= 0 {
		quote = e.tag[i : i+1]
	}
	e.tag = "<" + prefixed(raw.Name)
	for _, a := range raw.Attr {
		e.tag += " " + prefixed(a.Name) + "=" + quote + escape(a.Value) + quote
	}
	e.tag += end
}

// rawTag gives the start tag with prefixes in the place of namespaces.
func (e *element) rawTag() xml.StartElement {
	token, _ := xml.NewDecoder(strings.NewReader(e.tag)).RawToken() // it was read before
	start, _ := token.(xml.StartElement)
	return start.Copy()
}

func withAttr(attrs []xml.Attr, v xml.Attr) []xml.Attr {
	i := slices.IndexFunc(attrs, func(a xml.Attr) bool { return a.Name == v.Name })
	switch {
	case i < 0 && v.Value == "":
		return attrs
	case i < 0:
		return append(attrs, v)
	case v.Value == "":
		return slices.Delete(attrs, i, i+1)
	}
	attrs[i].Value = v.Value
	return attrs
}

func prefixed(name xml.Name) string {
	if name.Space == "" {
		return name.Local
	}
	return name.Space + ":" + name.Local
}

// escape is text as it stands in an attribute, in quotes of either kind.
func escape(text string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(text)) // it fails only where writing does
	return b.String()
}

// remove takes a child away, and the space before it. A comment there stays.
func (e *element) remove(child *element) {
	i := slices.Index(e.children, child)
	comment := strings.TrimRight(child.before, " \t\r\n")
	if i+1 < len(e.children) {
		e.children[i+1].before = comment + e.children[i+1].before
	} else {
		e.tail = comment + e.tail
	}
	e.children = slices.Delete(e.children, i, i+1)
}

// insert makes an element of text the i-th child, on lines of its own, indented like
// the others.
func (e *element) insert(i int, text string) *element {
	e.openUp()
	indent := e.indentOfChildren()
	child := fragment(strings.ReplaceAll(text, "\n", indent))
	child.before = indent
	if len(e.children) == 0 && strings.TrimSpace(e.tail) == "" {
		e.tail = e.indent()
	}
	e.children = slices.Insert(e.children, i, child)
	return child
}

// replace puts an element of text in a child's place.
func (e *element) replace(child *element, text string) {
	i := slices.Index(e.children, child)
	e.children[i] = fragment(strings.ReplaceAll(text, "\n", child.indent()))
	e.children[i].before = child.before
}

// fragment reads what this package wrote.
func fragment(text string) *element {
	d, err := parse(text)
	if err != nil {
		panic(fmt.Sprintf("%v in %q", err, text))
	}
	return d.root
}

// openUp makes room for children in an element that is only a tag.
func (e *element) openUp() {
	if e.end == "" {
		e.tag = strings.TrimRight(strings.TrimSuffix(e.tag, "/>"), " \t\r\n") + ">"
		e.end = "</" + prefixed(e.rawTag().Name) + ">"
	}
}

// indent is the line break and the space before an element.
func (e *element) indent() string {
	space := e.before[len(strings.TrimRight(e.before, " \t")):]
	return "\n" + space
}

func (e *element) indentOfChildren() string {
	if len(e.children) > 0 && strings.Contains(e.children[0].before, "\n") {
		return e.children[0].indent()
	}
	return e.indent() + "  "
}
