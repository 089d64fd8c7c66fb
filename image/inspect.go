package image

import (
	"golang.org/x/sys/unix"
)

// Info is what can be told of a disk without locking it.
type Info struct {
	Size     int64  // in bytes
	DataPath string // of the file that holds the sectors
	DiskUUID string // of the encrypted disk that it is marked to be; empty without a mark
}

// Inspect looks at the disk at path, which may be in use.
func Inspect(path string, format Format) (Info, error) { return place{name: path}.inspect(format) }

// InspectBeneath is Inspect for a disk as OpenBeneath finds it.
func InspectBeneath(folder, name string, format Format) (Info, error) {
	p, err := beneath(folder, name)
	if err != nil {
		return Info{}, err
	}
	return p.inspect(format)
}

func (p place) inspect(format Format) (Info, error) {
	if format != VMDK {
		return inspectRaw(p, 0)
	}
	v, err := p.readVMDK()
	if err != nil {
		return Info{}, err
	}
	info, err := inspectRaw(p.beside(v.name), unix.O_NOFOLLOW)
	info.Size = v.Size()
	return info, err
}

func inspectRaw(p place, flags int) (Info, error) {
	file, err := p.open(ReadOnly, flags)
	if err != nil {
		return Info{}, err
	}
	f := newFile(file, ReadOnly)
	defer f.Close()
	if err := f.identify(); err != nil {
		return Info{}, err
	}
	if err := f.measure(); err != nil {
		return Info{}, err
	}
	id, _, err := f.DiskUUID()
	return Info{Size: f.size, DataPath: f.DataPath(), DiskUUID: id}, err
}
