package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// reads are several reads under way.
type reads struct{ wait sync.WaitGroup }

// told is the Reader of one read.
type told struct {
	all  *reads
	mu   sync.Mutex
	n    int
	ok   bool
	next bool
}

func (r *told) ReadDone(ok bool) func() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.n++
	r.ok = ok
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.next = true
		r.all.wait.Done()
	}
}

// begin gives a read whose end all.wait waits for.
func (all *reads) begin(offset int64, length int) (BackgroundRead, *told) {
	all.wait.Add(1)
	r := &told{all: all}
	return BackgroundRead{make([]byte, length), offset, r}, r
}

// numbered gives a disk whose words are their own numbers, as far as possible out of
// the page cache, and opened to read in the background.
func numbered(t *testing.T, size int) *File {
	t.Helper()
	path := t.TempDir() + "/disk"
	if err := os.WriteFile(path, numbers(0, size), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Open(path, Raw, ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	f.coolDown(t)
	if !f.OpenBackground() {
		t.Skip("no io_uring here, or not for this file system")
	}
	return f
}

// numbers are size bytes of what a numbered disk holds at offset.
func numbers(offset, size int) []byte {
	p := make([]byte, 0, size+8)
	for at := offset &^ 7; at < offset+size; at += 8 {
		p = binary.LittleEndian.AppendUint64(p, uint64(at))
	}
	return p[offset&7:][:size]
}

// coolDown takes the file out of the page cache, as far as the file system lets go.
func (f *File) coolDown(t *testing.T) {
	t.Helper()
	if err := f.Flush(); err != nil {
		t.Fatal(err)
	}
	err := f.control(func(fd int) error { return unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED) })
	if err != nil {
		t.Fatal(err)
	}
}

// TestBeginReads: more reads at once than the kernel gets, of what is in memory and
// what is not, aligned or not.
func TestBeginReads(t *testing.T) {
	const size = 8 << 20
	f := numbered(t, size)
	all := new(reads)
	var batch []BackgroundRead
	var readers []*told
	for i := range 3 * ringSize {
		read, r := all.begin(int64(i*7919*13%(size-9000)), 1+i*31%9000)
		batch, readers = append(batch, read), append(readers, r)
	}
	kept := slices.Clone(batch)
	f.BeginReads(batch[:10])
	f.BeginReads(batch[10:])
	all.wait.Wait()
	for i, read := range kept {
		if r := readers[i]; r.n != 1 || !r.ok || !r.next {
			t.Fatalf("%d bytes at %d: told %d times, %v, %v", len(read.P), read.Offset, r.n, r.ok, r.next)
		}
		if !bytes.Equal(read.P, numbers(int(read.Offset), len(read.P))) {
			t.Fatalf("%d bytes at %d are wrong", len(read.P), read.Offset)
		}
	}
}

// TestBeginReadsThatFail: the others of the batch do not.
func TestBeginReadsThatFail(t *testing.T) {
	const size = 1 << 20
	f := numbered(t, size)
	if err := os.Truncate(f.DataPath(), size-4096); err != nil {
		t.Fatal(err)
	}
	all := new(reads)
	var batch []BackgroundRead
	var readers []*told
	for _, offset := range []int64{-1, size - 1, 1<<63 - 1, size - 4096, size - 4097, 0} {
		read, r := all.begin(offset, 4096)
		batch, readers = append(batch, read), append(readers, r)
	}
	f.BeginReads(batch)
	all.wait.Wait()
	for i, r := range readers {
		if good := i == len(readers)-1; r.n != 1 || r.ok != good {
			t.Errorf("read %d: told %d times, %v", i, r.n, r.ok)
		}
	}
}

// TestCloseWaitsForReads, and reads nothing thereafter.
func TestCloseWaitsForReads(t *testing.T) {
	f := numbered(t, 4<<20)
	all := new(reads)
	var batch []BackgroundRead
	var readers []*told
	for i := range 2 * ringSize {
		read, r := all.begin(int64(i)*8192, 4096)
		batch, readers = append(batch, read), append(readers, r)
	}
	f.BeginReads(batch)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for i, r := range readers {
		if r.n != 1 || !r.ok {
			t.Fatalf("read %d: told %d times, %v", i, r.n, r.ok)
		}
	}
	late, r := all.begin(0, 512)
	f.BeginReads([]BackgroundRead{late})
	if r.n != 1 || r.ok {
		t.Error("it read from a closed disk")
	}
	all.wait.Wait()
	again, err := Open(f.DataPath(), Raw, ReadWrite) // the ring has let go of the file, and its lock
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

// TestRingOnlyReads: the kernel refuses all else by it.
func TestRingOnlyReads(t *testing.T) {
	runtime.LockOSThread() // whose ring it is
	defer runtime.UnlockOSThread()
	u, err := openUring(4)
	if err != nil {
		t.Skip(err)
	}
	defer u.close()
	file := smallFile(t)
	path := append([]byte("/dev/null"), 0)
	for name, s := range map[string]submission{
		"nop":       {opcode: 0},
		"openat":    {opcode: 18, fd: unix.AT_FDCWD, address: uint64(uintptr(unsafe.Pointer(&path[0])))},
		"write":     {opcode: 23, fd: int32(file.Fd()), address: uint64(uintptr(unsafe.Pointer(&path[0]))), length: 1},
		"socket":    {opcode: 45, fd: unix.AF_UNIX, offset: unix.SOCK_STREAM},
		"flags":     {opcode: opRead, flags: 1 << 4, fd: int32(file.Fd())}, // IOSQE_ASYNC
		"fallocate": {opcode: 17, fd: int32(file.Fd())},
	} {
		u.submissions[*u.tail%4] = s
		*u.tail++
		if err := u.enter(); err != nil {
			t.Fatal(err)
		}
		if c, ok := u.pop(); !ok || c.result != -int32(unix.EACCES) {
			t.Errorf("%s: %d, %v", name, c.result, ok)
		}
	}
	if err := u.register(0, nil, 0); !errors.Is(err, unix.EACCES) {
		t.Errorf("register buffers: %v", err)
	}
	got := make([]byte, 5)
	u.push(int(file.Fd()), got, 1, 77)
	if err := u.enter(); err != nil {
		t.Fatal(err)
	}
	if c, ok := u.pop(); !ok || c.id != 77 || c.result != 5 || string(got) != "inewo" {
		t.Errorf("%+v, %v, %q", c, ok, got)
	}
}

func smallFile(t *testing.T) *os.File {
	t.Helper()
	path := t.TempDir() + "/file"
	if err := os.WriteFile(path, []byte("pineworks"), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file
}
