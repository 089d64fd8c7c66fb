package testimages

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"unicode/utf16"
)

// The shape of the sample CD (ECMA-119, and Joliet for its second hierarchy of
// names), in blocks.
const (
	isoBlock       = 2048
	isoDescriptors = 16 // after the system area
	isoTables      = 19 // four path tables of one block each
	isoFolders     = 23
	isoMaxName     = 60 // bytes; Joliet has 64 characters
)

// isoTime is the birthday as volume descriptors spell it, the last byte being
// the time zone; isoShortTime as folders do.
var (
	isoTime      = birthday.Format("20060102150405") + "00\x00"
	isoShortTime = []byte{byte(birthday.Year() - 1900), byte(birthday.Month()), byte(birthday.Day()), 0, 0, 0, 0}
)

// ISO makes a CD of about 4 MiB with ISO 9660 and Joliet names.
func ISO(path string, seed int64) ([]Volume, error) {
	t := awkward(seed, "iso9660", isoMaxName)
	w := &isoWriter{tree: t, files: map[*node]int{}}
	w.layOut()
	volume := Volume{FileSystem: "iso9660", Size: int64(w.blocks) * isoBlock}
	t.list(&volume)
	return []Volume{volume}, create(path, volume.Size, w.write)
}

// isoWriter writes a tree as a CD.
type isoWriter struct {
	tree        *tree
	hierarchies []*isoHierarchy
	files       map[*node]int // their first blocks
	blocks      int           // of the whole CD
}

// isoHierarchy is one of the two sets of folders, which share the files.
type isoHierarchy struct {
	w       *isoWriter
	joliet  bool
	folders []*node       // in the order of the path table
	places  map[*node]int // first block of each folder
	sizes   map[*node]int // of each folder, in bytes
}

// layOut gives everything its place.
func (w *isoWriter) layOut() {
	next := isoFolders
	for _, joliet := range []bool{false, true} {
		h := &isoHierarchy{w: w, joliet: joliet, places: map[*node]int{}, sizes: map[*node]int{}}
		h.sortFolders()
		for _, folder := range h.folders {
			h.places[folder], h.sizes[folder] = next, len(h.folder(folder))
			next += h.sizes[folder] / isoBlock
		}
		w.hierarchies = append(w.hierarchies, h)
	}
	for _, n := range w.tree.nodes() {
		if !n.folder {
			w.files[n] = next
			next += (len(n.data) + isoBlock - 1) / isoBlock
		}
	}
	w.blocks = next
}

func (w *isoWriter) write(f *os.File) error {
	for i, h := range w.hierarchies {
		if err := h.write(f, i); err != nil {
			return err
		}
	}
	terminator := append([]byte("\xffCD001\x01"), make([]byte, isoBlock-7)...)
	if _, err := f.WriteAt(terminator, (isoDescriptors+2)*isoBlock); err != nil {
		return err
	}
	for n, block := range w.files {
		if _, err := f.WriteAt(n.data, int64(block)*isoBlock); err != nil {
			return err
		}
	}
	return nil
}

// sortFolders puts the folders in the order of levels, then of their parents,
// then of names.
func (h *isoHierarchy) sortFolders() {
	h.folders = []*node{h.w.tree.root}
	for i := 0; i < len(h.folders); i++ {
		for _, child := range h.sorted(h.folders[i]) {
			if child.folder {
				h.folders = append(h.folders, child)
			}
		}
	}
}

func (h *isoHierarchy) sorted(folder *node) []*node {
	return slices.SortedFunc(slices.Values(folder.children), func(a, b *node) int {
		return bytes.Compare(h.name(a), h.name(b))
	})
}

// name is the identifier of a node in its folder. Those of ISO 9660 proper are
// made of the node's index there.
func (h *isoHierarchy) name(n *node) []byte {
	switch {
	case n.parent == n:
		return []byte{0}
	case h.joliet:
		return ucs2(n.name)
	case n.folder:
		return fmt.Appendf(nil, "DIR%05d", slices.Index(n.parent.children, n))
	}
	return fmt.Appendf(nil, "FILE%04d.;1", slices.Index(n.parent.children, n))
}

// ucs2 is a text as Joliet spells it.
func ucs2(s string) []byte {
	var b []byte
	for _, unit := range utf16.Encode([]rune(s)) {
		b = binary.BigEndian.AppendUint16(b, unit)
	}
	return b
}

// folder is the content of a folder: records that do not cross blocks.
func (h *isoHierarchy) folder(n *node) []byte {
	records := [][]byte{h.record(n, []byte{0}), h.record(n.parent, []byte{1})}
	for _, child := range h.sorted(n) {
		records = append(records, h.record(child, h.name(child)))
	}
	var b []byte
	for _, r := range records {
		if left := isoBlock - len(b)%isoBlock; len(r) > left {
			b = append(b, make([]byte, left)...)
		}
		b = append(b, r...)
	}
	return append(b, make([]byte, -len(b)&(isoBlock-1))...)
}

// record is the record of a node under a name.
func (h *isoHierarchy) record(n *node, name []byte) []byte {
	r := make([]byte, (33+len(name)+1)/2*2)
	block, size := h.w.files[n], len(n.data)
	if n.folder {
		block, size = h.places[n], h.sizes[n]
		r[25] = 2
	}
	r[0] = byte(len(r))
	putBoth32(r[2:], block)
	putBoth32(r[10:], size)
	copy(r[18:], isoShortTime)
	putBoth16(r[28:], 1)
	r[32] = byte(len(name))
	copy(r[33:], name)
	return r
}

// putBoth32 puts a number in both byte orders, one after the other.
func putBoth32(b []byte, n int) {
	binary.LittleEndian.PutUint32(b, uint32(n))
	binary.BigEndian.PutUint32(b[4:], uint32(n))
}

func putBoth16(b []byte, n int) {
	binary.LittleEndian.PutUint16(b, uint16(n))
	binary.BigEndian.PutUint16(b[2:], uint16(n))
}

// write writes the hierarchy of the given index: descriptor, path tables and
// folders.
func (h *isoHierarchy) write(f *os.File, index int) error {
	tables := isoTables + 2*index
	little, big := h.pathTable(binary.LittleEndian), h.pathTable(binary.BigEndian)
	parts := map[int][]byte{
		isoDescriptors + index: h.descriptor(tables, len(little)),
		tables:                 little,
		tables + 1:             big,
	}
	for _, folder := range h.folders {
		parts[h.places[folder]] = h.folder(folder)
	}
	for block, part := range parts {
		if _, err := f.WriteAt(part, int64(block)*isoBlock); err != nil {
			return err
		}
	}
	return nil
}

// byteOrder is either of the two orders.
type byteOrder interface {
	AppendUint16([]byte, uint16) []byte
	AppendUint32([]byte, uint32) []byte
}

// pathTable lists the folders with the numbers of those that they are in.
func (h *isoHierarchy) pathTable(order byteOrder) []byte {
	var b []byte
	for _, folder := range h.folders {
		name := h.name(folder)
		b = append(b, byte(len(name)), 0)
		b = order.AppendUint32(b, uint32(h.places[folder]))
		b = order.AppendUint16(b, uint16(slices.Index(h.folders, folder.parent)+1))
		b = append(b, name...)
		if len(name)%2 != 0 {
			b = append(b, 0)
		}
	}
	return b
}

// descriptor is the volume descriptor of a hierarchy whose path tables are in
// the blocks from tables on.
func (h *isoHierarchy) descriptor(tables, tableSize int) []byte {
	b := bytes.Repeat([]byte{0}, isoBlock)
	copy(b, "\x01CD001\x01")
	blank, label := []byte(" "), []byte("SAMPLE")
	if h.joliet {
		b[0] = 2
		copy(b[88:], "%/E") // the escape sequence of UCS-2 level 3
		blank, label = ucs2(" "), ucs2("SAMPLE")
	}
	for _, text := range []struct{ start, end int }{{8, 72}, {190, 813}} {
		copy(b[text.start:text.end], bytes.Repeat(blank, text.end-text.start))
	}
	copy(b[40:], label)
	putBoth32(b[80:], h.w.blocks)
	putBoth16(b[120:], 1) // volumes in the set
	putBoth16(b[124:], 1) // this one
	putBoth16(b[128:], isoBlock)
	putBoth32(b[132:], tableSize)
	binary.LittleEndian.PutUint32(b[140:], uint32(tables))
	binary.BigEndian.PutUint32(b[148:], uint32(tables+1))
	copy(b[156:], h.record(h.w.tree.root, []byte{0}))
	copy(b[813:], isoTime+isoTime)                                 // made and changed
	copy(b[847:], bytes.Repeat([]byte("0000000000000000\x00"), 2)) // no expiry
	b[881] = 1
	return b
}
