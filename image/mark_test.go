package image

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const testUUID = "0f8fad5b-d9cb-469f-a165-70867728950e"

func TestDiskUUID(t *testing.T) {
	disk := mustCreate(t, 512)
	if id, ok, err := disk.DiskUUID(); id != "" || ok || err != nil {
		t.Fatalf("of a new disk: %q, %t, %v", id, ok, err)
	}
	if err := disk.SetDiskUUID(testUUID); err != nil {
		t.Fatal(err)
	}
	id, ok, err := disk.DiskUUID()
	if err == nil && !ok {
		t.Skip("the file system has no extended attributes")
	}
	if id != testUUID || err != nil {
		t.Fatalf("got %q, %v", id, err)
	}
	info, err := Inspect(disk.DataPath(), Raw)
	if want := (Info{Size: 512, DataPath: disk.DataPath(), DiskUUID: testUUID}); info != want || err != nil {
		t.Errorf("inspected while in use: %+v, %v", info, err)
	}
	for range 2 {
		if err := disk.ClearDiskUUID(); err != nil {
			t.Fatal(err)
		}
		if id, ok, err := disk.DiskUUID(); id != "" || ok || err != nil {
			t.Fatalf("once it is cleared: %q, %t, %v", id, ok, err)
		}
	}
}

func TestForeignMarks(t *testing.T) {
	disk := mustCreate(t, 512)
	for _, value := range []string{
		"", "x", testUUID + "\n", testUUID + testUUID, testUUID[:35], strings.ToUpper(testUUID),
		strings.ReplaceAll(testUUID, "-", "0"), strings.Replace(testUUID, "0", "-", 1), strings.Repeat("a", 1000),
	} {
		if err := disk.SetDiskUUID(value); err == nil {
			t.Errorf("SetDiskUUID(%q) works", value)
		}
		if err := unix.Setxattr(disk.DataPath(), mark, []byte(value), 0); err == unix.ENOTSUP {
			t.Skip("the file system has no extended attributes")
		} else if err != nil {
			t.Fatal(err)
		}
		if id, ok, err := disk.DiskUUID(); id != "" || ok || !errors.Is(err, ErrFormat) {
			t.Errorf("of %q: %q, %t, %v", value, id, ok, err)
		}
	}
}

// Devices take no marks, and that is no error.
func TestDiskUUIDOfDevice(t *testing.T) {
	disk := mustCreate(t, 512)
	disk.device = true
	if err := disk.SetDiskUUID(testUUID); err != nil {
		t.Error(err)
	}
	disk.device = false
	if _, ok, err := disk.DiskUUID(); ok || err != nil {
		t.Errorf("%t, %v", ok, err)
	}
}
