package browse

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"slices"

	"github.com/diskfs/go-diskfs/partition/gpt"
	"github.com/diskfs/go-diskfs/partition/mbr"
)

const (
	mbrSector     = 512 // an MBR counts in 512 bytes
	mbrEntries    = 446 // where its entries start
	mbrEntrySize  = 16
	typeGPT       = 0xee // of the entry that protects a GPT
	maxLogical    = 128  // logical partitions
	gptEntrySize  = 128  // the only size in use, and the only one go-diskfs reads
	maxGPTEntries = 1024
)

// table is a partition table.
type table struct {
	kind  string // gpt or mbr
	parts []Partition
}

// partition finds a partition by its number, or the only one for 0.
func (t *table) partition(number int) (Partition, error) {
	if t == nil {
		return Partition{}, fmt.Errorf("the disk has no partitions: %w: write /path", ErrPath)
	}
	if number == 0 && len(t.parts) == 1 {
		return t.parts[0], nil
	}
	if number == 0 {
		return Partition{}, fmt.Errorf("the disk has %d partitions: %w: write N:/path", len(t.parts), ErrPath)
	}
	i := slices.IndexFunc(t.parts, func(p Partition) bool { return p.Number == number })
	if i < 0 {
		return Partition{}, fmt.Errorf("partition %d: %w", number, fs.ErrNotExist)
	}
	return t.parts[i], nil
}

// readTable reads the partition table; nil if there is none. As in Linux a GPT
// counts only where the MBR has an entry that protects it: without one it is a
// remnant.
func readTable(disk section) (*table, error) {
	sector, err := disk.read(0, mbrSector)
	if errors.Is(err, ErrCorrupt) {
		return nil, nil // a disk of less than a sector
	}
	if err != nil {
		return nil, err
	}
	if sector[510] != 0x55 || sector[511] != 0xaa {
		return nil, nil
	}
	for e := sector[mbrEntries:510]; len(e) > 0; e = e[mbrEntrySize:] {
		if e[4] == typeGPT {
			return readGPT(disk)
		}
	}
	return readMBR(disk)
}

// readGPT reads a GPT with sectors of 512 or 4096 bytes; the backup at the end
// of the disk serves where the primary is damaged.
func readGPT(disk section) (*table, error) {
	var errs []error
	for _, sectorSize := range []int64{512, 4096} {
		t, err := readGPTSectors(disk, sectorSize)
		if err == nil {
			return t, nil
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("GPT: %w", errs[0])
}

func readGPTSectors(disk section, sectorSize int64) (*table, error) {
	for _, at := range []int64{sectorSize, disk.size - disk.size%sectorSize - sectorSize} {
		if err := checkGPTHeader(disk, at); err != nil {
			return nil, err
		}
	}
	found, err := recovered(func() (*gpt.Table, error) {
		return gpt.Read(diskFile{disk}, int(sectorSize), int(sectorSize))
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	t := &table{kind: "gpt"}
	for _, p := range found.Partitions {
		if p.Start < 1 || p.End < p.Start || p.End >= uint64(math.MaxInt64/sectorSize) {
			return nil, fmt.Errorf("partition %d ends before it starts: %w", p.Index, ErrCorrupt)
		}
		t.parts = append(t.parts, Partition{
			Number: p.Index, Type: string(p.Type), Name: p.Name,
			Start: int64(p.Start) * sectorSize,
			Size:  int64(p.End-p.Start+1) * sectorSize,
		})
	}
	return t, nil
}

// checkGPTHeader bounds what go-diskfs allocates for the entries of a header.
func checkGPTHeader(disk section, offset int64) error {
	h, err := disk.read(offset, 92)
	if err != nil {
		return err
	}
	if string(h[:8]) != "EFI PART" {
		return nil // go-diskfs tells
	}
	le := binary.LittleEndian
	if n, size := le.Uint32(h[80:]), le.Uint32(h[84:]); n > maxGPTEntries || size != gptEntrySize {
		return fmt.Errorf("%d entries of %d bytes: %w", n, size, ErrUnsupported)
	}
	if first := le.Uint64(h[72:]); first > uint64(disk.size)/512 {
		return fmt.Errorf("entries beyond the end of the disk: %w", ErrCorrupt)
	}
	return nil
}

// readMBR reads the primary and the logical partitions; nil where the sector is
// no table after all, as the boot sector of a filesystem is none.
func readMBR(disk section) (*table, error) {
	primary, err := mbrParts(disk)
	if err != nil {
		return nil, err
	}
	t := &table{kind: "mbr"}
	for _, p := range primary {
		if p.Size == 0 || p.Type == mbr.Empty {
			continue
		}
		part := mbrPartition(p, 0)
		if part.Start >= disk.size {
			return nil, nil
		}
		t.parts = append(t.parts, part)
		if !isExtended(p.Type) {
			continue
		}
		logical, err := readLogical(disk, part)
		if err != nil {
			return nil, fmt.Errorf("logical partitions: %w", err)
		}
		t.parts = append(t.parts, logical...)
	}
	if len(t.parts) == 0 {
		return nil, nil
	}
	slices.SortFunc(t.parts, func(a, b Partition) int { return a.Number - b.Number })
	return t, nil
}

// readLogical follows the chain of tables in an extended partition: the first
// entry of each is a logical partition, counted from that table, the second is
// the next table, counted from the start of the extended partition.
func readLogical(disk section, extended Partition) ([]Partition, error) {
	area, err := disk.sub(extended.Start, extended.Size)
	if err != nil {
		return nil, err
	}
	var parts []Partition
	for at := int64(0); len(parts) < maxLogical; {
		s, err := area.sub(at, area.size-min(at, area.size))
		if err != nil {
			return nil, err
		}
		entries, err := mbrParts(s)
		if err != nil {
			return nil, err
		}
		if len(entries) < 2 {
			return parts, nil
		}
		if entries[0].Size > 0 {
			p := mbrPartition(entries[0], s.start)
			p.Number = 5 + len(parts)
			parts = append(parts, p)
		}
		next := int64(entries[1].Start) * mbrSector
		if !isExtended(entries[1].Type) || next <= at {
			return parts, nil
		}
		at = next
	}
	return nil, fmt.Errorf("more than %d: %w", maxLogical, ErrUnsupported)
}

// mbrParts reads the four entries of the table at the start of s; none where
// there is no table.
func mbrParts(s section) ([]*mbr.Partition, error) {
	if _, err := s.read(0, mbrSector); err != nil {
		return nil, err
	}
	t, err := recovered(func() (*mbr.Table, error) {
		return mbr.Read(diskFile{s}, mbrSector, mbrSector)
	})
	if err != nil {
		return nil, s.ctx.Err() // what could be read is no table
	}
	return t.Partitions, nil
}

func mbrPartition(p *mbr.Partition, base int64) Partition {
	return Partition{
		Number: p.Index,
		Start:  base + int64(p.Start)*mbrSector,
		Size:   int64(p.Size) * mbrSector,
		Type:   fmt.Sprintf("%#02x", byte(p.Type)),
	}
}

func isExtended(t mbr.Type) bool {
	return t == 0x05 || t == 0x0f || t == 0x85
}

// recovered turns a panic of go-diskfs into an error.
func recovered[T any](read func() (T, error)) (t T, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v: %w", p, ErrCorrupt)
		}
	}()
	return read()
}

// diskFile is a section as go-diskfs wants it.
type diskFile struct{ section }

func (d diskFile) ReadAt(b []byte, offset int64) (int, error) {
	got, err := d.read(offset, len(b))
	return copy(b, got), err
}

// Seek only tells the size, which is all that reading a table asks of it.
func (d diskFile) Seek(offset int64, whence int) (int64, error) {
	if offset != 0 || whence != io.SeekEnd {
		return 0, errors.ErrUnsupported
	}
	return d.size, nil
}

func (d diskFile) Read([]byte) (int, error)   { return 0, errors.ErrUnsupported }
func (d diskFile) Stat() (fs.FileInfo, error) { return nil, errors.ErrUnsupported }
func (d diskFile) Close() error               { return nil }
