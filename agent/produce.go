package agent

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vmcrypt/vmcrypt/image"
)

// produce writes the whole output and publishes it. It asks for the disks to
// convert once the descriptor is durable.
func (h *Host) produce(ctx context.Context, t *Target, out *output, ready func() ([]job, error)) (*Status, error) {
	if err := out.begin(t); err != nil {
		return nil, err
	}
	defer out.abandon()
	if err := h.fill(ctx, t, out, ready); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := out.publish(); err != nil {
		return nil, err
	}
	result, err := Open(out.target(), "")
	if err != nil {
		return nil, err
	}
	return result.Status(nil)
}

// fill writes descriptor, disks and the VM's other files to the stage.
func (h *Host) fill(ctx context.Context, t *Target, out *output, ready func() ([]job, error)) error {
	if out.descriptor != "" {
		if err := out.writeDescriptor(t); err != nil {
			return err
		}
	}
	jobs, err := ready()
	if err != nil {
		return err
	}
	others, err := openOthers(t, jobs)
	if err != nil {
		return err
	}
	defer closeAll(others)
	if err := h.write(ctx, out, append(jobs, others...)); err != nil {
		return err
	}
	return copyFiles(ctx, t, out)
}

// copyFiles takes over what belongs to a VM besides its descriptor and disks.
func copyFiles(ctx context.Context, t *Target, out *output) error {
	if t.bare {
		return nil
	}
	names, err := t.ownFiles()
	if err != nil {
		return err
	}
	for _, name := range names {
		to := out.in(name)
		if _, err := os.Lstat(to); err == nil {
			continue // descriptor or disk
		}
		if err := copyFile(ctx, to, filepath.Join(filepath.Dir(t.Descriptor), name)); err != nil {
			return err
		}
	}
	return nil
}

func copyFile(ctx context.Context, to, from string) error {
	src, err := image.Open(from, image.Raw, image.ReadOnly)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := image.Create(to, src.Size())
	if err != nil {
		return err
	}
	defer dst.Close()
	if err := image.Copy(ctx, dst, src, func(int64) {}); err != nil {
		return err
	}
	return copyMode(to, from)
}

// ownFiles names the files in the VM's folder that are the VM's: those that its
// descriptor names, and those that carry its name. Not among them is what belongs
// to a running VM only: locks, swap and logs.
func (t *Target) ownFiles() ([]string, error) {
	dir, base := filepath.Split(t.Descriptor)
	entries, err := os.ReadDir(filepath.Clean(dir))
	if err != nil {
		return nil, err
	}
	stem := strings.TrimSuffix(base, filepath.Ext(base)) + "."
	named := t.file.Values()
	var names []string
	for _, e := range entries {
		name := e.Name()
		own := strings.HasPrefix(name, stem) || slices.Contains(named, name)
		if own && e.Type().IsRegular() && !transient(name) {
			names = append(names, name)
		}
	}
	return names, nil
}

func transient(name string) bool {
	switch strings.ToLower(filepath.Ext(name)) {
	case ".vswp", ".lck", ".log", ".scoreboard":
		return true
	}
	return false
}
