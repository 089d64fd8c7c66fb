package vmx

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmcrypt/vmcrypt/internal/durable"
)

// Bounds on a descriptor. Real ones have some 200 lines; the longest lines hold
// cloud-init data of up to 64 KiB, in base64.
const (
	maxSize  = 1 << 20   // bytes of a file
	maxLine  = 256 << 10 // bytes of a line
	maxLines = 8 << 10
)

var (
	// ErrSyntax is a file that is no descriptor, or one that is unclear where
	// vmcrypt has to act on it.
	ErrSyntax = errors.New("not a valid descriptor")
	// ErrRecord is a vmcrypt record that is damaged or was tampered with.
	ErrRecord = errors.New("the disk's encryption record is damaged")
	// ErrVersion is a record that a later vmcrypt has written.
	ErrVersion = errors.New("unknown format version of an encryption record")
)

const bom = "\xef\xbb\xbf"

// File is a descriptor. It may be used by one goroutine at a time.
type File struct {
	bom   string // a byte order mark, or nothing
	lines []line
	index map[string][]int // key in lower case to its lines, broken ones too
	codec codec
}

// Parse reads a descriptor of up to 1 MiB. It fails with ErrSyntax if that
// cannot be one: more than 8192 lines, a line over 256 KiB, or a zero byte, as
// in a disk image. Lines that mean nothing are kept.
func Parse(data []byte) (*File, error) {
	if len(data) > maxSize {
		return nil, fmt.Errorf("%w: over %d bytes long", ErrSyntax, maxSize)
	}
	if before, _, found := bytes.Cut(data, []byte{0}); found {
		n := 1 + bytes.Count(before, []byte("\n"))
		return nil, fmt.Errorf("line %d: %w: zero byte", n, ErrSyntax)
	}
	f := new(File)
	text := bytes.Clone(data)
	if bytes.HasPrefix(text, []byte(bom)) {
		f.bom, text = bom, text[len(bom):]
	}
	var lines []line
	for raw := range bytes.Lines(text) {
		lines = append(lines, parseLine(raw))
	}
	if err := f.setLines(lines); err != nil {
		return nil, err
	}
	f.codec = f.findCodec()
	return f, nil
}

// Read parses the file at path, which may be a symbolic link but has to lead to
// a regular file. Errors name it.
func Read(path string) (*File, error) {
	// It does not wait for the other end of a named pipe.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return ReadFrom(f)
}

// ReadFrom is Read for a file that is open.
func ReadFrom(f *os.File) (*File, error) {
	data, err := content(f)
	if err != nil {
		return nil, err
	}
	parsed, err := Parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return parsed, nil
}

// content reads at most one byte more than Parse accepts.
func content(f *os.File) ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: %w: not a regular file", f.Name(), ErrSyntax)
	}
	return io.ReadAll(io.LimitReader(f, maxSize+1))
}

// New makes the descriptor of a bare disk image: the encoding, the two versions
// without which VMware refuses a file, and one disk at node. It panics if node is
// not one, such as "scsi0:0".
func New(node, fileName string) *File {
	if !isNode(node) {
		panic("vmx: " + node + " is no disk node")
	}
	text := fmt.Sprintf(`.encoding = "UTF-8"
config.version = "8"
virtualHW.version = "8"
%[1]s.present = "TRUE"
%[1]s.deviceType = "disk"
%[1]s.fileName = "%[2]s"
`, node, escape(fileName))
	f, err := Parse([]byte(text))
	if err != nil {
		panic("vmx: " + err.Error())
	}
	return f
}

// Bytes is the file as it is to be stored. Without changes it is what Parse got.
func (f *File) Bytes() []byte {
	b := []byte(f.bom)
	for _, l := range f.lines {
		b = l.appendTo(b)
	}
	return b
}

// Write stores the file durably, see [durable.WriteFile]. A new file is
// readable by its owner only.
func (f *File) Write(path string) error {
	return durable.WriteFile(path, f.Bytes(), 0o600)
}

// Get gives the value of a key, and whether there is one. Of several lines with
// the key it is the first. A value that is not valid in the file's encoding
// comes as the bytes that stand there.
func (f *File) Get(key string) (string, bool) {
	for _, i := range f.index[lower(key)] {
		if f.lines[i].broken {
			continue
		}
		text, err := f.codec.decode(f.lines[i].value)
		if err != nil {
			text = unescape(f.lines[i].value)
		}
		return text, true
	}
	return "", false
}

// Set gives a key a value, in its place or on a new last line. It fails with
// ErrSyntax if several lines have the key. The file's encoding is not changed
// this way, nor are vmcrypt's own keys, which SetRecord writes.
func (f *File) Set(key, value string) error {
	if err := settable(key); err != nil {
		return err
	}
	raw, err := f.codec.encode(value)
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	i, err := f.find(key)
	if err != nil {
		return err
	}
	lines := append([]line(nil), f.lines...)
	if i >= 0 {
		lines[i] = lines[i].setValue(raw)
	} else {
		lines = f.appendLine(lines, key, raw)
	}
	return f.setLines(lines)
}

// settable refuses keys that cannot be written, and those that Set may not.
func settable(key string) error {
	for _, c := range []byte(key) {
		if c <= ' ' || c > '~' || strings.IndexByte(`=#"`, c) >= 0 {
			return fmt.Errorf("%q cannot be a key of a descriptor", key)
		}
	}
	_, own := recordKey(lower(key))
	if key == "" || own || lower(key) == ".encoding" {
		return fmt.Errorf("%q is no key to set in a descriptor", key)
	}
	return nil
}

// appendLine adds a last line, and ends the one before if that is not ended.
func (f *File) appendLine(lines []line, key string, value []byte) []line {
	end := f.endAt(len(lines) - 1)
	if n := len(lines); n > 0 && lines[n-1].end() == nil {
		raw := lines[n-1].appendTo(nil)
		raw = raw[:len(raw)-len(lineEnd(raw))]
		lines[n-1] = parseLine(append(raw, end...))
	}
	return append(lines, newLine(key, value, end))
}

// endAt is the line end for a new line beside line i: the same, or that of the
// line before if i is an unfinished last line.
func (f *File) endAt(i int) []byte {
	for ; i >= 0; i-- {
		if end := f.lines[i].end(); end != nil {
			return end
		}
	}
	return []byte("\n")
}

// find gives the one line with a key, or -1. Several such lines are an error, as
// is one without a proper value.
func (f *File) find(key string) (int, error) {
	at := f.index[lower(key)]
	switch {
	case len(at) == 0:
		return -1, nil
	case len(at) > 1:
		return -1, fmt.Errorf("lines %s: %w: %s is there %d times",
			numbers(at), ErrSyntax, key, len(at))
	case f.lines[at[0]].broken:
		return -1, fmt.Errorf("line %d: %w: %s has no proper value", at[0]+1, ErrSyntax, key)
	}
	return at[0], nil
}

// text gives the value of a key that vmcrypt acts on, "" if there is none.
func (f *File) text(key string) (string, error) {
	i, err := f.find(key)
	if err != nil || i < 0 {
		return "", err
	}
	text, err := f.codec.decode(f.lines[i].value)
	if err != nil {
		return "", fmt.Errorf("line %d: %w: %s: %w", i+1, ErrSyntax, key, err)
	}
	return text, nil
}

// setLines replaces the content if it is within bounds.
func (f *File) setLines(lines []line) error {
	size, index := len(f.bom), make(map[string][]int)
	if len(lines) > maxLines {
		return fmt.Errorf("%w: over %d lines", ErrSyntax, maxLines)
	}
	for i, l := range lines {
		if l.size() > maxLine {
			return fmt.Errorf("line %d: %w: over %d bytes long", i+1, ErrSyntax, maxLine)
		}
		size += l.size()
		if l.key != "" {
			index[l.key] = append(index[l.key], i)
		}
	}
	if size > maxSize {
		return fmt.Errorf("%w: over %d bytes long", ErrSyntax, maxSize)
	}
	f.lines, f.index = lines, index
	return nil
}

// findCodec reads .encoding. What is wrong with it is told where it matters.
func (f *File) findCodec() codec {
	if f.bom != "" {
		return codec{}
	}
	i, err := f.find(".encoding")
	switch {
	case err != nil:
		return codec{err: err}
	case i < 0:
		return codec{}
	}
	return newCodec(unescape(f.lines[i].value))
}

// numbers lists lines as people count them.
func numbers(lines []int) string {
	var s []string
	for _, i := range lines {
		s = append(s, fmt.Sprint(i+1))
	}
	return strings.Join(s, ", ")
}
