package agent

import (
	"context"
	"fmt"

	"github.com/google/uuid"

	"github.com/vmcrypt/vmcrypt/blockcrypt"
	"github.com/vmcrypt/vmcrypt/image"
	"github.com/vmcrypt/vmcrypt/vmx"
)

// EncryptOptions says how disks are encrypted. Alias, SectorSize and Holes are
// needed, but not to go on with what was begun.
type EncryptOptions struct {
	Output     string   // a new folder for a VM, a new file for an image; empty means in place
	InPlace    InPlace  // without Output
	Disks      []string // nodes; none means all
	Alias      string   // the key managers
	KEKID      string   // the KEK; none means a new one
	SectorSize int      // of the cipher, in bytes: 512 or 4096
	Holes      blockcrypt.HolePolicy
}

// Encrypt writes an encrypted copy of the target: a VM with its disks encrypted,
// its descriptor completed and its other files, or a disk image with its
// descriptor. All disks of the run share one KEK. It returns the status of the
// result. After an error the output does not exist.
//
// Without an output it encrypts the disks where they lie, or goes on with that.
// Disks that are encrypted are left as they are. After an error that is an
// Unfinished, the same call goes on.
func (h *Host) Encrypt(ctx context.Context, t *Target, opts EncryptOptions) (*Status, error) {
	if opts.Output == "" {
		return h.inPlace(ctx, t, &inPlace{kind: encrypting, nodes: opts.Disks, InPlace: opts.InPlace, begin: opts.begin})
	}
	disks, err := t.selectDisks(opts.Disks, false)
	if err != nil {
		return nil, err
	}
	if err := t.checkPoweredOff(); err != nil {
		return nil, err
	}
	out, err := newOutput(t, opts.Output)
	if err != nil {
		return nil, err
	}
	jobs, err := openJobs(disks, func(d Disk) (*job, error) { return plainJob(d, opts.SectorSize) })
	if err != nil {
		return nil, err
	}
	defer closeAll(jobs)
	keys := newKeyring(h)
	defer keys.wipe()
	return h.produce(ctx, t, out, jobs, func(jobs []*job) error {
		return encryptTo(ctx, keys, out, jobs, opts)
	})
}

// checkPoweredOff refuses a suspended VM: the file with its memory stays as it is.
func (t *Target) checkPoweredOff() error {
	if t.bare {
		return nil
	}
	if saved, _ := t.file.Get("checkpoint.vmState"); saved != "" {
		return fmt.Errorf("%w: %s is suspended, with its memory in plain in %s: resume it and shut it down", ErrState, t.Path, saved)
	}
	return nil
}

// plainJob opens a disk to be encrypted, and refuses one that can't be before a
// key is made for it.
func plainJob(d Disk, sectorSize int) (*job, error) {
	f, err := d.open(image.ReadOnly)
	if err != nil {
		return nil, err
	}
	if err := blockcrypt.CheckSize(f.Size(), sectorSize); err != nil {
		f.Close()
		return nil, fmt.Errorf("disk %s (%s): %w", d.Node, d.Path, err)
	}
	return &job{disk: d, src: f}, nil
}

// encryptTo gives the jobs their keys, and has them write what the descriptor, as
// it lies on disk, can open again.
func encryptTo(ctx context.Context, keys *keyring, out *output, jobs []*job, opts EncryptOptions) error {
	if err := makeRecords(ctx, keys, out, jobs, opts); err != nil {
		return err
	}
	if err := out.writeDescriptor(); err != nil {
		return err
	}
	return readBack(ctx, keys, out, jobs)
}

// makeRecords gives every job a DEK of its own, wrapped in the output's
// descriptor.
func makeRecords(ctx context.Context, keys *keyring, out *output, jobs []*job, opts EncryptOptions) error {
	var disks []Disk
	for _, j := range jobs {
		disks = append(disks, j.disk)
	}
	wrapper, err := keys.forWrapping(ctx, disks, opts.Alias, opts.KEKID)
	if err != nil {
		return err
	}
	for _, j := range jobs {
		rec := opts.record(j.src.Size())
		if err := wrapNew(rec, opts.Alias, wrapper); err != nil {
			return err
		}
		if err := out.file.SetRecord(j.disk.Node, rec); err != nil {
			return err
		}
	}
	return nil
}

// record is that of a new encrypted disk, without a key.
func (opts EncryptOptions) record(size int64) *vmx.Record {
	return &vmx.Record{
		State:      vmx.StateEncrypted,
		DiskUUID:   uuid.New(),
		Size:       size,
		Cipher:     vmx.CipherXTS,
		SectorSize: opts.SectorSize,
		Holes:      string(opts.Holes),
	}
}

// readBack takes each record from the descriptor as it lies on disk: the DEK that
// encrypts the first sector is one that is durable and opens again.
func readBack(ctx context.Context, keys *keyring, out *output, jobs []*job) error {
	path := out.in(out.descriptor)
	written, err := vmx.Read(path)
	if err != nil {
		return err
	}
	for _, j := range jobs {
		if j.disk.Record, err = written.Record(j.disk.Node); err != nil {
			return fmt.Errorf("read back %s: %w", path, err)
		}
		j.begin = func(dst *image.File) (image.Transform, error) { return j.encryptInto(ctx, keys, dst) }
	}
	return nil
}

// encryptInto marks a new file as the record's disk and encrypts what is written
// to it.
func (j *job) encryptInto(ctx context.Context, keys *keyring, dst *image.File) (image.Transform, error) {
	rec := j.disk.Record
	key, err := keys.unwrap(ctx, j.disk)
	if err != nil {
		return image.Transform{}, fmt.Errorf("unwrap what was just wrapped: %w", err)
	}
	defer key.Destroy()
	if err := dst.SetDiskUUID(rec.DiskUUID.String()); err != nil {
		return image.Transform{}, err
	}
	if j.cipher, err = keys.host.Engine.NewCipher(key.Bytes(), rec.SectorSize); err != nil {
		return image.Transform{}, err
	}
	return blockcrypt.Encryption(j.cipher, blockcrypt.HolePolicy(rec.Holes)), nil
}
