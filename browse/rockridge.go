package browse

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

const (
	maxContinued = 64      // areas that continue one record's fields
	maxSystemUse = 1 << 16 // bytes of all of them
)

// findRockRidge tells from the first record of the root folder whether Rock
// Ridge is in use.
func (fs *iso) findRockRidge(root *isoFile) error {
	err := fs.records(root.runs[0], func(record []byte) error {
		area := systemUse(record, 0)
		if len(area) >= 7 && string(area[:2]) == "SP" && area[4] == 0xbe && area[5] == 0xef {
			fs.rockRidge, fs.skip = true, int(area[6])
		}
		return errStop
	})
	if errors.Is(err, errStop) {
		err = nil
	}
	return err
}

// systemUse is what follows the name in a record.
func systemUse(record []byte, skip int) []byte {
	at := isoRecordMin + int(record[32])
	at += at%2 + skip
	if at > len(record) {
		return nil
	}
	return record[at:]
}

// rockRidge is what the fields of one record say.
type rockRidge struct {
	name   strings.Builder
	link   strings.Builder
	join   bool // the next part of the link continues the last one
	mode   uint16
	isLink bool
}

// readRockRidge applies the fields of a record to f and returns the name they
// give, which may be empty.
func (fs *iso) readRockRidge(f *isoFile, record []byte) (string, error) {
	var rr rockRidge
	area, total := systemUse(record, fs.skip), 0
	for range maxContinued {
		next, err := fs.fields(f, &rr, area)
		if err != nil || next == nil {
			return rr.finish(f), err
		}
		block, offset := int64(binary.LittleEndian.Uint32(next[4:])), int64(binary.LittleEndian.Uint32(next[12:]))
		length := int64(binary.LittleEndian.Uint32(next[20:]))
		if total += int(length); total > maxSystemUse {
			break
		}
		if area, err = fs.read(block*fs.blockSize+offset, int(length)); err != nil {
			return "", err
		}
	}
	return "", fmt.Errorf("fields of Rock Ridge run in circles: %w", ErrCorrupt)
}

// fields reads one area of fields. It returns the field that tells where they
// continue, or nil.
func (fs *iso) fields(f *isoFile, rr *rockRidge, area []byte) (next []byte, err error) {
	for len(area) >= 4 {
		n := int(area[2])
		if area[0] == 0 {
			return next, nil // padding
		}
		if n < 4 || n > len(area) {
			return nil, fmt.Errorf("field %q of Rock Ridge with %d bytes: %w", area[:2], n, ErrCorrupt)
		}
		field := area[:n]
		area = area[n:]
		switch string(field[:2]) {
		case "CE":
			if n < 28 {
				return nil, fmt.Errorf("field %q of Rock Ridge with %d bytes: %w", field[:2], n, ErrCorrupt)
			}
			next = field
		case "ST":
			return next, nil
		default:
			if err := fs.field(f, rr, field); err != nil {
				return nil, err
			}
		}
	}
	return next, nil
}

// field applies one field.
func (fs *iso) field(f *isoFile, rr *rockRidge, b []byte) error {
	switch kind := string(b[:2]); {
	case kind == "NM" && len(b) >= 5:
		rr.name.Write(b[5:])
	case kind == "PX" && len(b) >= 8:
		rr.mode = binary.LittleEndian.Uint16(b[4:])
	case kind == "SL" && len(b) >= 5:
		rr.isLink = true
		return rr.addLink(b[5:])
	case kind == "TF" && len(b) >= 5:
		rr.setTime(f, b)
	case kind == "RE":
		f.hidden = true // listed where it was moved from
	case kind == "CL" && len(b) >= 8:
		return fs.moved(f, int64(binary.LittleEndian.Uint32(b[4:])))
	case kind == "ZF":
		f.refuse = fmt.Errorf("compressed (zisofs): %w", ErrUnsupported)
	case kind == "SF":
		f.refuse = fmt.Errorf("sparse (Rock Ridge SF): %w", ErrUnsupported)
	}
	return nil
}

// moved makes f the folder at block: folders nested too deep for ISO 9660 are
// kept elsewhere.
func (fs *iso) moved(f *isoFile, block int64) error {
	b, err := fs.read(block*fs.blockSize, 34)
	if err != nil {
		return err
	}
	f.typ, f.size, f.runs = Dir, 0, nil
	return f.addSection(b)
}

// addLink adds components of a symbolic link's target.
func (rr *rockRidge) addLink(b []byte) error {
	for len(b) >= 2 {
		flags, n := b[0], int(b[1])
		if 2+n > len(b) || rr.link.Len()+n > maxTarget {
			return fmt.Errorf("symbolic link of Rock Ridge: %w", ErrCorrupt)
		}
		part := string(b[2:][:n])
		switch {
		case flags&2 != 0:
			part = "."
		case flags&4 != 0:
			part = ".."
		}
		if s := rr.link.String(); s != "" && !rr.join && !strings.HasSuffix(s, "/") {
			rr.link.WriteByte('/')
		}
		if flags&8 != 0 {
			part = "/"
		}
		rr.link.WriteString(part)
		rr.join = flags&1 != 0
		b = b[2+n:]
	}
	return nil
}

// setTime takes the time of modification from a TF field: the second of those
// that its flags say are there, in the short or the long form.
func (rr *rockRidge) setTime(f *isoFile, b []byte) {
	const creation, modification, long = 1, 2, 0x80
	flags, at := b[4], 5
	if flags&long != 0 || flags&modification == 0 {
		return // the record's own time serves
	}
	if flags&creation != 0 {
		at += 7
	}
	if at+7 <= len(b) {
		f.modTime = isoTime(b[at:][:7])
	}
}

// finish sets what only all fields together tell.
func (rr *rockRidge) finish(f *isoFile) string {
	switch rr.mode & 0xf000 {
	case 0, 0x4000, 0x8000:
	case 0xa000:
		f.typ, f.link = Symlink, rr.link.String()
	default:
		f.typ = Other
	}
	return rr.name.String()
}
