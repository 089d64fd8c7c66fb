package vmx

import "bytes"

// line is one line of a descriptor, which is head + value + tail byte for byte.
type line struct {
	head   []byte // all before the value, with its opening quote
	value  []byte // escaped, in the file's encoding
	tail   []byte // all after the value: closing quote, comment, line end
	key    string // in lower case; "" for a blank line or a comment
	quoted bool
	broken bool // there is a key, but what follows is no value: all is in head
}

// parseLine takes a line apart. raw includes the line end, if it has one.
func parseLine(raw []byte) line {
	text := raw[:len(raw)-len(lineEnd(raw))]
	keyStart := skipBlanks(text, 0)
	keyEnd := skipKey(text, keyStart)
	l := line{head: raw, key: lower(string(text[keyStart:keyEnd]))}
	l.broken = l.key != ""
	eq := skipBlanks(text, keyEnd)
	if !l.broken || eq == len(text) || text[eq] != '=' {
		return l
	}
	return l.withValue(raw, text, skipBlanks(text, eq+1))
}

// withValue is parseLine from the first byte after = that is no blank.
func (l line) withValue(raw, text []byte, start int) line {
	end := skipWord(text, start)
	next := end
	quoted := start < len(text) && text[start] == '"'
	if quoted {
		start++
		n := bytes.IndexByte(text[start:], '"')
		if n < 0 {
			return l
		}
		end, next = start+n, start+n+1
	}
	next = skipBlanks(text, next)
	if next < len(text) && text[next] != '#' {
		return l
	}
	l.head, l.value, l.tail = raw[:start], raw[start:end], raw[end:]
	l.quoted, l.broken = quoted, false
	return l
}

// newLine makes the line of a key from a value that is encoded and escaped.
func newLine(key string, value, end []byte) line {
	raw := append([]byte(key+` = "`), value...)
	raw = append(raw, '"')
	return parseLine(append(raw, end...))
}

// setValue replaces the value and puts quotes around it.
func (l line) setValue(value []byte) line {
	if !l.quoted {
		l.head = append(bytes.Clone(l.head), '"')
		l.tail = append([]byte{'"'}, l.tail...)
		l.quoted = true
	}
	l.value = value
	return l
}

func (l line) size() int { return len(l.head) + len(l.value) + len(l.tail) }

func (l line) appendTo(b []byte) []byte {
	b = append(b, l.head...)
	b = append(b, l.value...)
	return append(b, l.tail...)
}

// end is the line end: LF, CRLF or nothing.
func (l line) end() []byte {
	end := lineEnd(l.appendTo(nil))
	if bytes.HasSuffix(end, []byte("\n")) {
		return end
	}
	return nil
}

// lineEnd is what parseLine ignores at the end of a line. A carriage return that
// ends the file is half of a CRLF.
func lineEnd(raw []byte) []byte {
	text := bytes.TrimSuffix(raw, []byte("\n"))
	text = bytes.TrimSuffix(text, []byte("\r"))
	return raw[len(text):]
}

func isBlank(c byte) bool { return c == ' ' || c == '\t' }

func skipBlanks(b []byte, i int) int {
	return skip(b, i, isBlank)
}

func skipWord(b []byte, i int) int {
	return skip(b, i, func(c byte) bool { return !isBlank(c) && c != '#' })
}

func skipKey(b []byte, i int) int {
	return skip(b, i, func(c byte) bool { return !isBlank(c) && c != '#' && c != '=' })
}

func skip(b []byte, i int, while func(byte) bool) int {
	for i < len(b) && while(b[i]) {
		i++
	}
	return i
}

// lower folds ASCII letters only: to Unicode the Kelvin sign is a k as well.
func lower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}
