package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/vmcrypt/vmcrypt/image"
	"github.com/vmcrypt/vmcrypt/internal/durable"
	"github.com/vmcrypt/vmcrypt/vmx"
)

// output is what a conversion leaves: a VM's folder, or a disk image with what
// belongs to it. It is written in a stage, a temporary folder beside its place,
// and appears whole or not at all.
type output struct {
	path       string // what the user named
	bare       bool
	format     image.Format // of a bare image
	private    bool         // plaintext: nobody but its owner may read it
	modes      string       // the file whose mode the descriptor gets
	stage      string
	file       *vmx.File         // the descriptor to be
	descriptor string            // its name in the stage; empty where there is none
	places     map[string]placed // of the disks, by node
	companions []string          // the VM's other files
	written    []string          // names in the stage of a bare image, the image itself last
}

// placed is where a disk lies in the stage.
type placed struct {
	name string // of the image, or of the text of a VMDK
	data string // of the file with the sectors
}

func newOutput(t *Target, path string) (*output, error) {
	o := &output{path: filepath.Clean(path), bare: t.bare, modes: t.Path, places: make(map[string]placed)}
	if info, err := os.Stat(filepath.Dir(o.path)); err != nil || !info.IsDir() {
		return nil, fmt.Errorf("%w: %s: there is no folder %s", ErrOutput, path, filepath.Dir(o.path))
	}
	if t.bare {
		return o, o.planImage(t.Disks[0])
	}
	return o, o.planVM(t)
}

func (o *output) planImage(d Disk) error {
	if isDescriptor(o.path) || image.FormatOf(o.path) != d.Format {
		return fmt.Errorf("%w: %s: the name must be that of a disk in the format of %s, %s",
			ErrOutput, o.path, d.Path, d.Format)
	}
	base := filepath.Base(o.path)
	o.format, o.file, o.descriptor = d.Format, vmx.New(d.Node, base), base+".vmx"
	for _, path := range []string{o.path, o.path + ".vmx"} {
		if err := checkAbsent(path); err != nil {
			return err
		}
	}
	if d.Format == image.VMDK {
		return checkAbsent(extentName(o.path))
	}
	return nil
}

func (o *output) planVM(t *Target) (err error) {
	if err := checkAbsent(o.path); err != nil {
		return err
	}
	o.descriptor = filepath.Base(t.Descriptor)
	if o.companions, err = t.companions(); err != nil {
		return err
	}
	o.file, err = vmx.Parse(t.file.Bytes())
	return err
}

func checkAbsent(path string) error {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		return fmt.Errorf("%w: %s: %w", ErrOutput, path, fs.ErrExist)
	}
	return err
}

// place says where in the stage each disk will lie, and fails if two files would
// lie in one place.
func (o *output) place(jobs []*job) error {
	taken := map[string]string{o.descriptor: "the descriptor"}
	for _, name := range o.companions {
		taken[name] = "the VM's file of that name"
	}
	for _, j := range jobs {
		p, err := o.placeOf(j)
		if err != nil {
			return err
		}
		for _, name := range p.names() {
			if other, ok := taken[name]; ok {
				return fmt.Errorf("%w: %s in %s would be both %s and disk %s", ErrOutput, name, o.path, other, j.disk.Node)
			}
			taken[name] = "disk " + j.disk.Node
		}
		o.places[j.disk.Node] = p
	}
	return nil
}

func (p placed) names() []string {
	if p.name == p.data {
		return []string{p.name}
	}
	return []string{p.data, p.name}
}

func (o *output) placeOf(j *job) (placed, error) {
	name, err := o.nameOf(j.disk)
	if err != nil || j.disk.Format != image.VMDK {
		return placed{name, name}, err
	}
	extent := j.src.VMDK().ExtentName()
	if o.bare {
		extent = extentName(name)
	}
	return placed{name, filepath.Join(filepath.Dir(name), extent)}, nil
}

// nameOf says where a disk lies in the output: where it lay in the VM's folder
// or, if it came from elsewhere, beside the descriptor, which then names it there.
func (o *output) nameOf(d Disk) (string, error) {
	switch {
	case o.bare:
		return filepath.Base(o.path), nil
	case filepath.IsLocal(d.fileName):
		return filepath.Clean(d.fileName), nil
	}
	name := filepath.Base(d.fileName)
	return name, o.file.Set(d.Node+".fileName", name)
}

// begin makes the stage. The folder of an encrypted VM gets the mode of the one
// it came from.
func (o *output) begin(t *Target) (err error) {
	perm := fs.FileMode(0o700)
	if info, err := os.Stat(filepath.Dir(t.Descriptor)); err == nil && !o.bare && !o.private {
		perm |= info.Mode().Perm()
	}
	o.stage, err = durable.MkdirTemp(o.path, perm)
	return err
}

// abandon removes what was not published.
func (o *output) abandon() { os.RemoveAll(o.stage) }

func (o *output) in(name string) string { return filepath.Join(o.stage, name) }

// writeDescriptor makes the descriptor durable in the stage.
func (o *output) writeDescriptor() error {
	if err := o.file.Write(o.in(o.descriptor)); err != nil {
		return err
	}
	o.written = append(o.written, o.descriptor)
	return o.copyMode(o.in(o.descriptor), o.modes)
}

// createDisk makes the empty file for a disk, and the text that belongs to it if
// it is a VMDK.
func (o *output) createDisk(j *job) (*image.File, error) {
	p := o.places[j.disk.Node]
	if err := os.MkdirAll(filepath.Dir(o.in(p.name)), 0o700); err != nil {
		return nil, err
	}
	if v := j.src.VMDK(); v != nil {
		if err := o.writeVMDK(v, p, j.disk.Path); err != nil {
			return nil, err
		}
	}
	o.written = append(o.written, p.names()...)
	return image.Create(o.in(p.data), j.src.Size())
}

// writeVMDK writes the text of a VMDK, as it was but for the name of the extent.
func (o *output) writeVMDK(v *image.VMDKDescriptor, p placed, modeFrom string) error {
	text := v.Text()
	if extent := filepath.Base(p.data); extent != v.ExtentName() {
		var err error
		if text, err = v.Rename(extent); err != nil {
			return err
		}
	}
	if err := durable.WriteFile(o.in(p.name), text, 0o600); err != nil {
		return err
	}
	return o.copyMode(o.in(p.name), modeFrom)
}

// extentName is the name that VMware and QEMU give the extent of a VMDK.
func extentName(vmdk string) string {
	return strings.TrimSuffix(vmdk, filepath.Ext(vmdk)) + "-flat.vmdk"
}

// copyMode gives a file of the output the mode of the one it came from.
func (o *output) copyMode(path, from string) error {
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	perm := info.Mode().Perm()
	if o.private {
		perm &= 0o700
	}
	return os.Chmod(path, perm)
}

// publish makes the output durable and lets it appear, replacing nothing, if ctx
// has not ended by then. It returns the status of what appeared.
func (o *output) publish(ctx context.Context) (*Status, error) {
	status, err := o.status()
	if err != nil {
		return nil, err
	}
	if err := durable.SyncTree(o.stage); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if o.bare {
		return status, o.publishFiles()
	}
	return status, durable.Publish(o.stage, o.path)
}

// publishFiles lets the files of a bare image appear: its descriptor first, so
// that ciphertext is never without its key, and the image last. If one can't
// appear, none does.
func (o *output) publishFiles() error {
	var published []string
	for _, name := range o.written {
		to := filepath.Join(filepath.Dir(o.path), name)
		err := durable.Publish(o.in(name), to)
		if !errors.Is(err, fs.ErrExist) {
			published = append(published, to)
		}
		if err != nil {
			for _, p := range published {
				os.Remove(p)
			}
			return fmt.Errorf("%w: %w", ErrOutput, err)
		}
	}
	return nil
}

// status reads the stage as anyone will read the output, and describes that.
func (o *output) status() (*Status, error) {
	folder, name := o.path, o.descriptor
	if o.bare {
		folder, name = filepath.Dir(o.path), filepath.Base(o.path)
	}
	t, err := Open(o.in(name), o.format)
	if err != nil {
		return nil, err
	}
	s, err := t.Status(nil)
	if err != nil {
		return nil, err
	}
	final := func(path *string) {
		if rest, ok := strings.CutPrefix(*path, o.stage+"/"); ok {
			*path = filepath.Join(folder, rest)
		}
	}
	final(&s.Descriptor)
	for i := range s.Disks {
		final(&s.Disks[i].File)
	}
	return s, nil
}
