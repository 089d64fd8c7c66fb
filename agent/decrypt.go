package agent

import (
	"context"

	"github.com/vmcrypt/vmcrypt/blockcrypt"
	"github.com/vmcrypt/vmcrypt/image"
)

// DecryptOptions says what is decrypted, and to where.
type DecryptOptions struct {
	Output  string   // a new folder for a VM, a new file for an image; empty means in place
	InPlace InPlace  // without Output
	Disks   []string // nodes; none means all
}

// Decrypt writes a plain copy of the target: a VM with its disks decrypted, and
// nothing of vmcrypt in its descriptor, or a disk image. Only their owner can
// read what it writes. It returns the status of the result. After an error the
// output does not exist.
//
// Without an output it decrypts the disks where they lie, or goes on with that.
// Plain disks are left as they are. After an error that is an Unfinished, the same
// call goes on.
func (h *Host) Decrypt(ctx context.Context, t *Target, opts DecryptOptions) (*Status, error) {
	if opts.Output == "" {
		return h.inPlace(ctx, t, &inPlace{kind: decrypting, nodes: opts.Disks, InPlace: opts.InPlace, begin: beginDecryption})
	}
	disks, err := t.selectDisks(opts.Disks, true)
	if err != nil {
		return nil, err
	}
	out, err := newOutput(t, opts.Output)
	if err != nil {
		return nil, err
	}
	out.private = true
	jobs, err := h.unlockedJobs(ctx, disks)
	if err != nil {
		return nil, err
	}
	defer closeAll(jobs)
	return h.produce(ctx, t, out, jobs, func(jobs []*job) error { return decryptTo(out, jobs) })
}

// unlockedJobs has the key of every disk before anything is written.
func (h *Host) unlockedJobs(ctx context.Context, disks []Disk) ([]*job, error) {
	keys := newKeyring(h)
	defer keys.wipe()
	return openJobs(disks, func(d Disk) (*job, error) { return d.unlockedJob(ctx, keys) })
}

func (d Disk) unlockedJob(ctx context.Context, keys *keyring) (*job, error) {
	f, err := d.open(image.ReadOnly)
	if err != nil {
		return nil, err
	}
	cipher, err := d.unlock(ctx, keys, f)
	if err != nil {
		f.Close()
		return nil, err
	}
	decryption := blockcrypt.Decryption(cipher, blockcrypt.HolePolicy(d.Record.Holes))
	return &job{disk: d, src: f, cipher: cipher, begin: func(*image.File) (image.Transform, error) {
		return decryption, nil
	}}, nil
}

// decryptTo leaves nothing of vmcrypt in the descriptor. A bare image gets none.
func decryptTo(out *output, jobs []*job) error {
	if out.bare {
		out.descriptor = ""
		return nil
	}
	for _, j := range jobs {
		if err := out.file.RemoveRecord(j.disk.Node); err != nil {
			return err
		}
	}
	return out.writeDescriptor()
}
