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

	bare bool
	file *vmx.File // nil for a bare image without a descriptor
}

// Disk is one virtual disk of a target.
type Disk struct {
	Node   string // scsi0:0, nvme0:1, ...
	Path   string
	Format image.Format
	Record *vmx.Record // nil while the disk is plain

	fileName string // as the descriptor spells it
}

// Open finds the disks of a target. A name that ends in .vmx is a VM's
// descriptor, any other a bare disk image, in the given format or, if that is
// empty, in the one its name tells.
func Open(path string, format image.Format) (*Target, error) {
	if isDescriptor(path) {
		if format != "" {
			return nil, fmt.Errorf("%s: the descriptor gives the disks' formats: leave --format out", path)
		}
		return openVM(path)
	}
	return openImage(path, format)
}

func isDescriptor(path string) bool {
	return strings.EqualFold(filepath.Ext(path), ".vmx")
}

func openVM(path string) (*Target, error) {
	f, err := vmx.Read(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDescriptor, err)
	}
	disks, err := disksOf(f, path)
	if err != nil {
		return nil, err
	}
	if len(disks) == 0 {
		return nil, fmt.Errorf("%w: %s names no disk; is it complete?", ErrDescriptor, path)
	}
	return &Target{Path: path, Descriptor: path, Disks: disks, file: f}, nil
}

func disksOf(f *vmx.File, path string) ([]Disk, error) {
	found, err := f.Disks()
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDescriptor, path, err)
	}
	disks := make([]Disk, len(found))
	for i, d := range found {
		record, err := f.Record(d.Node)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		p := resolve(filepath.Dir(path), d.FileName)
		disks[i] = Disk{Node: d.Node, Path: p, Format: image.FormatOf(p), Record: record, fileName: d.FileName}
	}
	return disks, nil
}

func resolve(dir, name string) string {
	if filepath.IsAbs(name) {
		return filepath.Clean(name)
	}
	return filepath.Join(dir, name)
}

func openImage(path string, format image.Format) (*Target, error) {
	if err := checkImagePath(path); err != nil {
		return nil, err
	}
	if format == "" {
		format = image.FormatOf(path)
	}
	t := &Target{Path: path, Descriptor: path + ".vmx", bare: true}
	f, err := vmx.Read(t.Descriptor)
	if errors.Is(err, fs.ErrNotExist) {
		t.Disks = []Disk{{Node: imageNode, Path: path, Format: format}}
		return t, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDescriptor, err)
	}
	t.file = f
	if t.Disks, err = disksOf(f, t.Descriptor); err != nil {
		return nil, err
	}
	if len(t.Disks) != 1 || t.Disks[0].Node != imageNode || t.Disks[0].Path != filepath.Clean(path) {
		return nil, fmt.Errorf("%w: %s does not describe %s as its one disk at %s",
			ErrDescriptor, t.Descriptor, filepath.Base(path), imageNode)
	}
	t.Disks[0].Format = format
	return t, nil
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

func (t *Target) checkState(d Disk, encrypted bool) error {
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
			return Disk{}, fmt.Errorf("%w: %s has several disks: name one with --disk %s",
				ErrNode, t.Path, strings.Join(t.nodes(), " or --disk "))
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

// Plain says whether no disk of the target is encrypted.
func (t *Target) Plain() bool {
	return !slices.ContainsFunc(t.Disks, func(d Disk) bool { return d.Record != nil })
}
