package agent

import (
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
	stage      string
	file       *vmx.File         // the descriptor to be
	descriptor string            // its name in the stage
	names      map[string]string // of each disk in the stage, by node
	written    []string          // names in the stage of a bare image, the image itself last
}

func newOutput(t *Target, path string) (*output, error) {
	o := &output{path: filepath.Clean(path), bare: t.bare, names: make(map[string]string)}
	if info, err := os.Stat(filepath.Dir(o.path)); err != nil || !info.IsDir() {
		return nil, fmt.Errorf("%w: %s: there is no folder %s", ErrOutput, path, filepath.Dir(o.path))
	}
	if t.bare {
		return o, o.planImage(t.Disks[0])
	}
	return o, o.planVM(t)
}

func (o *output) planImage(d Disk) error {
	if image.FormatOf(o.path) != d.Format {
		return fmt.Errorf("%w: %s: the output keeps the format of %s, %s, and its name must say so",
			ErrOutput, o.path, d.Path, d.Format)
	}
	base := filepath.Base(o.path)
	o.names[d.Node] = base
	o.file, o.descriptor = vmx.New(d.Node, base), base+".vmx"
	for _, path := range []string{o.path, o.path + ".vmx", extentName(o.path)} {
		if err := checkAbsent(path); err != nil {
			return err
		}
	}
	return nil
}

func (o *output) planVM(t *Target) (err error) {
	if err := checkAbsent(o.path); err != nil {
		return err
	}
	if o.file, err = vmx.Parse(t.file.Bytes()); err != nil {
		return err
	}
	o.descriptor = filepath.Base(t.Descriptor)
	taken := map[string]string{}
	for _, d := range t.Disks {
		name, err := o.place(d)
		if err != nil {
			return err
		}
		if other, ok := taken[name]; ok {
			return fmt.Errorf("%w: disks %s and %s of %s would both be %s in %s",
				ErrOutput, other, d.Node, t.Path, name, o.path)
		}
		taken[name], o.names[d.Node] = d.Node, name
	}
	return nil
}

// place says where a VM's disk lies in the output: where it lay in the VM's
// folder or, if it came from elsewhere, beside the descriptor, which then names
// it there.
func (o *output) place(d Disk) (string, error) {
	if filepath.IsLocal(d.fileName) {
		return filepath.Clean(d.fileName), nil
	}
	name := filepath.Base(d.fileName)
	return name, o.file.Set(d.Node+".fileName", name)
}

func checkAbsent(path string) error {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		return fmt.Errorf("%w: %s: %w: move it away or choose another name", ErrOutput, path, fs.ErrExist)
	}
	return err
}

// begin makes the stage. The folder of a VM gets the mode of the one it came
// from.
func (o *output) begin(t *Target) (err error) {
	perm := fs.FileMode(0o700)
	if info, err := os.Stat(filepath.Dir(t.Descriptor)); err == nil && !o.bare {
		perm = info.Mode().Perm() | 0o700
	}
	o.stage, err = durable.MkdirTemp(o.path, perm)
	return err
}

// abandon removes what was not published.
func (o *output) abandon() {
	if o.stage != "" {
		os.RemoveAll(o.stage)
	}
}

func (o *output) in(name string) string { return filepath.Join(o.stage, name) }

// writeDescriptor makes the descriptor durable in the stage.
func (o *output) writeDescriptor(t *Target) error {
	if err := o.file.Write(o.in(o.descriptor)); err != nil {
		return err
	}
	o.written = append(o.written, o.descriptor)
	return copyMode(o.in(o.descriptor), t.Path)
}

// createDisk makes the empty file for a disk, and the text that belongs to it if
// it is a VMDK.
func (o *output) createDisk(d Disk, src *image.File) (*image.File, error) {
	name := o.names[d.Node]
	if err := os.MkdirAll(filepath.Dir(o.in(name)), 0o700); err != nil {
		return nil, err
	}
	data := name
	if d.Format == image.VMDK {
		var err error
		if data, err = o.writeVMDK(d, src, name); err != nil {
			return nil, err
		}
	} else {
		o.written = append(o.written, name)
	}
	f, err := image.Create(o.in(data), src.Size())
	if err != nil {
		return nil, err
	}
	if err := copyMode(o.in(data), src.DataPath()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// writeVMDK writes the text of a VMDK and returns the name of its extent.
func (o *output) writeVMDK(d Disk, src *image.File, name string) (string, error) {
	text, err := os.ReadFile(d.Path)
	if err != nil {
		return "", err
	}
	v, err := image.ParseVMDK(text)
	if err != nil {
		return "", fmt.Errorf("%s: %w", d.Path, err)
	}
	extent := filepath.Base(src.DataPath())
	if o.bare {
		extent = filepath.Base(extentName(name))
		if text, err = v.Rename(extent); err != nil {
			return "", err
		}
	}
	data := filepath.Join(filepath.Dir(name), extent)
	o.written = append(o.written, data, name)
	if err := os.WriteFile(o.in(name), text, 0o600); err != nil {
		return "", err
	}
	return data, copyMode(o.in(name), d.Path)
}

// extentName is the name that VMware and QEMU give the extent of a VMDK.
func extentName(vmdk string) string {
	return strings.TrimSuffix(vmdk, filepath.Ext(vmdk)) + "-flat.vmdk"
}

func copyMode(path, from string) error {
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	return os.Chmod(path, info.Mode().Perm())
}

// publish makes the output durable and lets it appear, replacing nothing.
func (o *output) publish() error {
	if err := durable.SyncTree(o.stage); err != nil {
		return err
	}
	if !o.bare {
		return durable.Publish(o.stage, o.path)
	}
	return o.publishFiles()
}

// publishFiles lets the files of a bare image appear: its descriptor first, so
// that ciphertext is never without its key, and the image last.
func (o *output) publishFiles() error {
	var published []string
	for _, name := range o.written {
		to := filepath.Join(filepath.Dir(o.path), name)
		if err := durable.Publish(o.in(name), to); err != nil {
			for _, p := range published {
				os.Remove(p)
			}
			return fmt.Errorf("%w: %w", ErrOutput, err)
		}
		published = append(published, to)
	}
	return nil
}

// target is the path that opens what was published.
func (o *output) target() string {
	if o.bare {
		return o.path
	}
	return filepath.Join(o.path, o.descriptor)
}
