package agent

import (
	"context"

	"github.com/vmcrypt/vmcrypt/image"
)

// DecryptOptions says what is decrypted, and to where.
type DecryptOptions struct {
	Output string   // a new folder for a VM, a new file for an image
	Disks  []string // nodes; none means all
}

// Decrypt writes a plain copy of the target: a VM with its disks decrypted, and
// nothing of vmcrypt in its descriptor, or a disk image. It returns the status of
// the result. After an error the output does not exist.
func (h *Host) Decrypt(ctx context.Context, t *Target, opts DecryptOptions) (*Status, error) {
	disks, err := t.selectDisks(opts.Disks, true)
	if err != nil {
		return nil, err
	}
	out, err := newOutput(t, opts.Output)
	if err != nil {
		return nil, err
	}
	keys := newKeyring(h)
	defer keys.wipe()
	jobs, err := unlockedJobs(ctx, keys, disks)
	if err != nil {
		return nil, err
	}
	defer closeAll(jobs)
	for _, d := range disks {
		if err := out.file.RemoveRecord(d.Node); err != nil {
			return nil, err
		}
	}
	if out.bare {
		out.descriptor = ""
	}
	return h.produce(ctx, t, out, func() ([]job, error) { return jobs, nil })
}

// unlockedJobs opens the plaintext of every disk before anything is written.
func unlockedJobs(ctx context.Context, keys *keyring, disks []Disk) (jobs []job, err error) {
	for _, d := range disks {
		f, err := image.Open(d.Path, d.Format, image.ReadOnly)
		if err != nil {
			closeAll(jobs)
			return nil, err
		}
		plain, err := unlock(ctx, keys, d, f)
		if err != nil {
			f.Close()
			closeAll(jobs)
			return nil, err
		}
		jobs = append(jobs, job{disk: d, file: f, src: plain, seal: unsealed})
	}
	return jobs, nil
}
