package agent

import (
	"context"
	"errors"
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
func (h *Host) produce(ctx context.Context, t *Target, out *output, jobs []job, prepare func([]job) error) (*Status, error) {
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
	if err := copyCompanions(ctx, t, out); err != nil {
		return nil, err
	}
	return out.publish(ctx)
}

// copyCompanions takes over what belongs to a VM besides its descriptor and
// disks: the files that its descriptor names and those that VMware keeps under
// its name, if they are in its folder.
func copyCompanions(ctx context.Context, t *Target, out *output) error {
	if t.bare {
		return nil
	}
	names, err := t.file.Companions()
	if err != nil {
		return err
	}
	base := filepath.Base(t.Descriptor)
	for _, ext := range []string{".nvram", ".vmxf", ".vmsd"} {
		names = append(names, strings.TrimSuffix(base, filepath.Ext(base))+ext)
	}
	folder, err := os.OpenRoot(filepath.Dir(t.Descriptor))
	if err != nil {
		return err
	}
	defer folder.Close()
	for _, name := range names {
		if err := out.copyCompanion(ctx, folder, name); err != nil {
			return err
		}
	}
	return nil
}

// copyCompanion takes over one file of the VM's folder, if it is there and none
// that was taken before. What lies elsewhere is not the VM's.
func (o *output) copyCompanion(ctx context.Context, folder *os.Root, name string) error {
	if !filepath.IsLocal(name) {
		return nil
	}
	from, to := filepath.Join(folder.Name(), name), o.in(name)
	info, err := folder.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if mode := info.Mode(); mode.IsDir() || mode&fs.ModeSymlink != 0 {
		return fmt.Errorf("%w: %s is no file that can be taken along", ErrOutput, from)
	} else if !mode.IsRegular() {
		return nil // a pipe or a socket that a device is connected to
	}
	if _, err := os.Lstat(to); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	return o.copyFile(ctx, to, from)
}

func (o *output) copyFile(ctx context.Context, to, from string) error {
	src, err := image.Open(from, image.Raw, image.ReadOnly)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := image.Create(to, src.Size())
	if err != nil {
		return err
	}
	err = image.Copy(ctx, dst, src, nil)
	if closed := dst.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return err
	}
	return o.copyMode(to, from)
}
