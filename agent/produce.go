package agent

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vmcrypt/vmcrypt/image"
)

// produce writes the whole output and publishes it: the chosen disks by their
// jobs, which prepare completes once it has written the descriptor, the VM's
// other disks and its other files.
func (h *Host) produce(ctx context.Context, t *Target, out *output, jobs []*job, prepare func([]*job) error) (*Status, error) {
	chosen := make([]Disk, len(jobs))
	for i, j := range jobs {
		chosen[i] = j.disk
	}
	others, err := openOthers(t, chosen)
	if err != nil {
		return nil, err
	}
	defer closeAll(others)
	all := slices.Concat(jobs, others)
	if err := out.place(all); err != nil {
		return nil, err
	}
	if err := out.begin(t); err != nil {
		return nil, err
	}
	defer out.abandon()
	if err := prepare(all[:len(jobs)]); err != nil {
		return nil, err
	}
	if err := h.write(ctx, out, all); err != nil {
		return nil, err
	}
	if err := out.copyCompanions(ctx, t); err != nil {
		return nil, err
	}
	return out.publish(ctx)
}

// companions names the files in the VM's folder that belong to it besides its
// descriptor and disks: those that the descriptor names and those that VMware
// keeps under its name. What lies elsewhere is not the VM's; a pipe or a socket
// that a device is connected to holds nothing.
func (t *Target) companions() ([]string, error) {
	if t.bare {
		return nil, nil
	}
	named, err := t.file.Companions()
	if err != nil {
		return nil, err
	}
	base := filepath.Base(t.Descriptor)
	for _, ext := range []string{".nvram", ".vmxf", ".vmsd"} {
		named = append(named, strings.TrimSuffix(base, filepath.Ext(base))+ext)
	}
	var names []string
	for _, name := range named {
		name = filepath.Clean(name)
		info, err := os.Lstat(filepath.Join(filepath.Dir(t.Descriptor), name))
		if err != nil || !filepath.IsLocal(name) || slices.Contains(names, name) {
			continue
		}
		if mode := info.Mode(); mode.IsRegular() || mode.IsDir() || mode&fs.ModeSymlink != 0 {
			names = append(names, name)
		}
	}
	return names, nil
}

// copyCompanions takes the files over, none of them by a symbolic link.
func (o *output) copyCompanions(ctx context.Context, t *Target) error {
	folder := filepath.Dir(t.Descriptor)
	for _, name := range o.companions {
		src, err := image.OpenBeneath(folder, name, image.Raw, image.ReadOnly)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrOutput, err)
		}
		err = o.copyFile(ctx, name, src)
		src.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func (o *output) copyFile(ctx context.Context, name string, src *image.File) error {
	to := o.in(name)
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	dst, err := image.Create(to, src.Size())
	if err != nil {
		return err
	}
	err = image.Copy(ctx, dst, src, image.Transform{}, nil)
	if closed := dst.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return err
	}
	return o.copyMode(to, src.DataPath())
}
