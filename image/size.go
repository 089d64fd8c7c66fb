package image

import (
	"fmt"
	"io"
)

// Size is the size in bytes of the disk at path. It takes no lock: a disk in use
// has a size too.
func Size(path string, format Format) (int64, error) {
	if format == VMDK {
		v, err := ReadVMDK(path)
		if err != nil {
			return 0, err
		}
		return v.Size(), nil
	}
	f, err := openFile(path, path, ReadOnly, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if kind := notDisk(info.Mode()); kind != "" {
		return 0, fmt.Errorf("%s is %s, not a disk image or a block device", path, kind)
	}
	return f.Seek(0, io.SeekEnd)
}
