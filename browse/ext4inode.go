package browse

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"time"
)

// Flags of an inode.
const (
	flagCompressed = 0x200 // compressed clusters, of an old patch to ext2
	flagEncrypted  = 0x800
	flagExtents    = 0x80000
	flagInline     = 0x10000000
)

const (
	inodeBlocks   = 0x28 // where an inode keeps its extents, block numbers or link target
	inodeBlocksSz = 60
	directBlocks  = 12
	maxDepth      = 5      // of an extent tree
	extentMagic   = 0xf30a // of each node of it
	extentSize    = 12     // bytes; header and entries alike
	maxWritten    = 32768  // blocks; longer extents are unwritten and read as zeros
)

// inode is a file of an [ext4] filesystem.
type inode struct {
	fs      *ext4
	number  uint32
	raw     []byte
	flags   uint32
	typ     Type
	size    int64
	modTime time.Time
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// crc32c continues the checksum as ext4 has it: without the final inversion.
func crc32c(crc uint32, b []byte) uint32 {
	return ^crc32.Update(^crc, castagnoli, b)
}

// seed is what the checksums of the inode and all it owns start from.
func (i *inode) seed() uint32 {
	var number [4]byte
	binary.LittleEndian.PutUint32(number[:], i.number)
	return crc32c(crc32c(i.fs.seed, number[:]), i.raw[0x64:0x68])
}

// verify checks the checksum of the inode, where the filesystem has them.
func (i *inode) verify() error {
	if !i.fs.checksums {
		return nil
	}
	le, b := binary.LittleEndian, append([]byte(nil), i.raw...)
	want, mask := uint32(le.Uint16(b[0x7c:])), uint32(0xffff)
	le.PutUint16(b[0x7c:], 0)
	if len(b) > smallInode && le.Uint16(b[0x80:]) >= 4 {
		want, mask = want|uint32(le.Uint16(b[0x82:]))<<16, ^uint32(0)
		le.PutUint16(b[0x82:], 0)
	}
	if crc32c(i.seed(), b)&mask != want {
		return fmt.Errorf("inode %d: checksum: %w", i.number, ErrCorrupt)
	}
	return nil
}

func (i *inode) parse() error {
	le := binary.LittleEndian
	i.modTime = ext4Time(i.raw, 0x10, 0x88)
	size := uint64(le.Uint32(i.raw[0x4:]))
	switch mode := le.Uint16(i.raw[0:]); mode & 0xf000 {
	case 0x8000:
		i.typ = File
		size |= uint64(le.Uint32(i.raw[0x6c:])) << 32
	case 0x4000:
		i.typ = Dir
		if i.fs.largeDir {
			size |= uint64(le.Uint32(i.raw[0x6c:])) << 32
		}
	case 0xa000:
		i.typ = Symlink
	case 0x1000, 0x2000, 0x6000, 0xc000:
		i.typ = Other
	default:
		return fmt.Errorf("inode %d: mode %#o: %w", i.number, mode, ErrCorrupt)
	}
	if size > uint64(i.fs.blockSize)<<32 {
		return fmt.Errorf("inode %d: %d bytes: %w", i.number, size, ErrCorrupt)
	}
	i.size = int64(size)
	return nil
}

func (i *inode) info() info { return info{i.typ, i.size, i.modTime} }

// target reads a symbolic link: a short one is in the inode itself.
func (i *inode) target() (string, error) {
	if i.size < inodeBlocksSz && i.flags&(flagExtents|flagInline|flagEncrypted) == 0 {
		return string(i.raw[inodeBlocks:][:i.size]), nil
	}
	return readTarget(i.fs.section, i)
}

// content gives the runs of the file that hold data.
func (i *inode) content(visit func(run) error) error {
	switch {
	case i.flags&flagEncrypted != 0:
		return fmt.Errorf("encrypted by the guest (fscrypt): %w", ErrUnsupported)
	case i.flags&flagInline != 0:
		return fmt.Errorf("kept inside its inode (inline_data): %w", ErrUnsupported)
	case i.flags&flagCompressed != 0:
		return fmt.Errorf("compressed: %w", ErrUnsupported)
	}
	w := &blockWalk{inode: i, visit: visit}
	var err error
	if i.flags&flagExtents != 0 {
		err = w.extents(i.raw[inodeBlocks:][:inodeBlocksSz], -1)
	} else {
		err = w.pointers(i.raw[inodeBlocks:][:inodeBlocksSz])
	}
	if err != nil {
		return fmt.Errorf("inode %d: %w", i.number, err)
	}
	return nil
}

// blockWalk goes through the blocks of a file in order.
type blockWalk struct {
	inode *inode
	visit func(run) error
	next  uint64 // the first block of the file that may come next
}

// emit hands on count blocks at block of the file, found at start.
func (w *blockWalk) emit(block, count, start uint64) error {
	e := w.inode.fs
	if block < w.next || start == 0 || start >= e.blocks || count > e.blocks-start {
		return fmt.Errorf("blocks %d+%d: %w", start, count, ErrCorrupt)
	}
	w.next = block + count
	return w.visit(run{int64(block) * e.blockSize, int64(count) * e.blockSize, int64(start) * e.blockSize})
}

// extents walks one node of an extent tree; the root, in the inode, has parent
// depth -1. A depth that falls by one at each level keeps the walk finite.
func (w *blockWalk) extents(node []byte, parent int) error {
	le := binary.LittleEndian
	n, depth := int(le.Uint16(node[2:])), int(le.Uint16(node[6:]))
	switch {
	case le.Uint16(node) != extentMagic, (n+1)*extentSize > len(node), depth > maxDepth,
		parent >= 0 && depth != parent-1:
		return fmt.Errorf("extent tree: %w", ErrCorrupt)
	}
	for k := 1; k <= n; k++ {
		x := node[k*extentSize:][:extentSize]
		block := uint64(le.Uint32(x))
		if depth > 0 {
			child := uint64(le.Uint32(x[4:])) | uint64(le.Uint16(x[8:]))<<32
			if err := w.extentBlock(child, depth); err != nil {
				return err
			}
			continue
		}
		count := uint64(le.Uint16(x[4:]))
		start := uint64(le.Uint32(x[8:])) | uint64(le.Uint16(x[6:]))<<32
		if count > maxWritten {
			continue // unwritten: reads as zeros
		}
		if err := w.emit(block, count, start); err != nil {
			return err
		}
	}
	return nil
}

// extentBlock walks a node that has a block of its own.
func (w *blockWalk) extentBlock(n uint64, parent int) error {
	b, err := w.inode.fs.block(n)
	if err != nil {
		return err
	}
	if w.inode.fs.checksums {
		end := extentSize * (1 + int(binary.LittleEndian.Uint16(b[4:])))
		if end+4 > len(b) || crc32c(w.inode.seed(), b[:end]) != binary.LittleEndian.Uint32(b[end:]) {
			return fmt.Errorf("extent tree: checksum: %w", ErrCorrupt)
		}
	}
	return w.extents(b, parent)
}

// pointers walks the block numbers of an inode as in ext2: twelve of data, then
// one each of a block, of two levels and of three levels of numbers.
func (w *blockWalk) pointers(b []byte) error {
	var block uint64
	for k := range inodeBlocksSz / 4 {
		level := max(0, k-directBlocks+1)
		if err := w.pointer(uint64(binary.LittleEndian.Uint32(b[4*k:])), level, block); err != nil {
			return err
		}
		block += w.span(level)
	}
	return nil
}

// span is how many blocks of a file a block number of that level covers.
func (w *blockWalk) span(level int) uint64 {
	n := uint64(1)
	for range level {
		n *= uint64(w.inode.fs.blockSize / 4)
	}
	return n
}

// pointer walks what a block number of that level covers, from block on.
func (w *blockWalk) pointer(n uint64, level int, block uint64) error {
	if n == 0 || block*uint64(w.inode.fs.blockSize) >= uint64(w.inode.size) {
		return nil // a hole, or beyond the end
	}
	if level == 0 {
		return w.emit(block, 1, n)
	}
	b, err := w.inode.fs.block(n)
	if err != nil {
		return err
	}
	for ; len(b) > 0; b = b[4:] {
		if err := w.pointer(uint64(binary.LittleEndian.Uint32(b)), level-1, block); err != nil {
			return err
		}
		block += w.span(level - 1)
	}
	return nil
}

// entries reads a folder block by block. That holds for hashed folders too: to
// such a reader the nodes of the hash tree look like unused entries.
func (i *inode) entries() ([]dirent, error) {
	if i.size > maxDirBytes {
		return nil, fmt.Errorf("folder of %d bytes: %w", i.size, ErrUnsupported)
	}
	var list []dirent
	err := i.content(func(r run) error {
		for ; r.length > 0 && r.at < i.size; r.length -= i.fs.blockSize {
			b, err := i.fs.read(r.pos, int(i.fs.blockSize))
			if err != nil {
				return err
			}
			if list, err = i.dirBlock(list, b); err != nil {
				return fmt.Errorf("folder at %d: %w", r.at, err)
			}
			r.at, r.pos = r.at+i.fs.blockSize, r.pos+i.fs.blockSize
		}
		return nil
	})
	return list, err
}

// dirBlock appends the names in one block of a folder.
func (i *inode) dirBlock(list []dirent, b []byte) ([]dirent, error) {
	if err := i.verifyDirBlock(b); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	for len(b) > 0 {
		if len(b) < 8 {
			return nil, ErrCorrupt
		}
		number, length, name := le.Uint32(b), int(le.Uint16(b[4:])), int(b[6])
		if i.fs.blockSize == 1<<16 && (length == 0 || length == 0xffff) {
			length = 1 << 16
		}
		if length < 8 || length%4 != 0 || length > len(b) || 8+name > length {
			return nil, fmt.Errorf("entry of %d bytes: %w", length, ErrCorrupt)
		}
		entry := string(b[8:][:name])
		b = b[length:]
		if number == 0 || entry == "." || entry == ".." {
			continue
		}
		if err := checkName(entry); err != nil {
			return nil, err
		}
		if len(list) == maxEntries {
			return nil, fmt.Errorf("more than %d names: %w", maxEntries, ErrUnsupported)
		}
		list = append(list, dirent{entry, func() (file, error) { return i.fs.inode(number) }})
	}
	return list, nil
}

// verifyDirBlock checks the checksum in the last entry of a block. Nodes of the
// hash tree, which hold no names but the first, have theirs elsewhere.
func (i *inode) verifyDirBlock(b []byte) error {
	tail := b[len(b)-12:]
	if !i.fs.checksums || tail[4] != 12 || tail[7] != 0xde {
		return nil
	}
	if crc32c(i.seed(), b[:len(b)-12]) != binary.LittleEndian.Uint32(tail[8:]) {
		return fmt.Errorf("checksum: %w", ErrCorrupt)
	}
	return nil
}
