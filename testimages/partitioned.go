package testimages

import (
	"encoding/binary"
	"hash/crc32"
	"io"
	"os"
	"unicode/utf16"

	"github.com/google/uuid"
)

const (
	sector = 512
	mib    = 1 << 20
)

// The sizes of the disks in bytes.
const (
	gptSize = 112 * mib
	mbrSize = 34 * mib
)

// GPT makes a disk of 112 MiB with a GPT, an EFI system partition of FAT32 and
// a partition of ext4.
func GPT(path string, seed int64) ([]Volume, error) {
	efi, root := awkward(seed, "efi", 100), awkward(seed, "root", 255)
	efi.folder("/EFI")
	efi.folder("/EFI/BOOT")
	efi.file("/EFI/BOOT/BOOTX64.EFI", 123456)
	volumes := []Volume{
		{Partition: 1, FileSystem: "fat32", Offset: 1 * mib, Size: 40 * mib},
		{Partition: 2, FileSystem: "ext4", Offset: 41 * mib, Size: 70 * mib},
	}
	efi.list(&volumes[0])
	root.list(&volumes[1])
	return volumes, create(path, gptSize, func(f *os.File) error {
		if err := writeGPT(f, volumes, seed); err != nil {
			return err
		}
		if err := writeFAT(volumes[0].on(f), fat32, efi); err != nil {
			return err
		}
		return writeExt4(volumes[1].on(f), volumes[1].Size, root)
	})
}

// MBR makes a disk of 34 MiB with an MBR and a partition of FAT16.
func MBR(path string, seed int64) ([]Volume, error) {
	t := awkward(seed, "fat16", 100)
	volume := Volume{Partition: 1, FileSystem: "fat16", Offset: 1 * mib, Size: 32 * mib}
	t.list(&volume)
	return []Volume{volume}, create(path, mbrSize, func(f *os.File) error {
		if _, err := f.WriteAt(mbr(0x0e, volume.Offset, volume.Size), 0); err != nil {
			return err
		}
		return writeFAT(volume.on(f), fat16, t)
	})
}

// on is the part of the disk that the volume fills.
func (v *Volume) on(disk io.WriterAt) io.WriterAt {
	return io.NewOffsetWriter(disk, v.Offset)
}

// mbr is a master boot record with one partition, of bytes at an offset.
func mbr(kind byte, offset, size int64) []byte {
	b := make([]byte, sector)
	entry := b[446:]
	copy(entry[1:], []byte{0xfe, 0xff, 0xff}) // no cylinders, heads and sectors
	entry[4] = kind
	copy(entry[5:], []byte{0xfe, 0xff, 0xff})
	binary.LittleEndian.PutUint32(entry[8:], uint32(offset/sector))
	binary.LittleEndian.PutUint32(entry[12:], uint32(size/sector))
	b[510], b[511] = 0x55, 0xaa
	return b
}

// Lengths in a GUID partition table (UEFI specification, section 5.3).
const (
	gptEntries     = 128
	gptEntryLength = 128
	gptHeader      = 92
	gptTable       = gptEntries * gptEntryLength / sector // in sectors
)

var partitionTypes = map[string]uuid.UUID{
	"fat32": uuid.MustParse("c12a7328-f81f-11d2-ba4b-00a0c93ec93b"), // EFI system
	"ext4":  uuid.MustParse("0fc63daf-8483-4772-8e79-3d69d8477de4"), // Linux
}

// writeGPT writes both copies of the table, and the MBR that protects them.
func writeGPT(f *os.File, volumes []Volume, seed int64) error {
	id := gptID(seed, "disk")
	entries := make([]byte, gptEntries*gptEntryLength)
	for i, v := range volumes {
		putGPTEntry(entries[i*gptEntryLength:], &v, gptID(seed, v.FileSystem))
	}
	last := int64(gptSize/sector - 1)
	for _, part := range []struct {
		sector int64
		bytes  []byte
	}{
		{0, mbr(0xee, sector, gptSize-sector)},
		{1, gptHeaderSector(1, last, 2, id, entries)},
		{2, entries},
		{last - gptTable, entries},
		{last, gptHeaderSector(last, 1, last-gptTable, id, entries)},
	} {
		if _, err := f.WriteAt(part.bytes, part.sector*sector); err != nil {
			return err
		}
	}
	return nil
}

func gptID(seed int64, name string) []byte {
	return guid(uuid.Must(uuid.NewRandomFromReader(random(seed, "gpt "+name))))
}

// guid is a UUID as GPT stores it: its first three fields are little-endian.
func guid(id uuid.UUID) []byte {
	b := binary.LittleEndian.AppendUint32(nil, binary.BigEndian.Uint32(id[0:]))
	b = binary.LittleEndian.AppendUint16(b, binary.BigEndian.Uint16(id[4:]))
	b = binary.LittleEndian.AppendUint16(b, binary.BigEndian.Uint16(id[6:]))
	return append(b, id[8:]...)
}

func putGPTEntry(entry []byte, v *Volume, id []byte) {
	copy(entry, guid(partitionTypes[v.FileSystem]))
	copy(entry[16:], id)
	binary.LittleEndian.PutUint64(entry[32:], uint64(v.Offset/sector))
	binary.LittleEndian.PutUint64(entry[40:], uint64((v.Offset+v.Size)/sector-1))
	for i, unit := range utf16.Encode([]rune("sample " + v.FileSystem)) {
		binary.LittleEndian.PutUint16(entry[56+2*i:], unit)
	}
}

// gptHeaderSector is the header in sector self, whose copy is in sector other
// and whose entries start at sector table.
func gptHeaderSector(self, other, table int64, id, entries []byte) []byte {
	h := make([]byte, sector)
	copy(h, "EFI PART\x00\x00\x01\x00")
	binary.LittleEndian.PutUint32(h[12:], gptHeader)
	binary.LittleEndian.PutUint64(h[24:], uint64(self))
	binary.LittleEndian.PutUint64(h[32:], uint64(other))
	binary.LittleEndian.PutUint64(h[40:], 2+gptTable)
	binary.LittleEndian.PutUint64(h[48:], gptSize/sector-gptTable-2)
	copy(h[56:], id)
	binary.LittleEndian.PutUint64(h[72:], uint64(table))
	binary.LittleEndian.PutUint32(h[80:], gptEntries)
	binary.LittleEndian.PutUint32(h[84:], gptEntryLength)
	binary.LittleEndian.PutUint32(h[88:], crc32.ChecksumIEEE(entries))
	binary.LittleEndian.PutUint32(h[16:], crc32.ChecksumIEEE(h[:gptHeader]))
	return h
}
