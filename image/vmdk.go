package image

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"
	"golang.org/x/text/encoding/charmap"
)

const (
	// maxDescriptor is the greatest length of a VMDK descriptor in bytes. Real
	// ones have less than one thousand.
	maxDescriptor = 64 << 10
	// vmdkHeading is the first line of every VMDK descriptor.
	vmdkHeading = "# Disk DescriptorFile"
	vmdkSector  = 512
	noParent    = "ffffffff"
)

// vmdkLayouts are the values of createType that mean one flat extent, and the
// type of that extent.
var vmdkLayouts = map[string]string{"monolithicFlat": "FLAT", "vmfs": "VMFS"}

// vmdkKeys are the keys that say how the rest is to be read. Each may be there
// once only, so that no two readers differ.
var vmdkKeys = map[string]bool{
	"version": true, "encoding": true, "createtype": true,
	"parentcid": true, "parentfilenamehint": true,
}

var (
	// vmdkAccess starts a line that describes an extent.
	vmdkAccess = regexp.MustCompile(`^[ \t]*(RW|RDONLY|NOACCESS)[ \t]`)
	// vmdkExtent is `RW 4192256 FLAT "disk-flat.vmdk" 0`; without the offset
	// on VMFS.
	vmdkExtent = regexp.MustCompile(`^[ \t]*RW[ \t]+([0-9]+)[ \t]+([A-Z]+)[ \t]+"([^"]*)"(?:[ \t]+([0-9]+))?[ \t]*$`)
	// vmdkValue is `key=value` or `key = "value"`.
	vmdkValue = regexp.MustCompile(`^[ \t]*([A-Za-z][A-Za-z0-9_.:-]*)[ \t]*=[ \t]*(?:"([^"]*)"|([^" \t]*))[ \t]*$`)
)

// VMDKDescriptor is the text descriptor of a VMware virtual disk whose sectors lie in
// one flat file beside it: createType monolithicFlat, or vmfs on ESXi.
type VMDKDescriptor struct {
	text   []byte
	values map[string]string // of vmdkKeys that are there
	extent vmdkLine
	name   string // of the extent's file, decoded
}

// vmdkLine is the line that describes the extent.
type vmdkLine struct {
	sectors    int64
	kind       string // FLAT or VMFS
	offset     string // empty where there is none
	start, end int    // of the file name in the text
}

// ReadVMDK reads the VMDK descriptor at path. The error is ErrFormat where it
// is none or describes a disk of another kind.
func ReadVMDK(path string) (*VMDKDescriptor, error) { return place{name: path}.readVMDK() }

func (p place) readVMDK() (*VMDKDescriptor, error) {
	path := p.path()
	file, err := p.open(ReadOnly, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: %w: a VMDK descriptor has to be a regular file", path, ErrFormat)
	}
	text, err := io.ReadAll(io.LimitReader(file, maxDescriptor+1))
	if err != nil {
		return nil, err
	}
	v, err := ParseVMDK(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return v, nil
}

// ParseVMDK reads the text of a VMDK descriptor, of at most 64 KiB. The error
// is ErrFormat where it is none or describes a disk of another kind.
func ParseVMDK(text []byte) (*VMDKDescriptor, error) {
	if err := checkText(text); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	v := &VMDKDescriptor{text: bytes.Clone(text), values: map[string]string{}}
	offset := 0
	for i, line := range strings.SplitAfter(string(withoutPadding(text)), "\n") {
		if err := v.parseLine(strings.TrimRight(line, "\r\n"), offset); err != nil {
			return nil, fmt.Errorf("%w: line %d: %w", ErrFormat, i+1, err)
		}
		offset += len(line)
	}
	if err := errors.Join(v.checkValues(), v.checkExtent()); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return v, nil
}

// checkText tells a descriptor from what else is named .vmdk.
func checkText(text []byte) error {
	for _, magic := range []string{"KDMV", "COWD"} {
		if bytes.HasPrefix(text, []byte(magic)) {
			return errors.New("a sparse VMDK is not supported; convert it with " +
				"qemu-img convert -O vmdk -o subformat=monolithicFlat")
		}
	}
	if !bytes.HasPrefix(text, []byte(vmdkHeading)) {
		return fmt.Errorf("no VMDK descriptor: it does not start with %q", vmdkHeading)
	}
	if len(text) > maxDescriptor {
		return fmt.Errorf("no VMDK descriptor: it is longer than %d bytes", maxDescriptor)
	}
	if i := bytes.IndexFunc(withoutPadding(text), isBinary); i >= 0 {
		return fmt.Errorf("no VMDK descriptor: control character at byte %d", i)
	}
	return nil
}

// withoutPadding is the text without the zero bytes that QEMU fills the last
// sector with once it has written to the disk. If its new CID has fewer of the eight
// digits than the one before, the last bytes of the former text stand after the
// first of them (vmdk_write_cid in block/vmdk.c).
func withoutPadding(text []byte) []byte {
	now, before, _ := bytes.Cut(text, []byte{0})
	if len(bytes.TrimRight(before, "\x00")) < 8 {
		return now
	}
	return text
}

// isBinary tells characters that a text has no use for.
func isBinary(r rune) bool {
	return unicode.IsControl(r) && !strings.ContainsRune("\t\r\n", r)
}

// parseLine reads one line, without its end, that starts at offset in the text.
func (v *VMDKDescriptor) parseLine(line string, offset int) error {
	trimmed := strings.TrimSpace(line)
	if trimmed == "" || trimmed[0] == '#' {
		return nil
	}
	if vmdkAccess.MatchString(line) {
		return v.parseExtent(line, offset)
	}
	m := vmdkValue.FindStringSubmatch(line)
	if m == nil {
		return errors.New(`neither an extent nor key = "value"`)
	}
	key, value := strings.ToLower(m[1]), m[2]+m[3]
	if !vmdkKeys[key] {
		return nil
	}
	if _, double := v.values[key]; double {
		return fmt.Errorf("%s is there twice", m[1])
	}
	v.values[key] = value
	return nil
}

func (v *VMDKDescriptor) parseExtent(line string, offset int) error {
	if v.extent.kind != "" {
		return errors.New("a disk of several extents is not supported")
	}
	m := vmdkExtent.FindStringSubmatchIndex(line)
	if m == nil {
		return errors.New(`only an extent like RW 20480 FLAT "disk-flat.vmdk" 0 is supported`)
	}
	sectors, err := strconv.ParseInt(line[m[2]:m[3]], 10, 64)
	if err != nil || sectors < 1 || sectors > math.MaxInt64/vmdkSector {
		return fmt.Errorf("an extent cannot have %s sectors", line[m[2]:m[3]])
	}
	v.extent = vmdkLine{sectors: sectors, kind: line[m[4]:m[5]], start: offset + m[6], end: offset + m[7]}
	if m[8] >= 0 {
		v.extent.offset = line[m[8]:m[9]]
	}
	return nil
}

// checkValues checks that the descriptor is of a kind we know.
func (v *VMDKDescriptor) checkValues() error {
	if version := v.values["version"]; len(version) != 1 || version < "1" || version > "4" {
		return fmt.Errorf("version %q is none of 1 to 4", version)
	}
	if _, ok := vmdkLayouts[v.values["createtype"]]; !ok {
		return fmt.Errorf("createType %q is not supported; convert it with "+
			"qemu-img convert -O vmdk -o subformat=monolithicFlat", v.values["createtype"])
	}
	_, hint := v.values["parentfilenamehint"]
	if hint || !strings.EqualFold(v.values["parentcid"], noParent) {
		return fmt.Errorf("parentCID is not %s: the disk is a snapshot of another; consolidate it first", noParent)
	}
	return nil
}

// checkExtent checks the line of the extent, and decodes its file name.
func (v *VMDKDescriptor) checkExtent() error {
	x := v.extent
	if x.kind == "" {
		return errors.New("no extent")
	}
	if x.kind != vmdkLayouts[v.values["createtype"]] {
		return fmt.Errorf("createType %q does not go with an extent of type %s", v.values["createtype"], x.kind)
	}
	if x.offset != "0" && (x.offset != "" || x.kind == "FLAT") {
		return fmt.Errorf("the extent has to start at offset 0, not %q", x.offset)
	}
	name, err := v.decode(string(v.text[x.start:x.end]))
	if err != nil {
		return err
	}
	v.name = name
	return checkName(name)
}

// checkName reports an error unless name is that of a file in the folder of
// the descriptor: whoever writes a descriptor must not make us read others.
func checkName(name string) error {
	if name == "" || name == "." || name == ".." || len(name) > 255 ||
		strings.ContainsAny(name, `/"`) || strings.ContainsFunc(name, unicode.IsControl) {
		return fmt.Errorf("%q is no plain file name", name)
	}
	return nil
}

// charmap is the encoding of the descriptor where it is not that of the file
// system, nil where it is.
func (v *VMDKDescriptor) charmap() *charmap.Charmap {
	if strings.EqualFold(v.values["encoding"], "windows-1252") {
		return charmap.Windows1252
	}
	return nil
}

// decode turns a file name of the descriptor into one of the file system.
func (v *VMDKDescriptor) decode(raw string) (string, error) {
	name := raw
	if m := v.charmap(); m != nil {
		name, _ = m.NewDecoder().String(raw) // has a rune for every byte
	}
	if back, err := v.encode(name); err != nil || back != raw {
		return "", fmt.Errorf("file name %q is not in encoding %q", raw, v.values["encoding"])
	}
	return name, nil
}

// encode is the inverse of decode.
func (v *VMDKDescriptor) encode(name string) (string, error) {
	if m := v.charmap(); m != nil {
		return m.NewEncoder().String(name)
	}
	utf8 := v.values["encoding"] == "" || strings.EqualFold(v.values["encoding"], "UTF-8")
	if !utf8 && strings.ContainsFunc(name, func(r rune) bool { return r > unicode.MaxASCII }) {
		return "", fmt.Errorf("file name %q cannot be written in encoding %q", name, v.values["encoding"])
	}
	return name, nil
}

// Text is the descriptor as it was read.
func (v *VMDKDescriptor) Text() []byte { return bytes.Clone(v.text) }

// ExtentName is the name of the file that holds the sectors, in the folder of
// the descriptor.
func (v *VMDKDescriptor) ExtentName() string { return v.name }

// Size is the size of the disk in bytes.
func (v *VMDKDescriptor) Size() int64 { return v.extent.sectors * vmdkSector }

// Rename is the descriptor's text with another name for the extent's file.
// All else is the same, byte for byte.
func (v *VMDKDescriptor) Rename(extent string) ([]byte, error) {
	if err := checkName(extent); err != nil {
		return nil, err
	}
	raw, err := v.encode(extent)
	if err != nil {
		return nil, err
	}
	return bytes.Join([][]byte{v.text[:v.extent.start], []byte(raw), v.text[v.extent.end:]}, nil), nil
}

// openVMDK opens the extent of a descriptor. An extent that is
// longer than the descriptor says is used as far as it says, as by any other
// reader of the format.
func openVMDK(p place, mode Mode) (*File, error) {
	v, err := p.readVMDK()
	if err != nil {
		return nil, err
	}
	f, err := openRaw(p.beside(v.name), mode, unix.O_NOFOLLOW)
	if errors.Is(err, unix.ELOOP) {
		err = fmt.Errorf("%w: it is a symbolic link; an extent has to be a file beside its descriptor", err)
	}
	if err != nil {
		return nil, fmt.Errorf("extent of %s: %w", p.path(), err)
	}
	if err := f.attachVMDK(p.path(), v); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// attachVMDK checks that a file is the extent that the descriptor describes.
func (f *File) attachVMDK(path string, v *VMDKDescriptor) error {
	if f.device || v.name == filepath.Base(path) {
		return fmt.Errorf("%s: %w: its extent %q has to be a regular file beside it", path, ErrFormat, v.name)
	}
	if f.size < v.Size() {
		return fmt.Errorf("%s: %w: %s has %d bytes, less than the %d that the descriptor declares",
			path, ErrFormat, f.DataPath(), f.size, v.Size())
	}
	f.beyond = f.size - v.Size()
	f.format, f.size, f.vmdk = VMDK, v.Size(), v
	return nil
}
