package browse

import (
	"bytes"
	"fmt"
)

// format is a kind of filesystem: is tells whether a section holds one, mount
// opens it.
type format struct {
	kind  string
	is    func(section) bool
	mount func(section) (*volume, error)
}

// formats are tried in this order. ISO 9660 comes first since a bootable one may
// hold a boot sector that looks like FAT.
var formats = []format{
	{"iso9660", isISO, mountISO},
	{"ext4", isExt4, mountExt4},
	{"fat", isFAT, mountFAT},
}

// foreign are signatures of what is recognised but not read.
var foreign = []struct {
	kind   string
	offset int64
	magic  string
}{
	{"xfs", 0, "XFSB"},
	{"btrfs", 0x10040, "_BHRfS_M"},
	{"ntfs", 3, "NTFS    "},
	{"exfat", 3, "EXFAT   "},
	{"swap", 4086, "SWAPSPACE2"},
	{"lvm2", 512, "LABELONE"},
	{"luks", 0, "LUKS\xba\xbe"},
	{"squashfs", 0, "hsqs"},
	{"udf", 0x8801, "NSR0"},
}

// identify tells what s holds: one of the formats, or the name of something
// foreign. Both are empty where nothing is recognised.
func identify(s section) (*format, string) {
	for i := range formats {
		if formats[i].is(s) {
			return &formats[i], formats[i].kind
		}
	}
	for _, f := range foreign {
		b, err := s.read(f.offset, len(f.magic))
		if err == nil && bytes.Equal(b, []byte(f.magic)) {
			return nil, f.kind
		}
	}
	return nil, ""
}

// mount opens the filesystem of s.
func mount(s section) (*volume, error) {
	f, kind := identify(s)
	if err := s.ctx.Err(); err != nil {
		return nil, err
	}
	switch {
	case kind == "":
		return nil, ErrNoFilesystem
	case f == nil:
		return nil, fmt.Errorf("%s: %w: it %w", kind, ErrNoFilesystem, ErrUnsupported)
	}
	v, err := f.mount(s)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", kind, err)
	}
	return v, nil
}

// layout reads the partition table, if there is one, and tells whether the disk
// is to be read as one filesystem. FAT and ISO 9660 leave room for a table and
// may have both; an ext4 superblock beside a table is a remnant.
func layout(s section) (t *table, whole bool, err error) {
	t, err = readTable(s)
	if t == nil && err == nil {
		return nil, true, nil
	}
	if f, _ := identify(s); f != nil && f.kind != "ext4" {
		return t, true, nil
	}
	return t, false, err
}

// holds names what a partition holds; it is empty where that is unknown.
func holds(disk section, p Partition) string {
	s, err := disk.sub(p.Start, p.Size)
	if err != nil {
		return ""
	}
	f, kind := identify(s)
	if f == nil {
		return kind
	}
	if v, err := f.mount(s); err == nil {
		return v.kind
	}
	return kind
}
