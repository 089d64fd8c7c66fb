package browse

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf16"
)

// The format is that of ECMA-119 (ISO 9660), with the Joliet specification (1995)
// and, in rockridge.go, SUSP 1.12 and RRIP 1.12.

const (
	isoSector                                          = 2048
	firstDescriptor                                    = 16 // sector
	maxDescriptors                                     = 64
	isoRecordMin                                       = 33  // bytes of a folder's record before the name
	isoRootRecord                                      = 156 // where a volume descriptor holds the root folder's
	flagDir                                            = 0x02
	flagAssociated                                     = 0x04
	flagContinued                                      = 0x80 // the file goes on in the next record
	descriptorPrimary, descriptorJoliet, descriptorEnd = 1, 2, 255
)

// iso is an ISO 9660 filesystem.
type iso struct {
	section
	blockSize int64
	joliet    bool
	rockRidge bool
	skip      int // bytes to skip before Rock Ridge's fields
}

func isISO(s section) bool {
	b, err := s.read(firstDescriptor*isoSector, 7)
	return err == nil && string(b[1:6]) == "CD001" && b[6] == 1
}

// mountISO prefers Rock Ridge's names to Joliet's, as Linux does.
func mountISO(s section) (*volume, error) {
	primary, joliet, err := isoDescriptors(s)
	if err != nil {
		return nil, err
	}
	v := &volume{section: s, kind: "iso9660"}
	fs, root, err := openISO(s, primary)
	if err != nil {
		return nil, err
	}
	if err := fs.findRockRidge(root); err != nil {
		return nil, err
	}
	if !fs.rockRidge && joliet != nil {
		if fs, root, err = openISO(s, joliet); err != nil {
			return nil, err
		}
		fs.joliet = true
	}
	v.root, v.fold = root, !fs.rockRidge
	return v, nil
}

// isoDescriptors finds the primary and the Joliet volume descriptor; the latter
// is nil if there is none.
func isoDescriptors(s section) (primary, joliet []byte, err error) {
	for n := int64(firstDescriptor); n < firstDescriptor+maxDescriptors; n++ {
		b, err := s.read(n*isoSector, isoSector)
		if err != nil {
			return nil, nil, err
		}
		if string(b[1:6]) != "CD001" || b[0] == descriptorEnd {
			break
		}
		escape := b[88:91]
		switch {
		case b[0] == descriptorPrimary && primary == nil:
			primary = b
		case b[0] == descriptorJoliet && escape[0] == '%' && escape[1] == '/' && bytes.IndexByte([]byte("@CE"), escape[2]) >= 0:
			joliet = b
		}
	}
	if primary == nil {
		return nil, nil, fmt.Errorf("no primary volume descriptor: %w", ErrCorrupt)
	}
	return primary, joliet, nil
}

func openISO(s section, descriptor []byte) (*iso, *isoFile, error) {
	fs := &iso{section: s, blockSize: int64(binary.LittleEndian.Uint16(descriptor[128:]))}
	if fs.blockSize < 512 || fs.blockSize > isoSector || !isPowerOf2(fs.blockSize) {
		return nil, nil, fmt.Errorf("block size %d: %w", fs.blockSize, ErrCorrupt)
	}
	record := descriptor[isoRootRecord:][:34]
	if record[25]&flagDir == 0 {
		return nil, nil, fmt.Errorf("its root is no folder: %w", ErrCorrupt)
	}
	root := &isoFile{fs: fs, typ: Dir}
	return fs, root, root.addSection(record)
}

// isoFile is a file of an [iso] filesystem.
type isoFile struct {
	fs      *iso
	typ     Type
	size    int64
	runs    []run // more than one where the file is larger than 4 GiB
	modTime time.Time
	link    string
	refuse  error // why the content cannot be read
	hidden  bool
}

func (f *isoFile) info() info              { return info{f.typ, f.size, f.modTime} }
func (f *isoFile) target() (string, error) { return f.link, f.refuse }

func (f *isoFile) content(visit func(run) error) error {
	if f.refuse != nil {
		return f.refuse
	}
	for _, r := range f.runs {
		if err := visit(r); err != nil {
			return err
		}
	}
	return nil
}

// addSection adds the content that a record tells of, and its time.
func (f *isoFile) addSection(record []byte) error {
	le := binary.LittleEndian
	block, length := int64(le.Uint32(record[2:])), int64(le.Uint32(record[10:]))
	r := run{at: f.size, length: length, pos: (block + int64(record[1])) * f.fs.blockSize}
	if len(f.runs) == maxEntries {
		return fmt.Errorf("file of more than %d parts: %w", maxEntries, ErrCorrupt)
	}
	if record[26] != 0 || record[27] != 0 {
		f.refuse = fmt.Errorf("interleaved: %w", ErrUnsupported)
	}
	f.runs = append(f.runs, r)
	f.size += length
	f.modTime = isoTime(record[18:25])
	return nil
}

// entries reads a folder's records.
func (f *isoFile) entries() ([]dirent, error) {
	if f.size > maxDirBytes || len(f.runs) != 1 {
		return nil, fmt.Errorf("folder of %d bytes in %d parts: %w", f.size, len(f.runs), ErrUnsupported)
	}
	d := &isoDir{fs: f.fs}
	err := f.fs.records(f.runs[0], d.add)
	if err == nil && d.open != nil {
		err = fmt.Errorf("%q has no end: %w", d.openName, ErrCorrupt)
	}
	return d.list, err
}

// errStop ends a walk early.
var errStop = errors.New("stop")

// records calls visit for each record of a folder. Records do not cross sectors:
// a zero in place of a length fills the rest of one.
func (fs *iso) records(dir run, visit func(record []byte) error) error {
	for done := int64(0); done < dir.length; done += isoSector {
		b, err := fs.read(dir.pos+done, int(min(isoSector, dir.length-done)))
		if err != nil {
			return err
		}
		for len(b) > 0 && b[0] != 0 {
			n := int(b[0])
			if n > len(b) || n < isoRecordMin+1 || isoRecordMin+int(b[32]) > n {
				return fmt.Errorf("folder record of %d bytes: %w", n, ErrCorrupt)
			}
			if err := visit(b[:n]); err != nil {
				return err
			}
			b = b[n:]
		}
	}
	return nil
}

// isoDir collects the names of a folder.
type isoDir struct {
	fs       *iso
	list     []dirent
	open     *isoFile // a file that goes on in the next record
	openName string
}

func (d *isoDir) add(record []byte) error {
	raw := record[isoRecordMin:][:record[32]]
	if len(raw) == 1 && raw[0] <= 1 || record[25]&flagAssociated != 0 {
		return nil // the folder itself, its parent, or a resource fork
	}
	f, name := d.open, d.fs.name(raw)
	if f == nil {
		f = &isoFile{fs: d.fs, typ: File}
		if record[25]&flagDir != 0 {
			f.typ = Dir
		}
	}
	if err := f.addSection(record); err != nil {
		return err
	}
	if d.fs.rockRidge {
		long, err := d.fs.readRockRidge(f, record)
		if err != nil {
			return err
		}
		if long != "" {
			name = long
		}
	}
	if d.open != nil && name != d.openName {
		return fmt.Errorf("%q has no end: %w", d.openName, ErrCorrupt)
	}
	if d.open, d.openName = nil, name; record[25]&flagContinued != 0 {
		d.open = f
		return nil
	}
	return d.finish(name, f)
}

func (d *isoDir) finish(name string, f *isoFile) error {
	if f.hidden {
		return nil
	}
	if err := checkName(name); err != nil {
		return err
	}
	if len(d.list) == maxEntries {
		return fmt.Errorf("more than %d names: %w", maxEntries, ErrUnsupported)
	}
	d.list = append(d.list, dirent{name, func() (file, error) { return f, nil }})
	return nil
}

// name decodes a name and takes off its version.
func (fs *iso) name(raw []byte) string {
	name := string(raw)
	if fs.joliet {
		units := make([]uint16, len(raw)/2)
		for i := range units {
			units[i] = binary.BigEndian.Uint16(raw[2*i:])
		}
		name = string(utf16.Decode(units))
	}
	name = strings.TrimSuffix(name, ";1")
	if !fs.joliet && len(name) > 1 {
		name = strings.TrimSuffix(name, ".")
	}
	return name
}

// isoTime reads the time of a record: years from 1900, zone in quarters of hours.
func isoTime(b []byte) time.Time {
	if slices.Max(b[:6]) == 0 {
		return time.Time{}
	}
	zone := time.FixedZone("", int(int8(b[6]))*15*60)
	return time.Date(1900+int(b[0]), time.Month(b[1]), int(b[2]), int(b[3]), int(b[4]), int(b[5]), 0, zone).UTC()
}
