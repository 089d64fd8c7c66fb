package agent

import (
	"context"
	"fmt"

	"github.com/vmcrypt/vmcrypt/blockcrypt"
	"github.com/vmcrypt/vmcrypt/image"
	"github.com/vmcrypt/vmcrypt/internal/secret"
	"github.com/vmcrypt/vmcrypt/vmx"
)

// openPlain opens a disk that is about to be encrypted. A disk that carries the
// mark of an encrypted one is refused: encrypting it twice would bury it.
func openPlain(d Disk) (*image.File, error) {
	f, err := image.Open(d.Path, d.Format, image.ReadOnly)
	if err != nil {
		return nil, err
	}
	if err := checkUnmarked(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func checkUnmarked(f *image.File) error {
	id, marked, err := f.DiskUUID()
	if err != nil {
		return err
	}
	if marked {
		return fmt.Errorf("%w: %s is marked as encrypted disk %s, but its descriptor says nothing of that: "+
			"find the descriptor, or, if the disk is surely plain, remove its attribute user.vmcrypt.disk",
			ErrDescriptor, f.DataPath(), id)
	}
	return nil
}

// openUnlocked opens the plaintext of an encrypted disk.
func openUnlocked(ctx context.Context, keys *keyring, d Disk) (image.Disk, error) {
	f, err := image.Open(d.Path, d.Format, image.ReadOnly)
	if err != nil {
		return nil, err
	}
	plain, err := unlock(ctx, keys, d, f)
	if err != nil {
		f.Close()
		return nil, err
	}
	return plain, nil
}

func unlock(ctx context.Context, keys *keyring, d Disk, f *image.File) (image.Disk, error) {
	if err := checkMark(f, d.Record); err != nil {
		return nil, err
	}
	key, err := keys.unwrap(ctx, d)
	if err != nil {
		return nil, err
	}
	defer key.Destroy()
	// Only now is the recorded size known to be true.
	if f.Size() != d.Record.Size {
		return nil, fmt.Errorf("%s has %d bytes, but %d were encrypted: the file was cut or grown",
			f.DataPath(), f.Size(), d.Record.Size)
	}
	return decrypted(f, key, d.Record)
}

// checkMark refuses a disk file that says it is another disk than the record's.
func checkMark(f *image.File, rec *vmx.Record) error {
	id, marked, err := f.DiskUUID()
	if err != nil {
		return err
	}
	if marked && id != rec.DiskUUID.String() {
		return fmt.Errorf("%w: %s is disk %s, but the descriptor's key is that of disk %s",
			ErrDescriptor, f.DataPath(), id, rec.DiskUUID)
	}
	return nil
}

// decrypted is the plaintext view of storage. Closing it closes the storage and
// wipes the cipher.
func decrypted(storage image.Disk, key *secret.Buffer, rec *vmx.Record) (image.Disk, error) {
	cipher, err := blockcrypt.NewCipher(key.Bytes(), rec.SectorSize)
	if err != nil {
		return nil, err
	}
	disk, err := blockcrypt.NewDisk(storage, cipher, blockcrypt.HolePolicy(rec.Holes))
	if err != nil {
		cipher.Wipe()
		return nil, err
	}
	return disk, nil
}
