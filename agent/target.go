package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vmcrypt/vmcrypt/image"
	"github.com/vmcrypt/vmcrypt/vmx"
)

// imageNode is where the one disk of a bare image's descriptor stands.
const imageNode = "scsi0:0"

// Target is what a workflow works on: a VM, by its descriptor, or a bare disk
// image, whose descriptor lies beside it once it is encrypted.
type Target struct {
	Path       string // as the user named it
	Descriptor string // the .vmx; of a bare image it need not exist
	Disks      []Disk // in the descriptor's order

	bare    bool
	file    *vmx.File // nil for a bare image without a descriptor
	absent  []Disk    // in the descriptor, but not present in the VM
	beneath folders   // that its files have to lie in
}

// Disk is one virtual disk of a target.
type Disk struct {
	Node   string // scsi0:0, nvme0:1, ...
	Path   string
	Format image.Format
	Record *vmx.Record // nil while the disk is plain

	fileName string // as the descriptor spells it
	target   *Target
}

// Open finds the disks of a target. A name that ends in .vmx is a VM's
// descriptor, any other a bare disk image, in the given format or, if that is
// empty, in the one its name tells.
func Open(path string, format image.Format) (*Target, error) {
	if isDescriptor(path) {
		if format != "" {
			return nil, fmt.Errorf("%w: %s: the formats of a VM's disks come from their names", ErrFormat, path)
		}
		return openVM(path, nil)
	}
	if err := checkImagePath(path); err != nil {
		return nil, err
	}
	return openImage(path, format, nil)
}

func isDescriptor(path string) bool {
	return strings.EqualFold(filepath.Ext(path), ".vmx")
}

func openVM(path string, beneath folders) (t *Target, err error) {
	t = &Target{Path: path, Descriptor: path, beneath: beneath}
	if t.file, err = t.readDescriptor(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDescriptor, err)
	}
	if err := t.findDisks(); err != nil {
		return nil, err
	}
	if len(t.Disks) == 0 {
		return nil, fmt.Errorf("%w: %s names no disk; is it complete?", ErrDescriptor, path)
	}
	return t, nil
}

func (t *Target) readDescriptor() (*vmx.File, error) {
	if t.beneath == nil {
		return vmx.Read(t.Descriptor)
	}
	f, err := t.beneath.open(t.Descriptor)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return vmx.ReadFrom(f)
}

// findDisks lists the disks that the descriptor names.
func (t *Target) findDisks() error {
	present, err := t.file.Disks()
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrDescriptor, t.Descriptor, err)
	}
	absent, err := t.file.Absent()
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrDescriptor, t.Descriptor, err)
	}
	if t.Disks, err = t.disksOf(present); err != nil {
		return err
	}
	t.absent, err = t.disksOf(absent)
	return err
}

func (t *Target) disksOf(found []vmx.Disk) ([]Disk, error) {
	disks := make([]Disk, len(found))
	for i, d := range found {
		record, err := t.file.Record(d.Node)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", t.Descriptor, err)
		}
		p := resolve(filepath.Dir(t.Descriptor), d.FileName)
		if err := checkFormat(p); err != nil {
			return nil, fmt.Errorf("disk %s: %w", d.Node, err)
		}
		disks[i] = Disk{Node: d.Node, Path: p, Format: image.FormatOf(p), Record: record, fileName: d.FileName, target: t}
	}
	return disks, nil
}

func resolve(dir, name string) string {
	if filepath.IsAbs(name) {
		return filepath.Clean(name)
	}
	return filepath.Join(dir, name)
}

func openImage(path string, format image.Format, beneath folders) (t *Target, err error) {
	if format == "" {
		if err := checkFormat(path); err != nil {
			return nil, err
		}
		format = image.FormatOf(path)
	}
	t = &Target{Path: path, Descriptor: path + ".vmx", bare: true, beneath: beneath}
	t.file, err = t.readDescriptor()
	if errors.Is(err, fs.ErrNotExist) {
		t.Disks = []Disk{{Node: imageNode, Path: path, Format: format, target: t}}
		return t, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDescriptor, err)
	}
	if err := t.findDisks(); err != nil {
		return nil, err
	}
	if len(t.Disks) != 1 || t.Disks[0].Node != imageNode || t.Disks[0].Path != filepath.Clean(path) {
		return nil, fmt.Errorf("%w: %s does not describe %s as its one disk at %s",
			ErrDescriptor, t.Descriptor, filepath.Base(path), imageNode)
	}
	t.Disks[0].Format = format
	return t, nil
}

// checkFormat refuses names of formats that vmcrypt can't read: taken for raw, the
// disk would be encrypted with its format around it.
func checkFormat(path string) error {
	switch ext := strings.ToLower(filepath.Ext(path)); ext {
	case ".qcow2", ".qcow", ".qed", ".vdi", ".vhd", ".vhdx":
		return fmt.Errorf("%s: %w: by its name it is in the format %s; qemu-img converts it to raw",
			path, image.ErrFormat, ext[1:])
	}
	return nil
}

func checkImagePath(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return fmt.Errorf("%s is a folder: name the VM's .vmx in it, or a disk image", path)
	}
	return nil
}

// selectDisks returns the disks at the named nodes, or all of them, and fails if
// one of them is not as the operation wants it.
func (t *Target) selectDisks(nodes []string, encrypted bool) ([]Disk, error) {
	disks, err := t.atNodes(nodes)
	if err != nil {
		return nil, err
	}
	if len(nodes) == 0 {
		if err := t.checkAbsent(); err != nil {
			return nil, err
		}
	}
	for _, d := range disks {
		if err := t.checkState(d, encrypted); err != nil {
			return nil, err
		}
	}
	return disks, nil
}

// atNodes returns the disks at the named nodes, or all of them.
func (t *Target) atNodes(nodes []string) ([]Disk, error) {
	for _, node := range nodes {
		if _, err := t.disk(node); err != nil {
			return nil, err
		}
	}
	if len(nodes) == 0 {
		return t.Disks, nil
	}
	return slices.DeleteFunc(slices.Clone(t.Disks), func(d Disk) bool {
		return !slices.Contains(nodes, d.Node)
	}), nil
}

// checkAbsent fails if a disk that is not present has a file: who means all disks
// must not find that one left out, or left plain.
func (t *Target) checkAbsent() error {
	for _, d := range t.absent {
		if _, err := os.Lstat(d.Path); err == nil {
			return fmt.Errorf("%w: disk %s of %s (%s)", ErrAbsent, d.Node, t.Path, d.Path)
		}
	}
	return nil
}

func (t *Target) checkState(d Disk, encrypted bool) error {
	if err := d.checkFinished(); err != nil {
		return err
	}
	switch {
	case encrypted && d.Record == nil && t.file == nil:
		return fmt.Errorf("%w: %s is missing: without it %s is either plain or can't be decrypted",
			ErrDescriptor, t.Descriptor, d.Path)
	case encrypted && d.Record == nil:
		return fmt.Errorf("%w: disk %s of %s is plain", ErrState, d.Node, t.Path)
	case !encrypted && d.Record != nil:
		return fmt.Errorf("%w: disk %s of %s is already encrypted", ErrState, d.Node, t.Path)
	}
	return nil
}

func (t *Target) nodes() []string {
	nodes := make([]string, len(t.Disks))
	for i, d := range t.Disks {
		nodes[i] = d.Node
	}
	return nodes
}

// disk is the disk at a node, or the only one if no node is named.
func (t *Target) disk(node string) (Disk, error) {
	if node == "" {
		if len(t.Disks) != 1 {
			return Disk{}, fmt.Errorf("%w: %s has several: %s", ErrNode, t.Path, strings.Join(t.nodes(), ", "))
		}
		return t.Disks[0], nil
	}
	for _, d := range t.Disks {
		if d.Node == node {
			return d, nil
		}
	}
	return Disk{}, fmt.Errorf("%w: %s has none at %s, only at %s", ErrNode, t.Path, node, strings.Join(t.nodes(), ", "))
}

// Described says whether the target has a descriptor; of an image it need not exist.
func (t *Target) Described() bool { return t.file != nil }

// Plain says whether no disk of the target is encrypted.
func (t *Target) Plain() bool {
	return !slices.ContainsFunc(t.Disks, func(d Disk) bool { return d.Record != nil })
}
