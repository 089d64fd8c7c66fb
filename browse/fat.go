package browse

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"time"
)

// The format is that of Microsoft's "FAT32 File System Specification" (2000).

const (
	fatEntryBytes = 32                    // of a folder's entry
	maxFATDir     = 65536 * fatEntryBytes // bytes of a folder
	maxFAT12      = 4084                  // clusters; with more it is FAT16
	maxFAT32      = 0x0ffffff5
)

// fat is a FAT12, FAT16 or FAT32 filesystem.
type fat struct {
	section
	bits        int   // of an entry of the table: 12, 16 or 32
	table       int64 // where the table in use is, in bytes
	data        int64 // where cluster 2 is, in bytes
	cluster     int64 // bytes
	clusters    uint32
	rootAt      int64 // FAT12, FAT16: where the root folder is, in bytes
	rootSize    int64
	rootCluster uint32 // FAT32
}

func isFAT(s section) bool {
	_, err := parseBPB(s)
	return err == nil
}

func mountFAT(s section) (*volume, error) {
	f, err := parseBPB(s)
	if err != nil {
		return nil, err
	}
	root := &fatFile{fs: f, typ: Dir, first: f.rootCluster, isRoot: true}
	return &volume{section: s, kind: fmt.Sprintf("fat%d", f.bits), root: root, fold: true}, nil
}

// parseBPB reads the BIOS parameter block. It is strict, since it is also how
// FAT is recognised: there is no signature to go by.
func parseBPB(s section) (*fat, error) {
	b, err := s.read(0, 512)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	sector, perCluster := int64(le.Uint16(b[11:])), int64(b[13])
	reserved, fats := int64(le.Uint16(b[14:])), int64(b[16])
	rootEntries, media := int64(le.Uint16(b[17:])), b[21]
	sectors, perFAT := int64(le.Uint16(b[19:])), int64(le.Uint16(b[22:]))
	if sectors == 0 {
		sectors = int64(le.Uint32(b[32:]))
	}
	if sector < 512 || sector > 4096 || !isPowerOf2(sector) || !isPowerOf2(perCluster) ||
		reserved == 0 || fats == 0 || fats > 4 || (media != 0xf0 && media < 0xf8) {
		return nil, ErrNoFilesystem
	}
	f := &fat{section: s, bits: 16, cluster: sector * perCluster, table: reserved * sector}
	if perFAT == 0 {
		perFAT = int64(le.Uint32(b[36:]))
		f.parseFAT32(b, perFAT*sector, fats)
	}
	f.rootAt = (reserved + fats*perFAT) * sector
	f.rootSize = (rootEntries*fatEntryBytes + sector - 1) / sector * sector
	f.data = f.rootAt + f.rootSize
	n := (sectors*sector - f.data) / f.cluster
	if f.bits != 32 && n <= maxFAT12 {
		f.bits = 12
	}
	f.clusters = uint32(max(0, min(n, maxFAT32)))
	if n < 1 || n > maxFAT32 || (n+2)*int64(f.bits) > perFAT*sector*8 || (f.bits == 32) != (rootEntries == 0) {
		return nil, ErrNoFilesystem
	}
	return f, nil
}

// parseFAT32 reads what only FAT32 has: the root folder is a file like others,
// and one table of several may be the valid one.
func (f *fat) parseFAT32(b []byte, tableSize, fats int64) {
	f.bits = 32
	f.rootCluster = binary.LittleEndian.Uint32(b[44:])
	flags := binary.LittleEndian.Uint16(b[40:])
	if flags&0x80 != 0 {
		f.table += min(int64(flags&0xf), fats-1) * tableSize
	}
}

func isPowerOf2(n int64) bool { return n > 0 && bits.OnesCount64(uint64(n)) == 1 }

// next is the cluster that follows n in a file; 0 at the end.
func (f *fat) next(n uint32) (uint32, error) {
	at := int64(n) * int64(f.bits) / 8
	b, err := f.read(f.table+at, (f.bits+7)/8)
	if err != nil {
		return 0, err
	}
	var v, end uint32
	switch f.bits {
	case 12:
		v, end = uint32(binary.LittleEndian.Uint16(b))>>(n%2*4)&0xfff, 0xff8
	case 16:
		v, end = uint32(binary.LittleEndian.Uint16(b)), 0xfff8
	default:
		v, end = binary.LittleEndian.Uint32(b)&0x0fffffff, 0x0ffffff8
	}
	if v >= end {
		return 0, nil
	}
	return v, f.checkCluster(v)
}

func (f *fat) checkCluster(n uint32) error {
	if n < 2 || n-2 >= f.clusters {
		return fmt.Errorf("cluster %d: %w", n, ErrCorrupt)
	}
	return nil
}

// chain calls visit for the runs of clusters from first on, up to length bytes.
// It tells how many bytes there are: the chain may end before.
func (f *fat) chain(first uint32, length int64, visit func(run) error) (int64, error) {
	if err := f.checkCluster(first); err != nil {
		return 0, err
	}
	r, mark := run{pos: f.clusterAt(first)}, first
	for n, count := first, int64(1); ; count++ {
		if pos := f.clusterAt(n); pos != r.pos+r.length {
			if err := visit(r); err != nil {
				return 0, err
			}
			r = run{at: r.at + r.length, pos: pos}
		}
		r.length += f.cluster
		if r.at+r.length >= length {
			return r.at + r.length, visit(r)
		}
		var err error
		if n, err = f.next(n); err != nil {
			return 0, err
		}
		switch {
		case n == 0:
			return r.at + r.length, visit(r)
		case n == mark:
			return 0, fmt.Errorf("clusters run in a circle: %w", ErrCorrupt)
		case isPowerOf2(count):
			mark = n // Brent's way to find circles
		}
	}
}

func (f *fat) clusterAt(n uint32) int64 { return f.data + int64(n-2)*f.cluster }

// fatFile is a file of a [fat] filesystem.
type fatFile struct {
	fs      *fat
	typ     Type
	isRoot  bool
	first   uint32 // cluster; 0 where there is no content
	size    int64
	modTime time.Time
}

func (f *fatFile) info() info              { return info{f.typ, f.size, f.modTime} }
func (f *fatFile) target() (string, error) { return "", ErrUnsupported }

func (f *fatFile) content(visit func(run) error) error {
	if f.size == 0 {
		return nil
	}
	n, err := f.fs.chain(f.first, f.size, visit)
	if err == nil && n < f.size {
		err = fmt.Errorf("%d of %d bytes are there: %w", n, f.size, ErrCorrupt)
	}
	return err
}

func (f *fatFile) entries() ([]dirent, error) {
	d := &fatDir{fs: f.fs}
	if f.isRoot && f.fs.bits != 32 {
		err := d.scan(run{pos: f.fs.rootAt, length: f.fs.rootSize})
		return d.list, err
	}
	n, err := f.fs.chain(f.first, maxFATDir+1, d.scan)
	if err == nil && n > maxFATDir && !d.done {
		err = fmt.Errorf("folder of more than %d bytes: %w", maxFATDir, ErrCorrupt)
	}
	return d.list, err
}
