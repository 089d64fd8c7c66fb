package testimages

import (
	"encoding/binary"
	"fmt"
	"io"
	"regexp"
	"unicode/utf16"
)

// fatLayout is where the parts of a FAT file system lie, in sectors
// (Microsoft, FAT: General Overview of On-Disk Format, version 1.03).
type fatLayout struct {
	bits       int // of a table entry
	sectors    int
	perCluster int
	reserved   int
	perTable   int // sectors of each of the two tables
	rootSize   int // sectors of a root folder that is in no cluster
}

// The FAT file systems of the sample disks.
var (
	fat16 = fatLayout{bits: 16, sectors: 32 * mib / sector, perCluster: 4, reserved: 4, perTable: 64, rootSize: 32}
	fat32 = fatLayout{bits: 32, sectors: 40 * mib / sector, perCluster: 1, reserved: 32, perTable: 632}
)

const (
	fatLabel      = "SAMPLE     "
	fatSerial     = 0x5eed2026
	fatEntry      = 32 // bytes of a folder's entry
	fatEntryChars = 13 // UTF-16 units of a name in one entry
	fatFolder     = 0x10
	fatArchive    = 0x20
	fatIsLabel    = 0x08
	fatIsName     = 0x0f
	fatEnd        = 0x0fffffff // of a chain of clusters
	fatInfo       = 1          // sector of free space information
	fatBackup     = 6          // sector of the copy of the boot sector
)

// fatDate is the birthday; its time is 0.
var fatDate = uint16((birthday.Year()-1980)<<9 | int(birthday.Month())<<5 | birthday.Day())

// fatWriter writes a tree as a FAT file system.
type fatWriter struct {
	fatLayout
	disk     io.WriterAt
	table    []uint32
	clusters map[*node]uint32 // the first of each node, 0 if it has none
}

func writeFAT(disk io.WriterAt, layout fatLayout, t *tree) error {
	w := &fatWriter{
		fatLayout: layout,
		disk:      disk,
		table:     []uint32{0x0ffffff8, fatEnd},
		clusters:  map[*node]uint32{},
	}
	for _, n := range t.nodes() {
		w.allocate(n)
	}
	for _, n := range t.nodes() {
		if err := w.writeNode(n); err != nil {
			return err
		}
	}
	return w.writeTables()
}

// allocate gives a node the clusters that it needs.
func (w *fatWriter) allocate(n *node) {
	size := len(n.data)
	if n.folder {
		size = len(w.folder(n))
	}
	perCluster := w.perCluster * sector
	count := (size + perCluster - 1) / perCluster
	if count == 0 || w.fixed(n) {
		return
	}
	first := uint32(len(w.table))
	for i := range count - 1 {
		w.table = append(w.table, first+uint32(i)+1)
	}
	w.table = append(w.table, fatEnd)
	w.clusters[n] = first
}

// fixed tells the root folder of a FAT16, which lies before the clusters.
func (w *fatWriter) fixed(n *node) bool { return n.parent == n && w.bits == 16 }

func (w *fatWriter) writeNode(n *node) error {
	data := n.data
	if n.folder {
		data = w.folder(n)
	}
	at := w.reserved + 2*w.perTable
	if !w.fixed(n) {
		at += w.rootSize + (int(w.clusters[n])-2)*w.perCluster
	}
	if len(data) == 0 {
		return nil
	}
	_, err := w.disk.WriteAt(data, int64(at)*sector)
	return err
}

// folder is the content of a folder.
func (w *fatWriter) folder(n *node) []byte {
	var b []byte
	if n.parent == n {
		b = w.appendEntry(b, fatLabel, fatIsLabel, 0, 0)
	} else {
		b = w.appendEntry(b, ".          ", fatFolder, w.clusters[n], 0)
		b = w.appendEntry(b, "..         ", fatFolder, w.parentCluster(n), 0)
	}
	for i, child := range n.children {
		short, plain := shortName(child.name, i)
		if !plain {
			b = appendLongName(b, child.name, short)
		}
		kind := byte(fatArchive)
		if child.folder {
			kind = fatFolder
		}
		b = w.appendEntry(b, short, kind, w.clusters[child], len(child.data))
	}
	return b
}

// parentCluster is what ".." points to: 0 stands for the root folder.
func (w *fatWriter) parentCluster(n *node) uint32 {
	if n.parent.parent == n.parent {
		return 0
	}
	return w.clusters[n.parent]
}

func (w *fatWriter) appendEntry(b []byte, short string, kind byte, cluster uint32, size int) []byte {
	entry := make([]byte, fatEntry)
	copy(entry, short)
	entry[11] = kind
	binary.LittleEndian.PutUint16(entry[16:], fatDate) // made
	binary.LittleEndian.PutUint16(entry[18:], fatDate) // read
	binary.LittleEndian.PutUint16(entry[20:], uint16(cluster>>16))
	binary.LittleEndian.PutUint16(entry[24:], fatDate) // written
	binary.LittleEndian.PutUint16(entry[26:], uint16(cluster))
	binary.LittleEndian.PutUint32(entry[28:], uint32(size))
	return append(b, entry...)
}

var dosName = regexp.MustCompile(`^([A-Z0-9]{1,8})(?:\.([A-Z0-9]{1,3}))?$`)

// shortName is the name of 8+3 characters, and whether it is all of the name;
// else it is made of the child's index in its folder.
func shortName(name string, index int) (short string, plain bool) {
	if m := dosName.FindStringSubmatch(name); m != nil {
		return fmt.Sprintf("%-8s%-3s", m[1], m[2]), true
	}
	return fmt.Sprintf("S%05d~1   ", index), false
}

// appendLongName appends the entries of a long name, its last part first.
func appendLongName(b []byte, name, short string) []byte {
	units := utf16.Encode([]rune(name))
	if len(units)%fatEntryChars != 0 {
		units = append(units, 0)
	}
	for len(units)%fatEntryChars != 0 {
		units = append(units, 0xffff)
	}
	last := len(units) / fatEntryChars
	for i := last; i > 0; i-- {
		order := byte(i)
		if i == last {
			order |= 0x40
		}
		b = append(b, longNameEntry(order, units[(i-1)*fatEntryChars:], short)...)
	}
	return b
}

func longNameEntry(order byte, units []uint16, short string) []byte {
	entry := make([]byte, fatEntry)
	entry[0], entry[11] = order, fatIsName
	for _, c := range []byte(short) {
		entry[13] = entry[13]>>1 | entry[13]<<7
		entry[13] += c
	}
	for i, at := range []int{1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30} {
		binary.LittleEndian.PutUint16(entry[at:], units[i])
	}
	return entry
}

// writeTables writes what is before the clusters, but for the root folder.
func (w *fatWriter) writeTables() error {
	table := make([]byte, w.perTable*sector)
	for i, next := range w.table {
		if w.bits == 16 {
			binary.LittleEndian.PutUint16(table[2*i:], uint16(next))
		} else {
			binary.LittleEndian.PutUint32(table[4*i:], next)
		}
	}
	parts := map[int][]byte{
		0:                       w.bootSector(),
		w.reserved:              table,
		w.reserved + w.perTable: table,
	}
	if w.bits == 32 {
		parts[fatInfo], parts[fatBackup], parts[fatBackup+fatInfo] = w.infoSector(), w.bootSector(), w.infoSector()
	}
	for at, part := range parts {
		if _, err := w.disk.WriteAt(part, int64(at)*sector); err != nil {
			return err
		}
	}
	return nil
}

func (w *fatWriter) bootSector() []byte {
	b := make([]byte, sector)
	copy(b, "\xeb\xfe\x90vmcrypt ") // jmp $
	binary.LittleEndian.PutUint16(b[11:], sector)
	b[13] = byte(w.perCluster)
	binary.LittleEndian.PutUint16(b[14:], uint16(w.reserved))
	b[16] = 2 // tables
	binary.LittleEndian.PutUint16(b[17:], uint16(w.rootSize*sector/fatEntry))
	b[21] = 0xf8                              // a fixed disk
	binary.LittleEndian.PutUint16(b[24:], 63) // sectors a track
	binary.LittleEndian.PutUint16(b[26:], 255)
	binary.LittleEndian.PutUint32(b[28:], 1*mib/sector) // sectors before the partition
	binary.LittleEndian.PutUint32(b[32:], uint32(w.sectors))
	rest := b[36:]
	if w.bits == 32 {
		binary.LittleEndian.PutUint32(b[36:], uint32(w.perTable))
		binary.LittleEndian.PutUint32(b[44:], 2) // the root folder's cluster
		binary.LittleEndian.PutUint16(b[48:], fatInfo)
		binary.LittleEndian.PutUint16(b[50:], fatBackup)
		rest = b[64:]
	} else {
		binary.LittleEndian.PutUint16(b[22:], uint16(w.perTable))
	}
	rest[0], rest[2] = 0x80, 0x29 // first disk; serial, label and type follow
	binary.LittleEndian.PutUint32(rest[3:], fatSerial)
	copy(rest[7:], fatLabel)
	copy(rest[18:], fmt.Sprintf("FAT%d   ", w.bits))
	b[510], b[511] = 0x55, 0xaa
	return b
}

func (w *fatWriter) infoSector() []byte {
	b := make([]byte, sector)
	clusters := (w.sectors - w.reserved - 2*w.perTable) / w.perCluster
	copy(b, "RRaA")
	copy(b[484:], "rrAa")
	binary.LittleEndian.PutUint32(b[488:], uint32(clusters+2-len(w.table)))
	binary.LittleEndian.PutUint32(b[492:], uint32(len(w.table)))
	b[510], b[511] = 0x55, 0xaa
	return b
}
