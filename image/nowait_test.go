package image

import (
	"bytes"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestReadAtNoWait: what it says it read is what ReadAt reads, just written data
// are in memory, and it refuses what ReadAt refuses.
func TestReadAtNoWait(t *testing.T) {
	f, err := Create(t.TempDir()+"/disk", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	written := bytes.Repeat([]byte("sector"), 1<<20/6)
	if _, err := f.WriteAt(written, 0); err != nil {
		t.Fatal(err)
	}
	supported := f.ReadAtNoWait(make([]byte, 1), 0)
	for _, r := range []struct {
		offset int64
		length int
	}{{0, 4096}, {511, 3}, {4095, 70000}, {1<<20 - 9, 9}} {
		got, want := make([]byte, r.length), make([]byte, r.length)
		if _, err := f.ReadAt(want, r.offset); err != nil {
			t.Fatal(err)
		}
		if f.ReadAtNoWait(got, r.offset) != supported || supported && !bytes.Equal(got, want) {
			t.Errorf("%d bytes at %d are not as they are by ReadAt", r.length, r.offset)
		}
	}
	for _, offset := range []int64{-1, 1<<20 - 1, 1 << 20, 1<<63 - 1} {
		if f.ReadAtNoWait(make([]byte, 2), offset) {
			t.Errorf("read beyond the disk at %d", offset)
		}
	}
}

// TestReadAtNoWaitLeavesTheColdAlone: data that are not in memory are not waited
// for, and are there once ReadAt has brought them.
func TestReadAtNoWaitLeavesTheColdAlone(t *testing.T) {
	f := coldFile(t)
	p := make([]byte, 4096)
	if f.cached(0, len(p)) {
		t.Skip("the file system keeps its data in memory")
	}
	if f.ReadAtNoWait(p, 0) && !f.cached(0, len(p)) {
		t.Error("data that are not in memory were read all the same")
	}
	if _, err := f.ReadAt(p, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	if !f.cached(0, len(p)) {
		t.Skip("the file system has no page cache")
	}
	if f.ReadAtNoWait(p, 0) && p[4095] != 7 {
		t.Error("wrong data")
	}
}

// coldFile gives a disk full of sevens that is not in the page cache, as far as
// the file system lets go of it.
func coldFile(t *testing.T) *File {
	path := t.TempDir() + "/disk"
	if err := os.WriteFile(path, bytes.Repeat([]byte{7}, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Open(path, Raw, ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fadvise(int(f.file.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
	return f
}
