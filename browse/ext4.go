package browse

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"time"
)

// The on-disk format is described in the Linux kernel's documentation,
// filesystems/ext4 ("Data Structures and Algorithms"). ext2 and ext3 are the
// same with fewer features.

const (
	superblockAt   = 1024
	superblockSize = 1024
	ext4Magic      = 0xef53
	rootInode      = 2
	smallInode     = 128 // bytes; what ext2 and ext3 have
)

// Incompatible features: a reader must know every one that is set.
const (
	incompatFiletype   = 0x2
	incompatRecover    = 0x4
	incompatMetaBG     = 0x10
	incompatExtents    = 0x40
	incompat64bit      = 0x80
	incompatMMP        = 0x100
	incompatFlexBG     = 0x200
	incompatEAInode    = 0x400
	incompatCsumSeed   = 0x2000
	incompatLargeDir   = 0x4000
	incompatInlineData = 0x8000
	incompatEncrypt    = 0x10000
	incompatCasefold   = 0x20000

	incompatKnown = incompatFiletype | incompatMetaBG | incompatExtents | incompat64bit | incompatMMP |
		incompatFlexBG | incompatEAInode | incompatCsumSeed | incompatLargeDir | incompatInlineData |
		incompatEncrypt | incompatCasefold

	compatSparseSuper2   = 0x200
	roCompatSparseSuper  = 0x1
	roCompatMetadataCsum = 0x400
)

// ext4 is an ext2, ext3 or ext4 filesystem.
type ext4 struct {
	section
	blockSize      int64 // bytes
	blocks         uint64
	inodes         uint32
	inodesPerGroup uint32
	blocksPerGroup uint64
	inodeSize      int64
	firstBlock     uint64
	descSize       int64
	firstMetaGroup uint64 // groups of descriptors before this one are in one place
	superGroups    func(group uint64) bool
	is64bit        bool
	largeDir       bool
	checksums      bool
	seed           uint32 // of the checksums
}

func isExt4(s section) bool {
	sb, err := s.read(superblockAt, superblockSize)
	if err != nil {
		return false
	}
	le := binary.LittleEndian
	return le.Uint16(sb[0x38:]) == ext4Magic && le.Uint32(sb[0x18:]) <= 6 && le.Uint32(sb[0x4c:]) <= 1
}

func mountExt4(s section) (*volume, error) {
	sb, err := s.read(superblockAt, superblockSize)
	if err != nil {
		return nil, err
	}
	e, err := parseSuperblock(s, sb)
	if err != nil {
		return nil, err
	}
	root, err := e.inode(rootInode)
	if err != nil {
		return nil, err
	}
	if root.typ != Dir {
		return nil, fmt.Errorf("its root is no folder: %w", ErrCorrupt)
	}
	return &volume{section: s, kind: "ext4", root: root}, nil
}

// parseSuperblock checks every number that later arithmetic relies on.
func parseSuperblock(s section, sb []byte) (*ext4, error) {
	le := binary.LittleEndian
	if err := checkFeatures(le.Uint32(sb[0x60:])); err != nil {
		return nil, err
	}
	e := &ext4{
		section:        s,
		blockSize:      1024 << le.Uint32(sb[0x18:]), // isExt4 has bounded it,
		blocks:         uint64(le.Uint32(sb[0x4:])),
		inodes:         le.Uint32(sb[0x0:]),
		firstBlock:     uint64(le.Uint32(sb[0x14:])),
		blocksPerGroup: uint64(le.Uint32(sb[0x20:])),
		inodesPerGroup: le.Uint32(sb[0x28:]),
		inodeSize:      smallInode,
		descSize:       32,
		firstMetaGroup: 1 << 32,
	}
	e.parseFeatures(sb)
	switch {
	case e.blocksPerGroup == 0 || e.inodesPerGroup == 0,
		e.firstBlock > 1 || e.blocks <= e.firstBlock || e.blocks > 1<<48,
		e.inodeSize < smallInode || e.inodeSize > e.blockSize || bits.OnesCount64(uint64(e.inodeSize)) != 1,
		e.descSize < 32 || e.descSize > 1024 || bits.OnesCount64(uint64(e.descSize)) != 1:
		return nil, fmt.Errorf("superblock: %w", ErrCorrupt)
	case e.checksums && le.Uint32(sb[0x3fc:]) != crc32c(^uint32(0), sb[:0x3fc]):
		return nil, fmt.Errorf("superblock: checksum: %w", ErrCorrupt)
	}
	return e, nil
}

// parseFeatures sets what depends on the revision and the feature flags.
func (e *ext4) parseFeatures(sb []byte) {
	le := binary.LittleEndian
	compat, incompat, roCompat := le.Uint32(sb[0x5c:]), le.Uint32(sb[0x60:]), le.Uint32(sb[0x64:])
	if le.Uint32(sb[0x4c:]) >= 1 {
		e.inodeSize = int64(le.Uint16(sb[0x58:]))
	}
	if incompat&incompat64bit != 0 {
		e.is64bit = true
		e.blocks |= uint64(le.Uint32(sb[0x150:])) << 32
		e.descSize = int64(le.Uint16(sb[0xfe:]))
	}
	if incompat&incompatMetaBG != 0 {
		e.firstMetaGroup = uint64(le.Uint32(sb[0x104:]))
	}
	e.largeDir = incompat&incompatLargeDir != 0
	e.checksums = roCompat&roCompatMetadataCsum != 0
	e.seed = crc32c(^uint32(0), sb[0x68:0x78])
	if incompat&incompatCsumSeed != 0 {
		e.seed = le.Uint32(sb[0x270:])
	}
	backups := [2]uint32{le.Uint32(sb[0x24c:]), le.Uint32(sb[0x250:])}
	switch {
	case compat&compatSparseSuper2 != 0:
		e.superGroups = func(g uint64) bool { return g == 0 || g == uint64(backups[0]) || g == uint64(backups[1]) }
	case roCompat&roCompatSparseSuper != 0:
		e.superGroups = func(g uint64) bool { return g <= 1 || isPower(g, 3) || isPower(g, 5) || isPower(g, 7) }
	default:
		e.superGroups = func(uint64) bool { return true }
	}
}

func checkFeatures(incompat uint32) error {
	if incompat&incompatRecover != 0 {
		return fmt.Errorf("it was not unmounted cleanly, its journal has changes to replay: %w", ErrUnsupported)
	}
	if unknown := incompat &^ incompatKnown; unknown != 0 {
		return fmt.Errorf("features %#x: %w", unknown, ErrUnsupported)
	}
	return nil
}

// isPower tells whether n is a power of base.
func isPower(n, base uint64) bool {
	for n%base == 0 && n > 1 {
		n /= base
	}
	return n == 1
}

// block reads one block of metadata.
func (e *ext4) block(n uint64) ([]byte, error) {
	if n == 0 || n >= e.blocks {
		return nil, fmt.Errorf("block %d: %w", n, ErrCorrupt)
	}
	return e.read(int64(n)*e.blockSize, int(e.blockSize))
}

// descriptor is where the descriptor of a group of blocks is, in bytes. They
// follow the superblock; with meta_bg, later ones are spread over the groups.
func (e *ext4) descriptor(group uint64) int64 {
	perBlock := uint64(e.blockSize / e.descSize)
	meta, rest := group/perBlock, int64(group%perBlock)*e.descSize
	block := uint64(superblockAt/e.blockSize) + 1 + meta
	if meta > 0 && meta >= e.firstMetaGroup {
		first := meta * perBlock
		block = e.firstBlock + first*e.blocksPerGroup
		if e.superGroups(first) {
			block++
		}
	}
	return int64(block)*e.blockSize + rest
}

// inodeAt is where an inode is, in bytes.
func (e *ext4) inodeAt(number uint32) (int64, error) {
	if number < 1 || number > e.inodes {
		return 0, fmt.Errorf("inode %d: %w", number, ErrCorrupt)
	}
	group, index := (number-1)/e.inodesPerGroup, (number-1)%e.inodesPerGroup
	d, err := e.read(e.descriptor(uint64(group)), int(e.descSize))
	if err != nil {
		return 0, err
	}
	table := uint64(binary.LittleEndian.Uint32(d[0x8:]))
	if e.descSize >= 64 {
		table |= uint64(binary.LittleEndian.Uint32(d[0x28:])) << 32
	}
	if table == 0 || table >= e.blocks {
		return 0, fmt.Errorf("inodes of group %d: %w", group, ErrCorrupt)
	}
	return int64(table)*e.blockSize + int64(index)*e.inodeSize, nil
}

// inode reads an inode.
func (e *ext4) inode(number uint32) (*inode, error) {
	at, err := e.inodeAt(number)
	if err != nil {
		return nil, err
	}
	raw, err := e.read(at, int(e.inodeSize))
	if err != nil {
		return nil, err
	}
	i := &inode{fs: e, number: number, raw: raw, flags: binary.LittleEndian.Uint32(raw[0x20:])}
	if err := i.verify(); err != nil {
		return nil, err
	}
	return i, i.parse()
}

// ext4Time reads a time of an inode: seconds at offset and, where the inode has
// room for them, two more bits of seconds and the nanoseconds at extra.
func ext4Time(raw []byte, offset, extra int) time.Time {
	seconds := int64(int32(binary.LittleEndian.Uint32(raw[offset:])))
	if len(raw) <= smallInode || extra+4 > smallInode+int(binary.LittleEndian.Uint16(raw[0x80:])) {
		return time.Unix(seconds, 0).UTC()
	}
	more := binary.LittleEndian.Uint32(raw[extra:])
	return time.Unix(seconds+int64(more&3)<<32, int64(more>>2)).UTC()
}
