package image

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmcrypt/vmcrypt/internal/testtool"
)

func mustCreate(t testing.TB, size int64) *File {
	t.Helper()
	f, err := Create(filepath.Join(t.TempDir(), "disk.img"), size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func mustOpen(t testing.TB, path string, format Format, mode Mode) *File {
	t.Helper()
	f, err := Open(path, format, mode)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func mustWrite(t testing.TB, d Disk, p []byte, offset int64) {
	t.Helper()
	if n, err := d.WriteAt(p, offset); n != len(p) || err != nil {
		t.Fatalf("WriteAt(%d bytes, %d) = %d, %v", len(p), offset, n, err)
	}
}

func mustRead(t testing.TB, d Disk, offset, length int64) []byte {
	t.Helper()
	p := make([]byte, length)
	if n, err := d.ReadAt(p, offset); n != len(p) || err != nil {
		t.Fatalf("ReadAt(%d bytes, %d) = %d, %v", length, offset, n, err)
	}
	return p
}

// checkExtents checks that a map has no gaps, and that its holes read as zeros.
func checkExtents(t *testing.T, d Disk, offset, length int64) {
	t.Helper()
	extents, err := d.Extents(offset, length)
	if err != nil {
		t.Fatal(err)
	}
	next := offset
	for _, e := range extents {
		if e.Offset != next || e.Length <= 0 {
			t.Fatalf("extents %v of %d bytes at %d have a gap or overlap", extents, length, offset)
		}
		next += e.Length
		if e.Hole && bytes.ContainsFunc(mustRead(t, d, e.Offset, e.Length), func(r rune) bool { return r != 0 }) {
			t.Fatalf("hole %v has data", e)
		}
	}
	if next != offset+length {
		t.Fatalf("extents %v end at %d, want %d", extents, next, offset+length)
	}
}

func TestRandomOperations(t *testing.T) {
	const size = 300_000
	disk, model := mustCreate(t, size), make([]byte, size)
	random := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		offset := random.Int64N(size + 1)
		length := random.Int64N(min(size-offset, 20_000) + 1)
		part := model[offset : offset+length]
		switch random.IntN(4) {
		case 0:
			for i := range part {
				part[i] = byte(random.Uint32())
			}
			mustWrite(t, disk, part, offset)
		case 1:
			clear(part)
			if err := disk.Discard(offset, length); err != nil {
				t.Fatal(err)
			}
		case 2:
			if !bytes.Equal(mustRead(t, disk, offset, length), part) {
				t.Fatalf("%d bytes at %d differ", length, offset)
			}
		case 3:
			checkExtents(t, disk, offset, length)
		}
	}
	if !bytes.Equal(mustRead(t, disk, 0, size), model) {
		t.Error("the disk differs from the model")
	}
}

func TestConcurrentUse(t *testing.T) {
	const part, parts = 64 << 10, 8
	disk := mustCreate(t, part*parts)
	var group sync.WaitGroup
	for i := range int64(parts) {
		group.Go(func() {
			want := bytes.Repeat([]byte{byte(i + 1)}, part)
			for range 20 {
				_, written := disk.WriteAt(want, i*part)
				got := make([]byte, part)
				_, read := disk.ReadAt(got, i*part)
				_, mapped := disk.Extents(0, disk.Size())
				if err := errors.Join(written, read, mapped, disk.Flush()); err != nil || !bytes.Equal(got, want) {
					t.Errorf("part %d: %v", i, err)
				}
			}
		})
	}
	group.Wait()
}

func TestOutsideTheDisk(t *testing.T) {
	disk := mustCreate(t, 1000)
	mustWrite(t, disk, bytes.Repeat([]byte{7}, 1000), 0)
	buf := make([]byte, 10)
	for _, offset := range []int64{-1, -10, 991, 1000, 1 << 62} {
		_, read := disk.ReadAt(buf, offset)
		_, written := disk.WriteAt(buf, offset)
		_, mapped := disk.Extents(offset, 10)
		for _, err := range []error{read, written, mapped, disk.Discard(offset, 10), disk.Discard(0, -1)} {
			if !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), disk.DataPath()) {
				t.Errorf("at %d: %v", offset, err)
			}
		}
	}
	if !bytes.Equal(mustRead(t, disk, 0, 1000), bytes.Repeat([]byte{7}, 1000)) {
		t.Error("the disk has changed")
	}
	if info, err := os.Stat(disk.DataPath()); err != nil || info.Size() != 1000 {
		t.Errorf("the file has %d bytes, %v", info.Size(), err)
	}
}

func TestReadOnly(t *testing.T) {
	created := mustCreate(t, 4096)
	created.Close()
	disk := mustOpen(t, created.DataPath(), Raw, ReadOnly)
	_, written := disk.WriteAt([]byte{1}, 0)
	for _, err := range []error{written, disk.Discard(0, 1), disk.SetDiskUUID(testUUID)} {
		if !errors.Is(err, fs.ErrPermission) {
			t.Errorf("got %v, want fs.ErrPermission", err)
		}
	}
	if err := disk.Flush(); err != nil {
		t.Error("flush of a disk that cannot have changed:", err)
	}
}

// What a file lost looks like zeros to the kernel; it must not to us.
func TestFileThatShrank(t *testing.T) {
	disk := mustCreate(t, 100_000)
	if err := os.Truncate(disk.DataPath(), 50_000); err != nil {
		t.Fatal(err)
	}
	_, read := disk.ReadAt(make([]byte, 10_000), 45_000)
	_, readBeyond := disk.ReadAt(make([]byte, 10_000), 60_000)
	_, mapped := disk.Extents(0, 100_000)
	for _, err := range []error{read, readBeyond, mapped} {
		if !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), "became shorter") {
			t.Errorf("got %v", err)
		}
	}
}

func TestFailedFlushIsFinal(t *testing.T) {
	disk := mustCreate(t, 4096)
	if err := disk.Flush(); err != nil {
		t.Fatal(err)
	}
	disk.sync = func() error { return unix.EIO }
	if err := disk.Flush(); err != unix.EIO {
		t.Fatal("first flush:", err)
	}
	disk.sync = func() error { return nil } // as the kernel would
	if err := disk.Flush(); err != unix.EIO {
		t.Error("flush after a failed one:", err)
	}
}

func TestDiscardWithoutHoles(t *testing.T) {
	disk := mustCreate(t, 3<<20)
	data := bytes.Repeat([]byte{9}, 3<<20)
	mustWrite(t, disk, data, 0)
	if err := disk.writeZeros(1000, 2<<20+1); err != nil {
		t.Fatal(err)
	}
	clear(data[1000 : 1000+2<<20+1])
	if !bytes.Equal(mustRead(t, disk, 0, 3<<20), data) {
		t.Error("not zero just where it should be")
	}
}

func TestDiscardGivesSpaceBack(t *testing.T) {
	disk := mustCreate(t, 1<<20)
	mustWrite(t, disk, bytes.Repeat([]byte{9}, 1<<20), 0)
	if err := errors.Join(disk.Flush(), disk.Discard(0, 1<<20)); err != nil {
		t.Fatal(err)
	}
	var stat unix.Stat_t
	if err := unix.Stat(disk.DataPath(), &stat); err != nil || stat.Blocks > 16 || stat.Size != 1<<20 {
		t.Errorf("%d blocks, %d bytes, %v", stat.Blocks, stat.Size, err)
	}
}

func TestCreate(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "disk.img")
	disk, err := Create(path, 12345)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	info, err := os.Stat(path)
	if err != nil || info.Size() != 12345 || info.Mode() != 0o600 || disk.Size() != 12345 {
		t.Errorf("%v, %v", info, err)
	}
	if disk.Format() != Raw || disk.DataPath() != path {
		t.Errorf("%s, %s", disk.Format(), disk.DataPath())
	}
	if _, err := Create(path, 1); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over an existing file: %v", err)
	}
	if _, err := Create(filepath.Join(dir, "a"), -1); err == nil {
		t.Error("negative size")
	}
	if _, err := Create(filepath.Join(dir, "b"), 1<<62); err == nil {
		t.Error("size beyond every file system")
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 1 {
		t.Errorf("left behind: %q", left)
	}
}

func TestOpenRefusesWhatIsNoDisk(t *testing.T) {
	dir := t.TempDir()
	fifo, socket, loop := filepath.Join(dir, "fifo"), filepath.Join(dir, "socket"), filepath.Join(dir, "loop")
	if err := errors.Join(unix.Mkfifo(fifo, 0o600), os.Symlink(loop, loop)); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	for path, want := range map[string]struct{ raw, vmdk string }{
		dir:                           {"directory", "regular file"},
		fifo:                          {"named pipe", "regular file"},
		socket:                        {"no such device", "no such device"},
		loop:                          {"levels of symbolic links", "levels of symbolic links"},
		"/dev/null":                   {"character device", "regular file"},
		filepath.Join(dir, "missing"): {"no such file", "no such file"},
	} {
		for _, mode := range []Mode{ReadOnly, ReadWrite} {
			checkRefused(t, path, Raw, mode, want.raw)
			checkRefused(t, path, VMDK, mode, want.vmdk)
		}
	}
	checkRefused(t, dir, "qcow2", ReadOnly, "not one of raw, vmdk")
}

// checkRefused opens what is no disk, which may not take long, and looks for
// the path and the reason in the error.
func checkRefused(t *testing.T, path string, format Format, mode Mode, want string) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		_, err := Open(path, format, mode)
		done <- err
	}()
	select {
	case err := <-done:
		if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), want) {
			t.Errorf("Open(%s, %s, %d) = %v, want %q", path, format, mode, err, want)
		}
	case <-time.After(10 * time.Second):
		t.Errorf("Open(%s, %s, %d) hangs", path, format, mode)
	}
}

func TestOpenWithoutPermission(t *testing.T) {
	if !testtool.Unprivileged(t) {
		return
	}
	disk := mustCreate(t, 512)
	disk.Close()
	if err := os.Chmod(disk.DataPath(), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(disk.DataPath(), Raw, ReadOnly); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("got %v", err)
	}
}

func TestFormatOf(t *testing.T) {
	for path, want := range map[string]Format{
		"/vms/a/disk.vmdk": VMDK, "DISK.VMDK": VMDK, "disk-flat.vmdk": Raw, "Disk-Flat.VMDK": Raw,
		"disk.img": Raw, "disk.raw": Raw, "/dev/sda": Raw, "vmdk": Raw, "disk.vmdk.img": Raw, "": Raw,
	} {
		if got := FormatOf(path); got != want {
			t.Errorf("FormatOf(%q) = %s, want %s", path, got, want)
		}
	}
}

// A disk larger than memory and host is a matter of offsets only.
func TestLargeDisk(t *testing.T) {
	const size = 1 << 40
	disk := mustCreate(t, size)
	mustWrite(t, disk, []byte("end"), size-3)
	if got := mustRead(t, disk, size-5, 5); string(got) != "\x00\x00end" {
		t.Errorf("got %q", got)
	}
	extents, err := disk.Extents(0, size)
	if err != nil || len(extents) != 2 || !extents[0].Hole || extents[1].Hole {
		t.Errorf("extents %v, %v", extents, err)
	}
}

func ExampleFormatOf() {
	fmt.Println(FormatOf("web01.vmdk"), FormatOf("web01-flat.vmdk"), FormatOf("web01.img"))
	// Output: vmdk raw raw
}
