package browse

import (
	"encoding/binary"
	"fmt"
	"strings"
	"time"
	"unicode/utf16"

	"golang.org/x/text/encoding/charmap"
)

// Attributes of an entry of a FAT folder.
const (
	attrLabel    = 0x08
	attrDir      = 0x10
	attrLongName = 0x0f
)

// fatDir reads the entries of a folder. A long name comes as several entries
// before the one it belongs to, last part first; a checksum ties them to it.
type fatDir struct {
	fs   *fat
	list []dirent
	done bool

	long     []uint16 // the parts of a long name read so far
	expect   byte     // the number of its next part; 0 when it is complete
	checksum byte
}

// scan reads the entries in one run of the folder.
func (d *fatDir) scan(r run) error {
	for ; r.length > 0 && !d.done; r.length -= fatEntryBytes {
		e, err := d.fs.read(r.pos, fatEntryBytes)
		if err != nil {
			return err
		}
		r.pos += fatEntryBytes
		switch {
		case e[0] == 0:
			d.done = true
		case e[0] == 0xe5: // deleted
			d.long = nil
		case e[11]&0x3f == attrLongName:
			d.addLong(e)
		case e[11]&attrLabel == 0:
			if err := d.add(e); err != nil {
				return err
			}
			d.long = nil
		default:
			d.long = nil
		}
	}
	return nil
}

// addLong takes one part of a long name; parts out of order drop it.
func (d *fatDir) addLong(e []byte) {
	number := e[0] & 0x3f
	if e[0]&0x40 != 0 {
		d.long, d.expect, d.checksum = nil, number, e[13]
	}
	if number == 0 || number > 20 || number != d.expect || e[13] != d.checksum {
		d.long, d.expect = nil, 0
		return
	}
	d.expect--
	var part []uint16
	for _, field := range [][]byte{e[1:11], e[14:26], e[28:32]} {
		for ; len(field) > 0; field = field[2:] {
			part = append(part, binary.LittleEndian.Uint16(field))
		}
	}
	d.long = append(part, d.long...)
}

// add takes the entry of a file or folder.
func (d *fatDir) add(e []byte) error {
	name := shortName(e)
	if d.long != nil && d.expect == 0 && d.checksum == shortChecksum(e[:11]) {
		name = longName(d.long)
	}
	if name == "." || name == ".." {
		return nil
	}
	if err := checkName(name); err != nil {
		return err
	}
	f := d.file(e)
	d.list = append(d.list, dirent{name, func() (file, error) { return f, nil }})
	return nil
}

func (d *fatDir) file(e []byte) *fatFile {
	le := binary.LittleEndian
	f := &fatFile{
		fs: d.fs, typ: File,
		first:   uint32(le.Uint16(e[26:])),
		size:    int64(le.Uint32(e[28:])),
		modTime: fatTime(le.Uint16(e[24:]), le.Uint16(e[22:])),
	}
	if d.fs.bits == 32 {
		f.first |= uint32(le.Uint16(e[20:])) << 16
	}
	if e[11]&attrDir != 0 {
		f.typ, f.size = Dir, 0
	}
	return f
}

// longName decodes a long name, which ends at a zero unless it fills its parts.
func longName(units []uint16) string {
	for i, u := range units {
		if u == 0 {
			units = units[:i]
			break
		}
	}
	return string(utf16.Decode(units))
}

// shortName decodes an 8.3 name. Windows NT marks all-lower-case parts.
func shortName(e []byte) string {
	b := append([]byte(nil), e[:11]...)
	if b[0] == 0x05 {
		b[0] = 0xe5
	}
	base, ext := codePage437(b[:8]), codePage437(b[8:])
	if e[12]&0x08 != 0 {
		base = strings.ToLower(base)
	}
	if e[12]&0x10 != 0 {
		ext = strings.ToLower(ext)
	}
	if ext == "" {
		return base
	}
	return fmt.Sprintf("%s.%s", base, ext)
}

// codePage437 decodes the code page that Linux takes for short names.
func codePage437(b []byte) string {
	var s strings.Builder
	for _, c := range b {
		s.WriteRune(charmap.CodePage437.DecodeByte(c))
	}
	return strings.TrimRight(s.String(), " ")
}

// shortChecksum ties a long name to its short one.
func shortChecksum(name []byte) (sum byte) {
	for _, c := range name {
		sum = sum>>1 | sum<<7
		sum += c
	}
	return sum
}

// fatTime reads a local time of unknown zone.
func fatTime(date, clock uint16) time.Time {
	if date == 0 {
		return time.Time{}
	}
	return time.Date(1980+int(date>>9), time.Month(date>>5&15), int(date&31),
		int(clock>>11), int(clock>>5&63), int(clock&31)*2, 0, time.UTC)
}
