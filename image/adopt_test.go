package image

import (
	"errors"
	"os"
	"testing"
)

// The disk goes from one hand to the other without a moment in which it is free.
func TestAdopt(t *testing.T) {
	for _, mode := range []Mode{ReadOnly, ReadWrite} {
		path := mustCreateClosed(t)
		disk := mustOpen(t, path, Raw, mode)
		file := mustHandOver(t, disk)
		disk.Close()
		checkHeld(t, path, true)
		adopted, err := Adopt(file, Raw, mode, disk.Size())
		if err != nil {
			t.Fatal(err)
		}
		if adopted.Size() != disk.Size() || adopted.DataPath() != path {
			t.Errorf("adopted %d bytes of %s", adopted.Size(), adopted.DataPath())
		}
		if got := mustRead(t, adopted, 0, 4); string(got) != "data" {
			t.Errorf("read %q", got)
		}
		if _, err := adopted.WriteAt([]byte("more"), 0); (err == nil) != (mode == ReadWrite) {
			t.Errorf("mode %d: write: %v", mode, err)
		}
		checkHeld(t, path, true)
		adopted.Close()
		checkHeld(t, path, false)
	}
}

func TestAdoptVMDK(t *testing.T) {
	path := writeVMDK(t, qemuVMDK, 10<<20+4096)
	disk := mustOpen(t, path, VMDK, ReadWrite)
	defer disk.Close()
	adopted, err := Adopt(mustHandOver(t, disk), VMDK, ReadWrite, disk.Size())
	if err != nil {
		t.Fatal(err)
	}
	defer adopted.Close()
	if adopted.Format() != VMDK || adopted.Size() != 10<<20 {
		t.Errorf("adopted %d bytes of a %s", adopted.Size(), adopted.Format())
	}
}

func TestAdoptRefuses(t *testing.T) {
	disk := mustOpen(t, mustCreateClosed(t), Raw, ReadWrite)
	defer disk.Close()
	size := disk.Size()
	unlocked, err := os.OpenFile(disk.DataPath(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unlocked.Close()
	folder, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	for name, test := range map[string]struct {
		file   *os.File
		format Format
		mode   Mode
		size   int64
		want   error // nil for any
	}{
		"longer":    {mustHandOver(t, disk), Raw, ReadWrite, size - 1, nil},
		"shorter":   {mustHandOver(t, disk), VMDK, ReadWrite, size + 1, nil},
		"no size":   {mustHandOver(t, disk), VMDK, ReadWrite, -1, nil},
		"read-only": {mustHandOver(t, disk), Raw, ReadOnly, size, nil},
		"format":    {mustHandOver(t, disk), "qcow2", ReadWrite, size, ErrFormat},
		"unlocked":  {unlocked, Raw, ReadWrite, size, ErrInUse},
		"folder":    {folder, Raw, ReadOnly, 0, nil},
	} {
		adopted, err := Adopt(test.file, test.format, test.mode, test.size)
		if err == nil {
			adopted.Close()
		}
		if err == nil || test.want != nil && !errors.Is(err, test.want) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := test.file.Stat(); err != nil {
			t.Errorf("%s: the refused file: %v", name, err)
		}
	}
}

func mustHandOver(t *testing.T, disk *File) *os.File {
	t.Helper()
	file, err := disk.Handover()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file
}

// checkHeld checks whether others are kept from writing to the disk.
func checkHeld(t *testing.T, path string, held bool) {
	t.Helper()
	disk, err := Open(path, Raw, ReadWrite)
	if err == nil {
		disk.Close()
	}
	if errors.Is(err, ErrInUse) != held || err != nil && !held {
		t.Errorf("open for writing: %v", err)
	}
}
