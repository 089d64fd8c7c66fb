package browse

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/diskfs/go-diskfs/partition/gpt"
)

// seeds are the small disks in testdata, which make.sh made.
var seeds = []string{"ext2", "ext4", "plain4", "fat12", "fat16", "fat32", "iso9660", "joliet", "rockridge"}

const seedFileSize = 5000 // bytes of /dir/file on each

var unpacked sync.Map

// seed returns the bytes of a small disk. They are shared: not to be changed.
func seed(t testing.TB, name string) []byte {
	t.Helper()
	if b, ok := unpacked.Load(name); ok {
		return b.([]byte)
	}
	f, err := os.Open(filepath.Join("testdata", name+".img.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	unpacked.Store(name, b)
	return b
}

// patched is a disk with some bytes changed: each patch has three bytes of
// offset, low byte first, and the new byte.
type patched struct {
	disk    io.ReaderAt
	patches []byte
}

func (p patched) ReadAt(b []byte, at int64) (int, error) {
	n, err := p.disk.ReadAt(b, at)
	for q := p.patches; len(q) >= 4; q = q[4:] {
		offset := int64(q[0]) | int64(q[1])<<8 | int64(q[2])<<16
		if offset >= at && offset < at+int64(n) {
			b[offset-at] = q[3]
		}
	}
	return n, err
}

// FuzzDisk changes bytes of small disks and looks at all that is there. It must
// end soon, take little memory, and never give a file of the wrong length.
func FuzzDisk(f *testing.F) {
	var disks [][]byte
	for _, name := range seeds {
		disks = append(disks, seed(f, name))
	}
	table := gptDisk(f, 1<<18, 512, &gpt.Partition{Index: 1, Start: 64, End: 191, Type: gpt.LinuxFilesystem})
	copy(table[64*512:], seed(f, "fat12")[:64<<10])
	logical := make([]byte, 1<<18)
	putMBR(logical, 0, mbrEntry{0x05, 10, 400})
	putMBR(logical, 10, mbrEntry{0x83, 50, 128}, mbrEntry{0x05, 20, 100})
	putMBR(logical, 30, mbrEntry{0x83, 50, 128})
	copy(logical[60*512:], seed(f, "fat12"))
	disks = append(disks, table, logical)
	for i := range disks {
		f.Add(uint8(i), []byte{})
		f.Add(uint8(i), []byte{0x38, 4, 0, 0x53, 0x80, 4, 0, 0xff})
	}
	f.Fuzz(func(t *testing.T, which uint8, patches []byte) {
		disk := disks[int(which)%len(disks)]
		if len(patches) > 256 {
			return
		}
		began := time.Now()
		look(t, testDisk{patched{bytes.NewReader(disk), patches}, int64(len(disk))})
		if d := time.Since(began); d > 20*time.Second {
			t.Errorf("took %v", d)
		}
	})
}

// look lists and reads what it finds.
func look(t *testing.T, d testDisk) {
	l, err := List(context.Background(), d, "")
	if err != nil {
		checkError(t, err)
		return
	}
	for _, e := range l.Entries {
		lookAt(t, d, "/"+e.Name, e, 3)
	}
	for _, p := range l.Partitions[:min(len(l.Partitions), 8)] {
		path := string(rune('0'+p.Number%10)) + ":/"
		lookAt(t, d, path, Entry{Type: Dir}, 3)
	}
}

func lookAt(t *testing.T, d testDisk, path string, e Entry, depth int) {
	if e.Type == Dir {
		l, err := List(context.Background(), d, path)
		if err != nil {
			checkError(t, err)
			return
		}
		for _, e := range l.Entries[:min(len(l.Entries), 16)] {
			if depth > 0 {
				lookAt(t, d, path+"/"+e.Name, e, depth-1)
			}
		}
		return
	}
	w := &countingWriter{limit: 1 << 22}
	if err := Cat(context.Background(), w, d, path); err != nil {
		checkError(t, err)
	} else if e.Type == File && w.n != e.Size {
		t.Errorf("%q: %d of %d bytes", path, w.n, e.Size)
	}
}

var errFull = errors.New("full")

type countingWriter struct{ n, limit int64 }

func (w *countingWriter) Write(b []byte) (int, error) {
	if w.n += int64(len(b)); w.n > w.limit {
		return 0, errFull
	}
	return len(b), nil
}

// checkError allows the errors that the package documents.
func checkError(t *testing.T, err error) {
	t.Helper()
	for _, known := range []error{ErrCorrupt, ErrUnsupported, ErrNoFilesystem, ErrPath, ErrNotDir, ErrIsDir, fs.ErrNotExist, errFull} {
		if errors.Is(err, known) {
			return
		}
	}
	t.Errorf("undocumented error: %v", err)
}

func FuzzPath(f *testing.F) {
	for _, path := range []string{"", "/", "1:/", "2:/a/b/", "/a:b", "01:/x", "/../x", "/a//b"} {
		f.Add(path)
	}
	f.Fuzz(func(t *testing.T, path string) {
		loc, err := parsePath(path)
		if err != nil {
			checkError(t, err)
			return
		}
		for _, part := range loc.parts {
			if part == "" || part == "." || part == ".." || bytes.ContainsAny([]byte(part), "/\x00") {
				t.Errorf("%q has part %q", path, part)
			}
		}
	})
}
