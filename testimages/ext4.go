package testimages

import (
	"encoding/binary"
	"io"

	"github.com/google/uuid"
)

// The shape of the ext4 file system of the sample disk
// (https://docs.kernel.org/filesystems/ext4/). Its groups are so small that
// files and inodes spread over several. It has no journal and no checksums.
const (
	extBlock       = 4096
	extGroupBlocks = 1024
	extGroupInodes = 16 // they fill one block
	extInode       = 256
	extRoot        = 2
	extFirst       = 11 // inode that is not reserved
	extMetadata    = 3  // blocks of a group: two bitmaps and the inodes
	extDescriptor  = 32
	extMaxExtents  = 4 // in an inode

	extMagic       = 0xef53
	extFileTypes   = 0x2  // incompatible feature: folders hold file types
	extExtents     = 0x40 // incompatible feature
	extSparse      = 0x1  // compatible for reading: few groups have a superblock
	extLarge       = 0x2  // compatible for reading: large files
	extExtra       = 0x40 // compatible for reading: room in inodes
	extExtentMagic = 0xf30a
	extUsesExtents = 0x80000
	extFolderMode  = 0o040755
	extFileMode    = 0o100644
)

// extRange is a range of blocks.
type extRange struct{ first, count int }

// ext4Writer writes a tree as an ext4 file system.
type ext4Writer struct {
	disk   io.WriterAt
	blocks int
	id     uuid.UUID
	used   []bool // blocks
	next   int    // block to look at for the next free one
	inodes map[*node]int
	count  int // of inodes in use
}

func writeExt4(disk io.WriterAt, size int64, t *tree) error {
	t = withLostAndFound(t)
	w := &ext4Writer{
		disk:   disk,
		blocks: int(size / extBlock),
		id:     uuid.Must(uuid.NewRandomFromReader(random(t.seed, "ext4"))),
		inodes: map[*node]int{},
		count:  extFirst - 1,
	}
	w.reserve()
	for _, n := range t.nodes() {
		w.number(n)
	}
	for _, n := range t.nodes() {
		if err := w.writeNode(n); err != nil {
			return err
		}
	}
	return w.writeGroups(t)
}

// withLostAndFound is the tree with the folder that e2fsck looks for.
func withLostAndFound(t *tree) *tree {
	with := newTree(t.seed, t.volume)
	with.folder("/lost+found")
	for _, p := range t.paths {
		n := *t.byPath[p]
		n.children = nil
		with.add(p, &n)
	}
	return with
}

func (w *ext4Writer) groups() int { return (w.blocks + extGroupBlocks - 1) / extGroupBlocks }

// hasSuperblock tells the groups that start with a superblock and the group
// descriptors: 0, 1 and the powers of 3, 5 and 7.
func hasSuperblock(group int) bool {
	for _, base := range []int{3, 5, 7} {
		for power := base; power <= group; power *= base {
			if power == group {
				return true
			}
		}
	}
	return group <= 1
}

// metadata is the first block of the bitmaps and inodes of a group.
func metadata(group int) int {
	if hasSuperblock(group) {
		return group*extGroupBlocks + 2
	}
	return group * extGroupBlocks
}

// reserve marks what holds no data as in use, and so what is past the end.
func (w *ext4Writer) reserve() {
	w.used = make([]bool, w.groups()*extGroupBlocks)
	for i := w.blocks; i < len(w.used); i++ {
		w.used[i] = true
	}
	for group := range w.groups() {
		for i := group * extGroupBlocks; i < metadata(group)+extMetadata; i++ {
			w.used[i] = true
		}
	}
}

// number gives a node its inode.
func (w *ext4Writer) number(n *node) {
	if n.parent == n {
		w.inodes[n] = extRoot
		return
	}
	w.count++
	w.inodes[n] = w.count
}

// allocate takes count blocks, in as few ranges as possible.
func (w *ext4Writer) allocate(count int) []extRange {
	var ranges []extRange
	for ; count > 0; w.next++ {
		if w.used[w.next] {
			continue
		}
		w.used[w.next] = true
		count--
		if last := len(ranges) - 1; last >= 0 && ranges[last].first+ranges[last].count == w.next {
			ranges[last].count++
		} else {
			ranges = append(ranges, extRange{w.next, 1})
		}
	}
	return ranges
}

func (w *ext4Writer) writeNode(n *node) error {
	data := n.data
	if n.folder {
		data = w.folder(n)
	}
	ranges := w.allocate((len(data) + extBlock - 1) / extBlock)
	rest := data
	for _, r := range ranges {
		part := rest[:min(len(rest), r.count*extBlock)]
		if _, err := w.disk.WriteAt(part, int64(r.first)*extBlock); err != nil {
			return err
		}
		rest = rest[len(part):]
	}
	index := w.inodes[n] - 1
	table := metadata(index/extGroupInodes) + 2
	at := int64(table)*extBlock + int64(index%extGroupInodes)*extInode
	_, err := w.disk.WriteAt(inode(n, len(data), ranges), at)
	return err
}

// inode is the inode of a node whose content is size bytes in ranges.
func inode(n *node, size int, ranges []extRange) []byte {
	b := make([]byte, extInode)
	mode, links := uint16(extFileMode), uint16(1)
	if n.folder {
		mode, links = extFolderMode, 2
		for _, child := range n.children {
			if child.folder {
				links++
			}
		}
	}
	binary.LittleEndian.PutUint16(b[0:], mode)
	binary.LittleEndian.PutUint32(b[4:], uint32(size))
	for _, at := range []int{0x08, 0x0c, 0x10, 0x90} { // read, changed, written, made
		binary.LittleEndian.PutUint32(b[at:], uint32(birthday.Unix()))
	}
	binary.LittleEndian.PutUint16(b[0x1a:], links)
	binary.LittleEndian.PutUint32(b[0x1c:], uint32((size+extBlock-1)/extBlock*extBlock/sector))
	binary.LittleEndian.PutUint32(b[0x20:], extUsesExtents)
	putExtents(b[0x28:], ranges)
	binary.LittleEndian.PutUint16(b[0x80:], 32) // bytes beyond the first 128
	return b
}

func putExtents(b []byte, ranges []extRange) {
	if len(ranges) > extMaxExtents {
		panic("testimages: a file has more extents than fit in its inode")
	}
	binary.LittleEndian.PutUint16(b[0:], extExtentMagic)
	binary.LittleEndian.PutUint16(b[2:], uint16(len(ranges)))
	binary.LittleEndian.PutUint16(b[4:], extMaxExtents)
	logical := 0
	for i, r := range ranges {
		entry := b[12*(i+1):]
		binary.LittleEndian.PutUint32(entry[0:], uint32(logical))
		binary.LittleEndian.PutUint16(entry[4:], uint16(r.count))
		binary.LittleEndian.PutUint32(entry[8:], uint32(r.first))
		logical += r.count
	}
}

// folder is the content of a folder: whole blocks of entries.
func (w *ext4Writer) folder(n *node) []byte {
	entries := [][]byte{
		extEntry(w.inodes[n], ".", true),
		extEntry(w.inodes[n.parent], "..", true),
	}
	for _, child := range n.children {
		entries = append(entries, extEntry(w.inodes[child], child.name, child.folder))
	}
	var b, last []byte
	left := 0 // in the block
	for _, entry := range entries {
		if len(entry) > left {
			stretch(last, left)
			b = append(b, make([]byte, extBlock)...)
			left = extBlock
		}
		last = b[len(b)-left:]
		copy(last, entry)
		left -= len(entry)
	}
	stretch(last, left)
	return b
}

// stretch makes an entry, if there is one, as much longer as is left of its
// block.
func stretch(entry []byte, left int) {
	if entry != nil {
		length := binary.LittleEndian.Uint16(entry[4:])
		binary.LittleEndian.PutUint16(entry[4:], length+uint16(left))
	}
}

func extEntry(inode int, name string, folder bool) []byte {
	entry := make([]byte, (8+len(name)+3)/4*4)
	binary.LittleEndian.PutUint32(entry[0:], uint32(inode))
	binary.LittleEndian.PutUint16(entry[4:], uint16(len(entry)))
	entry[6], entry[7] = byte(len(name)), 1
	if folder {
		entry[7] = 2
	}
	copy(entry[8:], name)
	return entry
}

// writeGroups writes the bitmaps, the group descriptors and the superblocks.
func (w *ext4Writer) writeGroups(t *tree) error {
	var descriptors []byte
	for group := range w.groups() {
		descriptor, err := w.writeBitmaps(group, t)
		if err != nil {
			return err
		}
		descriptors = append(descriptors, descriptor...)
	}
	for group := range w.groups() {
		if !hasSuperblock(group) {
			continue
		}
		at := int64(group) * extGroupBlocks * extBlock
		if _, err := w.disk.WriteAt(descriptors, at+extBlock); err != nil {
			return err
		}
		if group == 0 {
			at += 1024
		}
		if _, err := w.disk.WriteAt(w.superblock(group), at); err != nil {
			return err
		}
	}
	return nil
}

// writeBitmaps writes the bitmaps of a group and returns its descriptor.
func (w *ext4Writer) writeBitmaps(group int, t *tree) ([]byte, error) {
	inodes := make([]bool, extBlock*8)
	for i := range inodes {
		inodes[i] = i >= extGroupInodes || group*extGroupInodes+i < w.count
	}
	used := make([]bool, extBlock*8)
	for i := range used {
		used[i] = i >= extGroupBlocks || w.used[group*extGroupBlocks+i]
	}
	first := metadata(group)
	if _, err := w.disk.WriteAt(append(bitmap(used), bitmap(inodes)...), int64(first)*extBlock); err != nil {
		return nil, err
	}
	d := make([]byte, extDescriptor)
	binary.LittleEndian.PutUint32(d[0:], uint32(first))
	binary.LittleEndian.PutUint32(d[4:], uint32(first+1))
	binary.LittleEndian.PutUint32(d[8:], uint32(first+2))
	binary.LittleEndian.PutUint16(d[12:], uint16(free(used)))
	binary.LittleEndian.PutUint16(d[14:], uint16(free(inodes)))
	binary.LittleEndian.PutUint16(d[16:], uint16(w.folders(group, t)))
	return d, nil
}

// folders counts the folders whose inodes are in a group.
func (w *ext4Writer) folders(group int, t *tree) int {
	count := 0
	for _, n := range t.nodes() {
		if n.folder && (w.inodes[n]-1)/extGroupInodes == group {
			count++
		}
	}
	return count
}

func bitmap(bits []bool) []byte {
	b := make([]byte, len(bits)/8)
	for i, set := range bits {
		if set {
			b[i/8] |= 1 << (i % 8)
		}
	}
	return b
}

func free(used []bool) int {
	count := 0
	for _, u := range used {
		if !u {
			count++
		}
	}
	return count
}

// superblock is the copy of the superblock that is in a group.
func (w *ext4Writer) superblock(group int) []byte {
	b := make([]byte, 1024)
	for at, value := range map[int]int{
		0x00:  w.groups() * extGroupInodes,
		0x04:  w.blocks,
		0x0c:  free(w.used),
		0x10:  w.groups()*extGroupInodes - w.count,
		0x18:  2, // log2 of 1 KiB units in a block
		0x1c:  2, // the same for clusters
		0x20:  extGroupBlocks,
		0x24:  extGroupBlocks,
		0x28:  extGroupInodes,
		0x30:  int(birthday.Unix()), // written
		0x40:  int(birthday.Unix()), // checked
		0x4c:  1,                    // revision with features
		0x54:  extFirst,
		0x60:  extFileTypes | extExtents,
		0x64:  extSparse | extLarge | extExtra,
		0x108: int(birthday.Unix()), // made
	} {
		binary.LittleEndian.PutUint32(b[at:], uint32(value))
	}
	for at, value := range map[int]int{
		0x36:  0xffff, // mounts until the next check: no limit
		0x38:  extMagic,
		0x3a:  1, // unmounted cleanly
		0x3c:  1, // on errors: continue
		0x58:  extInode,
		0x5a:  group,
		0x15c: 32, // room in inodes, at least
		0x15e: 32, // and wanted
	} {
		binary.LittleEndian.PutUint16(b[at:], uint16(value))
	}
	b[0x175] = 1 // the only kind of checksum, though there are none
	copy(b[0x68:], w.id[:])
	copy(b[0x78:], "sample")
	return b
}
