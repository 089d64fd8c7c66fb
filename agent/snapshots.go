package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/vmcrypt/vmcrypt/image"
	"github.com/vmcrypt/vmcrypt/vmx"
)

// maxBeside is the most VMDKs that are looked at for one disk.
const maxBeside = 10_000

// checkNoSnapshots refuses disks that snapshots lie on: what these do not hold
// themselves they read from them, and converted it would be noise to them. It sees
// what the VM says of its snapshots, and VMDKs in the disk's folder; others that
// lie on a disk, such as qcow2 overlays, are known to nobody.
func (t *Target) checkNoSnapshots(disks []Disk) error {
	if err := t.checkSnapshotList(); err != nil {
		return err
	}
	for _, d := range disks {
		if err := d.checkNoChild(); err != nil {
			return err
		}
	}
	return nil
}

// checkSnapshotList looks into NAME.vmsd, where VMware lists a VM's snapshots.
func (t *Target) checkSnapshotList() error {
	if t.bare {
		return nil
	}
	path := strings.TrimSuffix(t.Descriptor, filepath.Ext(t.Descriptor)) + ".vmsd"
	list, err := vmx.Read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: what tells of the VM's snapshots can't be read: %v", ErrInPlace, err)
	}
	if n, _ := list.Get("snapshot.numSnapshots"); n != "" && n != "0" {
		return fmt.Errorf("%w: %s has %s snapshots, as %s says, which need the disks as they are: delete them first",
			ErrInPlace, t.Path, n, filepath.Base(path))
	}
	return nil
}

// checkNoChild looks for a VMDK beside the disk that is a snapshot of it.
func (d Disk) checkNoChild() error {
	own := resolved(d.Path)
	beside, err := vmdksIn(filepath.Dir(own))
	if err != nil {
		return err
	}
	if len(beside) > maxBeside {
		return fmt.Errorf("%w: %d VMDKs lie beside %s, too many to see whether it has snapshots", ErrInPlace, len(beside), d.Path)
	}
	for _, path := range beside {
		parent, err := image.VMDKParent(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: whether %s has snapshots can't be told: %w", ErrInPlace, d.Path, err)
		}
		if path != own && isNameOf(filepath.Base(own), parent) {
			return fmt.Errorf("%w: %s is a snapshot of %s and needs it as it is: consolidate or delete it first",
				ErrInPlace, path, d.Path)
		}
	}
	return nil
}

// isNameOf tells whether a disk in the file of that name goes by another name, too:
// other systems don't tell cases apart, and a flat extent belongs to a descriptor.
func isNameOf(file, name string) bool {
	descriptor := strings.Replace(strings.ToLower(file), "-flat.vmdk", ".vmdk", 1)
	return strings.EqualFold(name, file) || strings.EqualFold(name, descriptor)
}

// vmdksIn lists the files in a folder that may be descriptors of VMDKs. What the
// guest writes is none.
func vmdksIn(folder string) (paths []string, err error) {
	entries, err := os.ReadDir(folder)
	for _, e := range entries {
		if path := filepath.Join(folder, e.Name()); !e.IsDir() && image.FormatOf(path) == image.VMDK {
			paths = append(paths, path)
		}
	}
	return paths, err
}
