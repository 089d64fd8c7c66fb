package agent

import (
	"context"
	"fmt"
	"reflect"

	"github.com/vmcrypt/vmcrypt/blockcrypt"
	"github.com/vmcrypt/vmcrypt/image"
)

// open opens and locks the file of a disk, if it is the disk that the descriptor
// means.
func (d Disk) open(mode image.Mode) (*image.File, error) {
	if d.target.beneath != nil {
		return d.opened(d.target.beneath.openDisk(d.Path, d.Format, mode))
	}
	return d.opened(image.Open(d.Path, d.Format, mode))
}

func (d Disk) opened(f *image.File, err error) (*image.File, error) {
	if err != nil {
		return nil, err
	}
	if err := d.check(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (d Disk) check(f *image.File) error {
	if err := d.checkFinished(); err != nil {
		return err
	}
	if err := d.unchanged(); err != nil {
		return err
	}
	if err := checkNoJournal(f.DataPath()); err != nil {
		return err
	}
	return d.checkMarkOf(f)
}

// unchanged compares a disk, which is locked, with what its descriptor says now. That
// was read before: a conversion may have come to its end in between, and the disk have
// another key. From now on only who has the lock changes it.
func (d Disk) unchanged() error {
	now, err := d.target.reopen()
	if err != nil {
		return err
	}
	same, err := now.disk(d.Node)
	if err != nil || same.Path != d.Path || same.Format != d.Format || !reflect.DeepEqual(same.Record, d.Record) {
		return fmt.Errorf("disk %s (%s): %w: %s has just been changed, and says something else of it",
			d.Node, d.Path, image.ErrInUse, d.target.Descriptor)
	}
	return nil
}

func (d Disk) checkMarkOf(f *image.File) error {
	mark, _, err := f.DiskUUID()
	if err != nil {
		return err
	}
	return d.checkMark(mark)
}

// checkFinished refuses a disk amid a conversion: a part of it may be plain,
// or ciphertext under another key.
func (d Disk) checkFinished() error {
	if d.Record == nil || !d.Record.Unfinished() {
		return nil
	}
	return d.unfinished(nil)
}

// unfinished says that a conversion of the disk is to be finished, and what
// stopped it if that was in this run.
func (d Disk) unfinished(cause error) error {
	return &Unfinished{
		Target: d.target.Path, Node: d.Node, Path: d.Path, State: d.Record.State,
		Named: d.target.hasOthers(d.Record.State) || !d.isBeneath(), Err: cause,
	}
}

// checkMark compares the mark of the disk's file with its record. A marked file
// without a record is ciphertext: encrypting it once more would bury it.
func (d Disk) checkMark(mark string) error {
	switch {
	case mark == "":
		return nil
	case d.Record == nil:
		return fmt.Errorf("%w: %s is marked as encrypted disk %s, but its descriptor says nothing of that",
			ErrUnrecorded, d.Path, mark)
	case mark != d.Record.DiskUUID.String():
		return fmt.Errorf("%w: %s is disk %s, but the descriptor's key is that of disk %s",
			ErrDescriptor, d.Path, mark, d.Record.DiskUUID)
	}
	return nil
}

// openBeneath opens a disk that was not chosen and comes along as it is. It has
// to lie in the VM's folder: a descriptor must not have other files of the host
// copied.
func (d Disk) openBeneath(folder string) (*image.File, error) {
	f, err := d.opened(image.OpenBeneath(folder, d.fileName, d.Format, image.ReadOnly))
	if err != nil {
		return nil, fmt.Errorf("disk %s, which was not chosen, can't be taken along: %w", d.Node, err)
	}
	return f, nil
}

// openUnlocked opens the plaintext of an encrypted disk. Closing it closes the
// file and wipes the cipher.
func (d Disk) openUnlocked(ctx context.Context, keys *keyring, mode image.Mode) (image.Disk, error) {
	f, err := d.open(mode)
	if err != nil {
		return nil, err
	}
	cipher, err := d.unlock(ctx, keys, f)
	if err != nil {
		f.Close()
		return nil, err
	}
	plain, err := blockcrypt.NewDisk(f, cipher, blockcrypt.HolePolicy(d.Record.Holes))
	if err != nil {
		cipher.Wipe()
		f.Close()
		return nil, err
	}
	return plain, nil
}

// unlock gives the cipher of the encrypted disk in f.
func (d Disk) unlock(ctx context.Context, keys *keyring, f *image.File) (*blockcrypt.Cipher, error) {
	key, err := keys.unwrap(ctx, d)
	if err != nil {
		return nil, err
	}
	defer key.Destroy()
	if err := d.checkSize(f); err != nil {
		return nil, err
	}
	return keys.host.Engine.NewCipher(key.Bytes(), d.Record.SectorSize)
}

// checkSize compares the file with a record that is known to be authentic.
func (d Disk) checkSize(f *image.File) error {
	if f.Size() == d.Record.Size {
		return nil
	}
	return fmt.Errorf("%w: %s has %d bytes, but its record is of a disk of %d: it was cut, grown or swapped",
		ErrDescriptor, f.DataPath(), f.Size(), d.Record.Size)
}
