package vmx

import (
	"encoding/hex"
	"fmt"
	"strings"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/htmlindex"
	"golang.org/x/text/encoding/ianaindex"
)

// codec turns values as they stand in a file into text and back. ASCII needs no
// encoding, so an unknown one matters only where there is other text.
type codec struct {
	name string
	enc  encoding.Encoding // nil for UTF-8, which is taken byte for byte
	err  error             // why other text than ASCII cannot be read or written
}

// newCodec gives the codec of an encoding by the name that .encoding has.
func newCodec(name string) codec {
	c := codec{name: name}
	switch lower(name) {
	case "", "utf-8", "utf8":
		return c
	}
	c.enc = lookUp(name)
	if c.enc == nil || !extendsASCII(c.enc) {
		c.err = fmt.Errorf("unknown .encoding %q", name)
	}
	return c
}

// lookUp asks IANA first: WHATWG reads ISO-8859-1 as windows-1252.
func lookUp(name string) encoding.Encoding {
	if enc, err := ianaindex.IANA.Encoding(name); err == nil && enc != nil {
		return enc
	}
	if enc, err := htmlindex.Get(name); err == nil {
		return enc
	}
	return nil
}

// extendsASCII tells encodings that a line can be parsed in from UTF-16, EBCDIC
// and those that shift by escape sequences.
func extendsASCII(enc encoding.Encoding) bool {
	probe := "\x1b(B~{"
	for c := range 128 {
		probe += string(rune(c))
	}
	got, err := enc.NewDecoder().String(probe)
	return err == nil && got == probe
}

// decode gives the text of a value.
func (c codec) decode(value []byte) (string, error) {
	raw := unescape(value)
	if c.err == nil && c.enc == nil || isASCII(raw) {
		return raw, nil
	}
	if c.err != nil {
		return "", c.err
	}
	text, err := c.enc.NewDecoder().String(raw)
	if err != nil || strings.ContainsRune(text, '\uFFFD') {
		return "", fmt.Errorf("value is not valid %s", c.name)
	}
	return text, nil
}

// encode is the reverse of decode: the text comes back exactly, or it fails.
func (c codec) encode(text string) ([]byte, error) {
	if c.err == nil && c.enc == nil || isASCII(text) {
		return escape(text), nil
	}
	if c.err != nil {
		return nil, c.err
	}
	raw, err := c.enc.NewEncoder().String(text)
	if err != nil {
		return nil, fmt.Errorf("%q cannot be written in %s", text, c.name)
	}
	value := escape(raw)
	if back, err := c.decode(value); err != nil || back != text {
		return nil, fmt.Errorf("%q cannot be written in %s", text, c.name)
	}
	return value, nil
}

// escape writes the bytes as |XX that VMware writes so: quote, pipe, and control
// characters but the tab. In a multi-byte encoding the pipe may be half of a
// character; VMware reads escapes before it decodes, and so do we.
func escape(raw string) []byte {
	var out []byte
	for _, c := range []byte(raw) {
		if c == '"' || c == '|' || c == 0x7f || c < ' ' && c != '\t' {
			out = fmt.Appendf(out, "|%02X", c)
		} else {
			out = append(out, c)
		}
	}
	return out
}

// unescape is the reverse of escape. A pipe without two hexadecimal digits
// stands for itself.
func unescape(value []byte) string {
	var out []byte
	for i := 0; i < len(value); i++ {
		var b [1]byte
		if value[i] == '|' && i+2 < len(value) {
			if _, err := hex.Decode(b[:], value[i+1:i+3]); err == nil {
				out = append(out, b[0])
				i += 2
				continue
			}
		}
		out = append(out, value[i])
	}
	return string(out)
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}
