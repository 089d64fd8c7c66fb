// Package conversion encrypts, decrypts and rekeys disks in place, so that
// whatever happens meanwhile (a crash, a power cut, a full disk, an I/O error)
// each sector can still be read, and another Run goes on where the last one
// stopped.
//
// A disk is converted step by step. The new content of a step is made durable in
// a journal beside the disk, which is the commit point, before it replaces the
// old one. What is assumed of the storage is that a completed sync is true.
// docs/conversion.md has the protocol and why it holds.
package conversion

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/google/uuid"

	"github.com/vmcrypt/vmcrypt/blockcrypt"
	"github.com/vmcrypt/vmcrypt/image"
)

// Phase is how far a conversion has come, as its descriptor says it.
type Phase string

// The phases, in order. One of the last two ends a conversion.
const (
	// Preparing: all keys are in the descriptor; the journal may be missing or
	// incomplete; no sector has changed.
	Preparing Phase = "preparing"
	// Converting: the journal is complete, sectors change.
	Converting Phase = "converting"
	// Converted: each sector has its new content. The journal may be gone.
	Converted Phase = "converted"
	// Reverted: each sector has its old content again. Likewise.
	Reverted Phase = "reverted"
)

// DefaultZone is the most that a step takes, in bytes, unless a Job says
// otherwise.
const DefaultZone = 4 << 20

// KeySize is the size in bytes of the key that authenticates a journal.
const KeySize = 32

// ErrJournal is the error for a journal that is missing, damaged, or not that of
// the conversion. Nothing was written.
var ErrJournal = errors.New("conversion journal missing, damaged or tampered with")

// Job is a conversion of one disk.
type Job struct {
	Disk       image.Disk         // is changed in place, and left open
	From, To   *blockcrypt.Cipher // of the old and the new content; nil is plaintext
	SectorSize int                // of the ciphers, in bytes
	Holes      blockcrypt.HolePolicy
	DiskUUID   uuid.UUID
	UUID       uuid.UUID // of this conversion
	Key        []byte    // KeySize bytes, derived from the keys of both ciphers
	Zone       int       // the most that a step takes in bytes, a multiple of 4096; 0 is DefaultZone
	Phase      Phase     // as the descriptor has it
	Backward   bool      // go back to the old content
	Journal    Sidecar
	Descriptor Descriptor
	Progress   func(bytes int64) // if set, is told how much was done since the last call, negative when going back

	memory  func(n, size int) ([][]byte, func(), error) // for tests; else image.MapBuffers
	serial  order                                       // likewise
	nonce   func(data []byte) nonce                     // likewise
	observe func(at marker, pending []*step)            // likewise: is called when both are durable
	durable func(at marker)                             // likewise: is called as soon as it is
}

// Descriptor is where the phase is kept.
type Descriptor interface {
	// SetPhase makes a phase durable and reads it back. It writes also where the
	// phase is the same already: an earlier call may have failed after others could
	// see its phase, but before that was durable.
	SetPhase(Phase) error
}

// Sidecar is where the journal lies.
type Sidecar interface {
	// Create makes a file of size bytes with its space reserved, in place of
	// one that is there. Its directory entry is durable.
	Create(size int64) (File, error)
	// Open opens the file; fs.ErrNotExist if there is none.
	Open() (File, error)
	// Remove removes the file, durably; no error if there is none. Also then it
	// makes that durable, as an earlier call may have failed to.
	Remove() error
}

// File is a journal. After a Flush that failed it is not used again.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Size() int64
	Flush() error // makes every completed write durable
}

// Check tells whether Run would refuse the journal. It writes nothing.
func Check(j Job) error {
	if err := j.fill(); err != nil {
		return err
	}
	switch j.Phase {
	case Preparing:
		return j.checkUnchanged()
	case Converting:
		return j.withConverter(func(c *converter) error {
			_, err := c.look()
			return err
		})
	default:
		return nil
	}
}

// Run takes a conversion to its end, from whatever point an earlier Run stopped
// at: Converted or, backwards, Reverted. The journal is gone then; what the caller
// has left to do is to drop the key that is no longer needed.
//
// After an error the disk and the journal can be resumed, now or after a crash.
// ErrJournal is for a journal that does not fit, and fs.ErrInvalid for a Job that
// cannot be.
func Run(ctx context.Context, j Job) (Phase, error) {
	if err := j.fill(); err != nil {
		return j.Phase, err
	}
	phase, err := j.toEnd(ctx)
	if err != nil {
		return j.Phase, err
	}
	if err := j.Journal.Remove(); err != nil {
		return phase, fmt.Errorf("remove the journal: %w", err)
	}
	return phase, nil
}

// fill puts in what was left out, and checks the rest.
func (j *Job) fill() error {
	if j.Zone == 0 {
		j.Zone = DefaultZone
	}
	if j.memory == nil {
		j.memory = image.MapBuffers
	}
	switch {
	case j.From == nil && j.To == nil:
		return fmt.Errorf("%w: no key to convert with", fs.ErrInvalid)
	case len(j.Key) != KeySize:
		return fmt.Errorf("%w: journal key of %d bytes", fs.ErrInvalid, len(j.Key))
	}
	if err := CheckZone(j.Zone); err != nil {
		return fmt.Errorf("%w: %w", fs.ErrInvalid, err)
	}
	return blockcrypt.CheckSize(j.Disk.Size(), j.SectorSize)
}

// CheckZone says why a step can't take up to so many bytes, if it can't.
func CheckZone(bytes int) error {
	if bytes < blockSize || bytes > maxZone || bytes%blockSize != 0 {
		return fmt.Errorf("zone of %d bytes: want a multiple of %d up to %d", bytes, blockSize, maxZone)
	}
	return nil
}

// toEnd brings the descriptor to one of the last two phases.
func (j *Job) toEnd(ctx context.Context) (Phase, error) {
	end := Converted
	if j.Backward {
		end = Reverted
	}
	switch j.Phase {
	case Preparing:
		if err := j.checkUnchanged(); err != nil {
			return "", err
		}
		if j.Backward { // nothing has changed; the journal may have taken the last space
			if err := j.Journal.Remove(); err != nil {
				return "", fmt.Errorf("remove the journal: %w", err)
			}
			return end, j.Descriptor.SetPhase(end)
		}
		if err := j.prepare(); err != nil {
			return "", err
		}
	case Converting:
	case Converted, Reverted: // but perhaps not durably
		return j.Phase, j.Descriptor.SetPhase(j.Phase)
	default:
		return "", fmt.Errorf("%w: phase %q", fs.ErrInvalid, j.Phase)
	}
	if err := j.convert(ctx); err != nil {
		return "", err
	}
	return end, j.Descriptor.SetPhase(end)
}

// prepare makes the journal durable.
func (j *Job) prepare() error {
	j.Zone = int(min(int64(j.Zone), (j.Disk.Size()+blockSize-1)/blockSize*blockSize))
	f, err := j.Journal.Create(layout{int64(j.Zone)}.size())
	if err != nil {
		return fmt.Errorf("create the journal: %w", err)
	}
	err = j.initialize(f)
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return fmt.Errorf("create the journal: %w", err)
	}
	return nil
}

func (j *Job) initialize(f File) error {
	journal, err := newJournal(f, j)
	if err != nil {
		return err
	}
	defer journal.wipe()
	return journal.initialize(j.header(int64(j.Zone)))
}

// convert does all steps.
func (j *Job) convert(ctx context.Context) error {
	return j.withConverter(func(c *converter) error { return c.run(ctx) })
}

// withConverter opens the journal, which must be that of the job.
func (j *Job) withConverter(do func(*converter) error) error {
	err := j.withJournal(func(journal *journal) error {
		c := &converter{Job: j, journal: journal}
		if err := journal.open(j); err != nil {
			return err
		}
		buffers, wipe, err := j.memory(len(c.buffers), int(journal.zone)+2*blockSize)
		if err != nil {
			return err
		}
		defer wipe()
		copy(c.buffers[:], buffers)
		return do(c)
	})
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", ErrJournal, err)
	}
	return err
}

// checkUnchanged refuses a descriptor that says that no sector has changed where
// the journal knows better: it is an old one. A journal that tells nothing was cut
// off while it was made.
func (j *Job) checkUnchanged() error {
	err := j.withJournal(func(journal *journal) error {
		return (&converter{Job: j, journal: journal}).checkUnchanged()
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// withJournal opens the journal for a while.
func (j *Job) withJournal(do func(*journal) error) error {
	f, err := j.Journal.Open()
	if err != nil {
		return fmt.Errorf("open the journal: %w", err)
	}
	journal, err := newJournal(f, j)
	if err == nil {
		err = do(journal)
		journal.wipe()
	}
	if closed := f.Close(); err == nil && closed != nil {
		err = fmt.Errorf("close the journal: %w", closed)
	}
	return err
}
