package image

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmcrypt/vmcrypt/internal/secret"
	"github.com/vmcrypt/vmcrypt/internal/secret/secrettest"
)

// folders gives a place on the usual file system and one in memory.
func folders(t *testing.T) []string {
	t.Helper()
	inMemory, err := os.MkdirTemp("/dev/shm", "vmcrypt-test")
	if err != nil {
		return []string{t.TempDir()}
	}
	t.Cleanup(func() { os.RemoveAll(inMemory) })
	return []string{t.TempDir(), inMemory}
}

// patches makes a disk of size bytes in folder with data in places that are
// aligned to nothing, and returns its content.
func patches(t *testing.T, folder string, size int64) (*File, []byte) {
	t.Helper()
	disk, err := Create(filepath.Join(folder, fmt.Sprintf("src-%d.img", size)), size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { disk.Close() })
	content := make([]byte, size)
	random, bytesOf := rand.New(rand.NewPCG(uint64(size), 1)), rand.NewChaCha8([32]byte{1})
	for range 8 * min(size, 1) {
		offset := random.Int64N(size)
		part := content[offset:min(size, offset+random.Int64N(1+size/4))]
		bytesOf.Read(part)
		mustWrite(t, disk, part, offset)
	}
	return disk, content
}

// evict drops a file from the page cache.
func evict(t *testing.T, f *File) {
	t.Helper()
	if err := unix.Fsync(int(f.file.Fd())); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fadvise(int(f.file.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
}

func TestCopyOfFiles(t *testing.T) {
	places := folders(t)
	for _, from := range places {
		for _, size := range []int64{0, 1, 512, 4096, 4096 + 512, 1<<20 - 512, 1<<20 + 1, 3<<20 + 7*512, 9 << 20} {
			src, content := patches(t, from, size)
			for _, to := range places {
				evict(t, src)
				checkCopy(t, src, content, to)
				mustRead(t, src, 0, size) // into the page cache
				checkCopy(t, src, content, to)
			}
		}
	}
}

func checkCopy(t *testing.T, src *File, content []byte, to string) {
	t.Helper()
	path := filepath.Join(to, "copy.img")
	dst, err := Create(path, src.Size())
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(path)
	defer dst.Close()
	if err := Copy(t.Context(), dst, src, Transform{}, nil); err != nil {
		t.Fatal(err)
	}
	// Read as anybody would, past nothing of ours.
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("copy of %d bytes to %s: %v, or it differs", src.Size(), to, err)
	}
}

// What is there must not show through the holes of what is copied over it.
func TestCopyOverFile(t *testing.T) {
	for _, folder := range folders(t) {
		src, content := patches(t, folder, 3<<20+512)
		dst, err := Create(filepath.Join(folder, "full.img"), src.Size())
		if err != nil {
			t.Fatal(err)
		}
		defer dst.Close()
		mustWrite(t, dst, bytes.Repeat([]byte{7}, int(src.Size())), 0)
		if err := Copy(t.Context(), dst, src, Transform{}, nil); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(mustRead(t, dst, 0, dst.Size()), content) {
			t.Errorf("%s: differs", folder)
		}
	}
}

// mustPass gives the disk past the page cache, where the file system of temporary
// folders can.
func mustPass(t *testing.T, f *File) *direct {
	t.Helper()
	disk, done := PastCache(f)
	t.Cleanup(done)
	d, ok := disk.(*direct)
	if !ok {
		t.Skip("the file system of temporary folders has no O_DIRECT")
	}
	buf := mustMap(t, 1<<20)
	if _, err := d.past.ReadAt(buf, 0); err != nil || f.cached(0, len(buf)) {
		t.Skipf("the file system of temporary folders is not really past the page cache: %v", err)
	}
	return d
}

func mustMap(t *testing.T, size int) []byte {
	t.Helper()
	buffers, wipe, err := MapBuffers(1, size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(wipe)
	return buffers[0]
}

func TestMapBuffers(t *testing.T) {
	buffers, wipe, err := MapBuffers(3, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer wipe()
	for i, buf := range buffers {
		if len(buf) != 1<<20 || cap(buf) != len(buf) || !isAligned(buf, 0) {
			t.Errorf("buffer %d: %d bytes at %p", i, len(buf), buf)
		}
		for j := range buf {
			buf[j] = byte(i)
		}
	}
	for i, buf := range buffers {
		if !bytes.Equal(buf, bytes.Repeat([]byte{byte(i)}, len(buf))) {
			t.Errorf("buffer %d overlaps another", i)
		}
	}
}

func TestCopyLeavesThePageCacheAlone(t *testing.T) {
	const size = 8 << 20
	src, dst := mustCreate(t, size), mustCreate(t, size)
	mustWrite(t, src, bytes.Repeat([]byte("data"), size/4), 0)
	evict(t, src)
	mustPass(t, src)
	if err := Copy(t.Context(), dst, src, Transform{}, nil); err != nil {
		t.Fatal(err)
	}
	for offset := int64(0); offset < size; offset += 1 << 20 {
		if src.cached(offset, 1<<20) || dst.cached(offset, 1<<20) {
			t.Errorf("offset %d of the source or the copy is in the page cache", offset)
		}
	}
}

// What is in the page cache is read from there, written back or not.
func TestCopyOfWhatIsCached(t *testing.T) {
	src := mustCreate(t, 2<<20)
	mustPass(t, src)
	mustWrite(t, src, bytes.Repeat([]byte("new."), 1<<18), 1<<20) // not on disk yet
	if !src.cached(1<<20, 1<<20) || src.cached(0, 2<<20) {
		t.Error("cached does not tell what is in the page cache")
	}
	checkCopy(t, src, mustRead(t, src, 0, 2<<20), filepath.Dir(src.DataPath()))
}

// Both ways to a file see what the other one wrote.
func TestDirectAndBufferedAgree(t *testing.T) {
	const size, least = 1<<20 + 512, directLeast
	disk := mustCreate(t, size)
	model := make([]byte, size)
	d := mustPass(t, disk)
	buf := mustMap(t, 1<<20)
	random, bytesOf := rand.New(rand.NewPCG(5, 6)), rand.NewChaCha8([32]byte{5})
	for range 100 {
		offset := random.Int64N(size/4096) * 4096
		p := buf[:min(size-offset, random.Int64N(4*least))]
		at := disk.WriteAt
		if random.IntN(2) == 0 {
			at = d.WriteAt
		}
		bytesOf.Read(p)
		if _, err := at(p, offset); err != nil {
			t.Fatal(err)
		}
		copy(model[offset:], p)
		p = buf[:min(size-offset, 4*least)]
		if _, err := d.ReadAt(p, offset); err != nil || !bytes.Equal(p, model[offset:offset+int64(len(p))]) {
			t.Fatalf("direct read at %d: %v, or it differs", offset, err)
		}
		if !bytes.Equal(mustRead(t, disk, offset, int64(len(p))), model[offset:offset+int64(len(p))]) {
			t.Fatalf("buffered read at %d differs", offset)
		}
	}
}

// Transfers that the file system refuses, or that end early, go on through the
// page cache; other errors are told.
func TestDirectTransfer(t *testing.T) {
	const size = directLeast + 512
	buf := mustMap(t, 2*size)
	errDisk := errors.New("disk broken")
	for _, c := range []struct {
		name        string
		p           []byte
		offset      int64
		err         error // of the direct transfer
		done        int   // by it
		want        int   // asked of the direct transfer
		buffered    int
		stays, fine bool // direct afterwards, without an error
	}{
		{"blocks and a tail", buf[:size], 4096, nil, directLeast, directLeast, 512, true, true},
		{"whole blocks", buf[:directLeast], 4096, nil, directLeast, directLeast, 0, true, true},
		{"refused", buf[:size], 0, &os.PathError{Err: unix.EINVAL}, 0, directLeast, size, false, true},
		{"refused on the way", buf[:size], 0, unix.EINVAL, 4096, directLeast, size - 4096, false, true},
		{"end of file", buf[:size], 0, io.EOF, 512, directLeast, size - 512, true, true},
		{"broken", buf[:size], 0, errDisk, 4096, directLeast, 0, true, false},
		{"unaligned memory", buf[1 : size+1], 0, nil, 0, 0, size, true, true},
		{"unaligned offset", buf[:size], 512, nil, 0, 0, size, true, true},
		{"small", buf[:directLeast-512], 0, nil, 0, 0, directLeast - 512, true, true},
	} {
		d, asked, buffered := &direct{}, 0, 0
		past := func(p []byte, _ int64) (int, error) {
			asked = len(p)
			return c.done, c.err
		}
		n, err := d.transfer(c.p, c.offset, past, func(p []byte, offset int64) (int, error) {
			buffered = len(p)
			if offset != c.offset+int64(c.done) {
				t.Errorf("%s: buffered at %d", c.name, offset)
			}
			return len(p), nil
		})
		if asked != c.want || buffered != c.buffered || d.refused.Load() == c.stays {
			t.Errorf("%s: %d direct, %d buffered, refused %t", c.name, asked, buffered, d.refused.Load())
		}
		if (err == nil) != c.fine || n != c.done+buffered {
			t.Errorf("%s: %d, %v", c.name, n, err)
		}
	}
}

func TestDirectReadOfFileThatShrank(t *testing.T) {
	disk := mustCreate(t, 1<<20)
	d := mustPass(t, disk)
	if err := os.Truncate(disk.DataPath(), 500_000); err != nil {
		t.Fatal(err)
	}
	for _, offset := range []int64{0, 128 * 4096} {
		_, err := d.ReadAt(mustMap(t, 512<<10), offset)
		if !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), "became shorter") {
			t.Errorf("at %d: %v", offset, err)
		}
	}
}

func TestDirectOutsideTheDisk(t *testing.T) {
	disk := mustCreate(t, 1<<20)
	d := mustPass(t, disk)
	buf := mustMap(t, 1<<20)
	_, read := d.ReadAt(buf, 4096)
	_, written := d.WriteAt(buf, 4096)
	for _, err := range []error{read, written, disk.Reserve(4096, 1<<20)} {
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("got %v", err)
		}
	}
	if info, err := os.Stat(disk.DataPath()); err != nil || info.Size() != 1<<20 {
		t.Errorf("%v, %v", info, err)
	}
}

// The lock of a disk survives the second way to it.
func TestDirectKeepsTheLock(t *testing.T) {
	disk := mustCreate(t, 1<<20)
	_, done := PastCache(disk)
	done()
	if f, err := Open(disk.DataPath(), Raw, ReadOnly); !errors.Is(err, ErrInUse) {
		t.Errorf("opened %v, %v", f, err)
	}
}

func TestAllocate(t *testing.T) {
	disk := mustCreate(t, 1<<20)
	if err := disk.Reserve(0, 512<<10); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(disk.DataPath())
	if err != nil || info.Size() != 1<<20 {
		t.Errorf("%v, %v", info, err)
	}
	if !bytes.Equal(mustRead(t, disk, 0, 1<<20), make([]byte, 1<<20)) {
		t.Error("what is allocated is not zero")
	}
}

// No copy leaves plaintext in memory.
func TestCopyLeavesNoTrace(t *testing.T) {
	needle, err := secret.Random(sha256.Size)
	if err != nil {
		t.Fatal(err)
	}
	defer needle.Destroy()
	src, dst := mustCreate(t, 8<<20), mustCreate(t, 8<<20)
	for offset := int64(0); offset < src.Size(); offset += 100_000 {
		mustWrite(t, src, needle.Bytes(), offset)
	}
	if err := Copy(t.Context(), dst, src, Transform{}, nil); err != nil {
		t.Fatal(err)
	}
	if traces := secrettest.Remaining(t, needle); len(traces) > 0 {
		t.Errorf("plaintext is left at %v", traces)
	}
}
