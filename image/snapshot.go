package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// VMDKParent is the file name, without folders, of the disk that the VMDK at path
// is a snapshot of. It is empty for one that is none, and for what is no VMDK. The
// descriptor may be a file of its own or, as in sparse disks, a part of one; at most
// 64 KiB of it are read.
func VMDKParent(path string) (string, error) {
	file, err := place{name: path}.open(ReadOnly, 0)
	if err != nil {
		return "", err
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return "", err
	}
	text, err := findDescriptor(file)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	return parentIn(text), nil
}

// findDescriptor reads the text of a VMDK's descriptor, if there is one.
func findDescriptor(f *os.File) ([]byte, error) {
	head, err := readUpTo(f, 0, vmdkSector)
	if err != nil {
		return nil, err
	}
	offset, length := int64(0), int64(maxDescriptor)
	if isSparse(head) {
		// SparseExtentHeader of the Virtual Disk Format 5.0: where the embedded
		// descriptor is, and how long, both in sectors.
		offset = sectorBytes(head[28:36])
		length = min(sectorBytes(head[36:44]), maxDescriptor)
	}
	text, err := readUpTo(f, offset, length)
	if err != nil || !bytes.HasPrefix(text, []byte(vmdkHeading)) {
		return nil, err
	}
	text, _, _ = bytes.Cut(text, []byte{0})
	return text, nil
}

func isSparse(head []byte) bool {
	return len(head) == vmdkSector && bytes.HasPrefix(head, []byte("KDMV"))
}

// sectorBytes is a number of sectors in bytes, as far as a file can reach.
func sectorBytes(field []byte) int64 {
	return int64(min(binary.LittleEndian.Uint64(field), 1<<53) * vmdkSector)
}

// readUpTo reads what there is of length bytes.
func readUpTo(f *os.File, offset, length int64) ([]byte, error) {
	b := make([]byte, length)
	n, err := f.ReadAt(b, offset)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return b[:n], err
}

// parentIn reads a descriptor of any kind, which need not be one to work with.
func parentIn(text []byte) string {
	v := VMDKDescriptor{values: map[string]string{}}
	for line := range bytes.Lines(text) {
		if m := vmdkValue.FindSubmatch(bytes.TrimRight(line, "\r\n")); m != nil {
			v.values[strings.ToLower(string(m[1]))] = string(m[2]) + string(m[3])
		}
	}
	hint := v.values["parentfilenamehint"]
	if m := v.charmap(); m != nil {
		hint, _ = m.NewDecoder().String(hint) // has a rune for every byte
	}
	return hint[strings.LastIndexAny(hint, `/\`)+1:]
}
