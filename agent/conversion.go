package agent

import (
	"context"
	"errors"
	"fmt"

	"github.com/vmcrypt/vmcrypt/blockcrypt"
	"github.com/vmcrypt/vmcrypt/blockcrypt/conversion"
	"github.com/vmcrypt/vmcrypt/dek"
	"github.com/vmcrypt/vmcrypt/image"
	"github.com/vmcrypt/vmcrypt/internal/secret"
	"github.com/vmcrypt/vmcrypt/vmx"
)

// conversionJob is a disk that is converted in place.
type conversionJob struct {
	disk       Disk // with the record that the descriptor has now
	file       *image.File
	descriptor descriptor
	journal    sidecar
	first      *vmx.Record      // the one that a new conversion begins with
	keys       []*secret.Buffer // to the disk, in the order of dek.MAC
	left       int64            // bytes of progress that were not reported yet
}

func (j *conversionJob) close() {
	destroyAll(j.keys)
	j.file.Close()
}

// unwrap gets the keys that the disk's record leads to.
func (j *conversionJob) unwrap(ctx context.Context, keys *keyring) error {
	unwrapped, err := keys.unwrapAll(ctx, j.disk)
	if err != nil {
		return err
	}
	destroyAll(j.keys)
	j.keys = unwrapped
	return j.disk.checkSize(j.file)
}

// convert takes the conversion to its end, and the record to what it is after it.
func (j *conversionJob) convert(ctx context.Context, engine blockcrypt.Engine, opts InPlace, m *meter) (conversion.Phase, error) {
	end, err := j.run(ctx, engine, opts, m)
	switch {
	case errors.Is(err, conversion.ErrJournal):
		return "", j.journalError(err)
	case err != nil:
		return "", j.disk.unfinished(err)
	}
	err = j.finish(end)
	switch {
	case isApplied(err): // there is nothing left to resume, and room would not help
		return "", fmt.Errorf("the conversion of disk %s (%s) has come to its end, but not all is well: %v", j.disk.Node, j.disk.Path, err)
	case err != nil:
		return "", j.disk.unfinished(err)
	}
	m.add(j.disk.Node, j.left)
	return end, nil
}

func (j *conversionJob) run(ctx context.Context, engine blockcrypt.Engine, opts InPlace, m *meter) (end conversion.Phase, err error) {
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	if err := j.mark(); err != nil {
		return "", err
	}
	err = j.withJob(engine, opts, func(job conversion.Job) error {
		job.Progress = j.progress(m, opts.Abort)
		end, err = conversion.Run(ctx, job)
		return err
	})
	return end, err
}

// check refuses a conversion whose journal does not fit.
func (j *conversionJob) check(engine blockcrypt.Engine, opts InPlace) error {
	return j.journalError(j.withJob(engine, opts, conversion.Check))
}

// journalError names the journal that an error is about.
func (j *conversionJob) journalError(err error) error {
	if errors.Is(err, conversion.ErrJournal) {
		return fmt.Errorf("disk %s (%s): %s: %w", j.disk.Node, j.disk.Path, j.journal.path, err)
	}
	return err
}

// withJob has the keys at hand for a while.
func (j *conversionJob) withJob(engine blockcrypt.Engine, opts InPlace, do func(conversion.Job) error) error {
	from, to, err := j.ciphers(engine)
	if err != nil {
		return err
	}
	defer wipeAll(from, to)
	rec := j.disk.Record
	key, err := dek.JournalKey(rec.Conversion.UUID, j.keys...)
	if err != nil {
		return err
	}
	defer key.Destroy()
	disk, done := image.PastCache(j.file)
	defer done()
	return do(conversion.Job{
		Disk: disk, From: from, To: to, SectorSize: rec.SectorSize, Holes: blockcrypt.HolePolicy(rec.Holes),
		DiskUUID: rec.DiskUUID, UUID: rec.Conversion.UUID, Key: key.Bytes(), Zone: opts.Zone,
		Phase: conversion.Phase(rec.Conversion.Phase), Backward: opts.Abort,
		Journal: j.journal, Descriptor: j,
	})
}

// mark marks a disk as encrypted before its first sector is. What others wrote to
// the disk is flushed, so that no map of its holes lags behind.
func (j *conversionJob) mark() error {
	if j.disk.Record.State == vmx.StateEncrypting {
		if err := j.file.SetDiskUUID(j.disk.Record.DiskUUID.String()); err != nil {
			return err
		}
	}
	return j.file.Flush()
}

// ciphers are those of the content that was and of the one that is to be; nil is
// plaintext.
func (j *conversionJob) ciphers(engine blockcrypt.Engine) (from, to *blockcrypt.Cipher, err error) {
	first, err := engine.NewCipher(j.keys[0].Bytes(), j.disk.Record.SectorSize)
	if err != nil {
		return nil, nil, err
	}
	switch j.disk.Record.State {
	case vmx.StateEncrypting:
		return nil, first, nil
	case vmx.StateDecrypting:
		return first, nil, nil
	}
	second, err := engine.NewCipher(j.keys[1].Bytes(), j.disk.Record.SectorSize)
	if err != nil {
		first.Wipe()
		return nil, nil, err
	}
	return first, second, nil
}

func wipeAll(ciphers ...*blockcrypt.Cipher) {
	for _, c := range ciphers {
		if c != nil {
			c.Wipe()
		}
	}
}

// SetPhase notes in the descriptor how far the conversion has come.
func (j *conversionJob) SetPhase(p conversion.Phase) error {
	rec, at := *j.disk.Record, *j.disk.Record.Conversion
	at.Phase = string(p)
	rec.Conversion = &at
	if err := sign(&rec, j.keys...); err != nil {
		return err
	}
	return j.replace(&rec)
}

// replace makes another record durable; nil stands for none.
func (j *conversionJob) replace(rec *vmx.Record) error {
	if err := j.descriptor.apply([]change{{node: j.disk.Node, was: j.disk.Record, is: rec}}); err != nil {
		return err
	}
	j.disk.Record = rec
	return nil
}

// finish gives the disk the record that it has after a conversion. A file that is
// plain again must not be marked when the record is gone.
func (j *conversionJob) finish(end conversion.Phase) error {
	rec, err := j.last(end)
	if err != nil {
		return err
	}
	if rec == nil {
		if err := j.file.ClearDiskUUID(); err != nil {
			return err
		}
		if err := j.file.Flush(); err != nil {
			return err
		}
	}
	return j.replace(rec)
}

// last is the record after a conversion: that of an encrypted disk with the one
// key that it has now, or none.
func (j *conversionJob) last(end conversion.Phase) (*vmx.Record, error) {
	rec, reverted := *j.disk.Record, end == conversion.Reverted
	key := j.keys[len(j.keys)-1]
	switch {
	case rec.State == vmx.StateEncrypting && reverted, rec.State == vmx.StateDecrypting && !reverted:
		return nil, nil
	case rec.State == vmx.StateRekeying && reverted:
		rec.Recipients, key = rec.Previous, j.keys[0]
	}
	rec.State, rec.Conversion, rec.Previous = vmx.StateEncrypted, nil, nil
	return &rec, sign(&rec, key)
}

// checkEnd fails if there was nothing left to turn round: but for its last steps
// the conversion was at the other end.
func (j *conversionJob) checkEnd(end conversion.Phase, abort bool) error {
	switch {
	case abort && end == conversion.Converted:
		return fmt.Errorf("%w: too late to abort the conversion of disk %s (%s): it was complete", ErrState, j.disk.Node, j.disk.Path)
	case !abort && end == conversion.Reverted:
		return fmt.Errorf("%w: the conversion of disk %s (%s) was aborted, and it is what it was before", ErrState, j.disk.Node, j.disk.Path)
	}
	return nil
}

// measure adds the disk to the work of a run, and what was done of it before.
func (j *conversionJob) measure(m *meter, backward bool) {
	size := j.file.Size()
	done := int64(0)
	if at := j.journal.peek(); at != nil {
		done = min(at.Bytes, size)
		if backward {
			done = size - done
		}
	}
	j.left = size - done
	m.total += size
	m.done.Add(done)
}

// progress reports the way of the position, forward or backward.
func (j *conversionJob) progress(m *meter, backward bool) func(int64) {
	return func(moved int64) {
		if backward {
			moved = -moved
		}
		moved = min(moved, j.left)
		j.left -= moved
		m.add(j.disk.Node, moved)
	}
}
