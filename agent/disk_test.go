package agent

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/uuid"

	"github.com/vmcrypt/vmcrypt/image"
	"github.com/vmcrypt/vmcrypt/vmx"
)

const diskSize = 64 << 10

// encryptedTarget opens a VM of two disks, that of scsi0:1 with a record, and gives a
// function that has the descriptor changed by somebody else.
func encryptedTarget(t *testing.T) (*Target, func(func(*vmx.File) error)) {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"a.img", "b.img"} {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, diskSize), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "vm.vmx")
	text := "scsi0:0.fileName = \"a.img\"\nscsi0:1.fileName = \"b.img\"\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	change := func(edit func(*vmx.File) error) {
		t.Helper()
		f, err := vmx.Read(path)
		if err == nil {
			err = errors.Join(edit(f), f.Write(path))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	change(func(f *vmx.File) error { return f.SetRecord("scsi0:1", anyRecord()) })
	target, err := Open(path, "")
	if err != nil {
		t.Fatal(err)
	}
	return target, change
}

// anyRecord is a record of an encrypted disk under no key at all.
func anyRecord() *vmx.Record {
	return &vmx.Record{
		State: vmx.StateEncrypted, DiskUUID: uuid.New(), Size: diskSize, Cipher: vmx.CipherXTS, SectorSize: 512,
		Holes: "preserve", MAC: make([]byte, 32),
		Recipients: []vmx.Recipient{{Alias: "prod", KEKID: "1", WrappedKey: []byte("wrapped")}},
	}
}

// TestDescriptorChangedBeforeTheLock: what was read of a disk before it was locked is
// not relied on if it is no longer so.
func TestDescriptorChangedBeforeTheLock(t *testing.T) {
	for name, c := range map[string]struct {
		edit func(*vmx.File) error
		node string
	}{
		"another key":   {func(f *vmx.File) error { return f.SetRecord("scsi0:1", anyRecord()) }, "scsi0:1"},
		"now plain":     {func(f *vmx.File) error { return f.RemoveRecord("scsi0:1") }, "scsi0:1"},
		"now encrypted": {func(f *vmx.File) error { return f.SetRecord("scsi0:0", anyRecord()) }, "scsi0:0"},
		"another file":  {func(f *vmx.File) error { return f.Set("scsi0:1.fileName", "a.img") }, "scsi0:1"},
	} {
		t.Run(name, func(t *testing.T) {
			target, change := encryptedTarget(t)
			change(c.edit)
			for _, d := range target.Disks {
				for _, mode := range []image.Mode{image.ReadOnly, image.ReadWrite} {
					checkOpen(t, d, mode, d.Node != c.node)
				}
			}
		})
	}
}

// checkOpen opens a disk, and looks that one that is refused is not kept.
func checkOpen(t *testing.T, d Disk, mode image.Mode, want bool) {
	t.Helper()
	f, err := d.open(mode)
	switch {
	case err == nil && want:
		f.Close()
	case err == nil:
		f.Close()
		t.Errorf("disk %s was opened, mode %d", d.Node, mode)
	case want || !errors.Is(err, image.ErrInUse):
		t.Errorf("disk %s, mode %d: %v", d.Node, mode, err)
	}
	again, err := image.Open(d.Path, d.Format, image.ReadWrite)
	if err != nil {
		t.Fatalf("disk %s is still locked: %v", d.Node, err)
	}
	again.Close()
}
