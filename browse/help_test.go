package browse

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmcrypt/vmcrypt/image"
)

// testDisk is a read-only disk over anything with a size.
type testDisk struct {
	io.ReaderAt
	size int64
}

func (d testDisk) Size() int64                                { return d.size }
func (testDisk) WriteAt([]byte, int64) (int, error)           { return 0, errors.New("browse wrote") }
func (testDisk) Discard(int64, int64) error                   { return errors.New("browse discarded") }
func (testDisk) Extents(int64, int64) ([]image.Extent, error) { return nil, errors.ErrUnsupported }
func (testDisk) Flush() error                                 { return nil }
func (testDisk) Close() error                                 { return nil }

var _ image.Disk = testDisk{}

func memDisk(b []byte) testDisk { return testDisk{bytes.NewReader(b), int64(len(b))} }

// fileDisk opens an image file for the length of the test.
func fileDisk(t testing.TB, path string) testDisk {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return testDisk{f, st.Size()}
}

// command runs a tool and returns what it printed.
func command(t testing.TB, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "MTOOLS_SKIP_CHECK=1", "LC_ALL=C.UTF-8")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return out
}

// cat reads a file of a disk.
func cat(t testing.TB, d image.Disk, path string) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Cat(context.Background(), &b, d, path); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// list lists a folder by name.
func list(t testing.TB, d image.Disk, path string) map[string]Entry {
	t.Helper()
	l, err := List(context.Background(), d, path)
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]Entry{}
	for _, e := range l.Entries {
		if _, twice := m[e.Name]; twice {
			t.Errorf("%s lists %q twice", path, e.Name)
		}
		m[e.Name] = e
	}
	return m
}

// compareTree checks that the folder at root on the disk is the folder dir of
// the host: the same names, types and link targets, and the same bytes.
func compareTree(t *testing.T, d image.Disk, root, dir string, ignore ...string) (files int) {
	t.Helper()
	want, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	got := list(t, d, root)
	for _, name := range ignore {
		delete(got, name)
	}
	for _, w := range want {
		e, ok := got[w.Name()]
		delete(got, w.Name())
		at, host := strings.TrimSuffix(root, "/")+"/"+w.Name(), filepath.Join(dir, w.Name())
		switch {
		case !ok:
			t.Errorf("%s is not listed", at)
		case w.IsDir() != (e.Type == Dir) || (w.Type() == fs.ModeSymlink) != (e.Type == Symlink):
			t.Errorf("%s is listed as %s", at, e.Type)
		case e.Type == Dir:
			files += compareTree(t, d, at, host)
		case e.Type == Symlink:
			if target, _ := os.Readlink(host); target != e.Target {
				t.Errorf("%s points to %q, not to %q", at, e.Target, target)
			}
		case e.Type == File:
			compareFile(t, d, e, at, host)
			files++
		}
	}
	for name := range got {
		t.Errorf("%s lists %q, which is not there", root, name)
	}
	return files
}

func compareFile(t *testing.T, d image.Disk, e Entry, at, host string) {
	t.Helper()
	f, err := os.Open(host)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want, got := sha256.New(), sha256.New()
	n, err := io.Copy(want, f)
	if err != nil {
		t.Fatal(err)
	}
	if err := Cat(context.Background(), got, d, at); err != nil {
		t.Errorf("cat: %v", err)
	} else if !bytes.Equal(want.Sum(nil), got.Sum(nil)) {
		t.Errorf("%s reads wrong", at)
	}
	if e.Size != n {
		t.Errorf("%s is listed with %d bytes, not %d", at, e.Size, n)
	}
}

// makeTree fills a folder with files of awkward sizes, nested folders and, where
// posix is set, sparse files, symbolic links and names that FAT does not take.
func makeTree(t testing.TB, dir string, posix bool) {
	t.Helper()
	random := rand.New(rand.NewPCG(1, 2))
	put := func(name string, size int) {
		b := make([]byte, size)
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		name = filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, b, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	for _, size := range []int{0, 1, 511, 512, 513, 1023, 1024, 4095, 4096, 4097, 65537, 1 << 20, 3<<20 + 7} {
		put(fmt.Sprintf("size-%d.bin", size), size)
	}
	for i := range 300 {
		put(fmt.Sprintf("many/a rather long name, number %04d.text", i), i)
	}
	put("a/b/c/d/e/f/g/h/i/j/deep", 100)
	put(".hidden", 10)
	put("UPPER.TXT", 11)
	put("lower.txt", 12)
	put("Größe 日本.txt", 13)
	put(strings.Repeat("n", 200)+".long", 14)
	if posix {
		makePosix(t, dir, put)
	}
}

func makePosix(t testing.TB, dir string, put func(string, int)) {
	put(strings.Repeat("m", 255), 15)
	put("tab\tnewline\nbell\a", 16)
	put("not-\xff-utf8", 17)
	put(`back\slash;1`, 18)
	put("trailing.", 19)
	put("emoji 😀", 20)
	for i, target := range []string{"lower.txt", "/a/b/c", "../../..", strings.Repeat("x", 59), strings.Repeat("y", 60), strings.Repeat("z/", 500) + "z"} {
		if err := os.Symlink(target, filepath.Join(dir, fmt.Sprintf("link%d", i))); err != nil {
			t.Fatal(err)
		}
	}
	for name, at := range map[string][]int64{
		"sparse-all": {}, "sparse-start": {1 << 20}, "sparse-end": {0}, "sparse-mid": {0, 3 << 20},
		"sparse-many": {5 << 20, 9<<20 + 4096, 11<<20 + 8192, 13 << 20, 15<<20 + 4096, 16 << 20, 17 << 20, 18 << 20},
	} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		for _, off := range at {
			if _, err := f.WriteAt(bytes.Repeat([]byte(name), 100), off); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(f.Truncate(20<<20+123), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
}
