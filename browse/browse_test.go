package browse

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs/partition/gpt"

	"github.com/vmcrypt/vmcrypt/image"
	"github.com/vmcrypt/vmcrypt/testimages"
)

// TestSampleDisks finds in every sample disk what its generator put there.
func TestSampleDisks(t *testing.T) {
	for name, generate := range map[string]func(string, int64) ([]testimages.Volume, error){
		"gpt": testimages.GPT, "mbr": testimages.MBR, "iso9660": testimages.ISO,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			img := filepath.Join(t.TempDir(), "disk.img")
			volumes, err := generate(img, 1)
			if err != nil {
				t.Fatal(err)
			}
			d := fileDisk(t, img)
			l, err := List(context.Background(), d, "")
			if err != nil {
				t.Fatal(err)
			}
			if l.Table != name && l.Filesystem != name {
				t.Errorf("listed as %+v", l)
			}
			for _, v := range volumes {
				checkVolume(t, d, l, v)
			}
		})
	}
}

func checkVolume(t *testing.T, d image.Disk, l *Listing, v testimages.Volume) {
	prefix := ""
	if v.Partition > 0 {
		prefix = fmt.Sprintf("%d:", v.Partition)
		if p := l.Partitions[v.Partition-1]; p.Start != v.Offset || p.Size != v.Size || p.Filesystem != v.FileSystem {
			t.Errorf("partition %+v is not %s of %d bytes at %d", p, v.FileSystem, v.Size, v.Offset)
		}
	}
	for _, f := range v.Files {
		e := list(t, d, prefix+path.Dir(f.Path))[path.Base(f.Path)]
		sum := sha256.Sum256(cat(t, d, prefix+f.Path))
		if e.Type != File || e.Size != f.Size || hex.EncodeToString(sum[:]) != f.SHA256 {
			t.Errorf("%s%s: listed as %+v, or its bytes are wrong", prefix, f.Path, e)
		}
	}
}

func TestErrors(t *testing.T) {
	img := filepath.Join(t.TempDir(), "gpt.img")
	volumes, err := testimages.GPT(img, 1)
	if err != nil {
		t.Fatal(err)
	}
	d, v := fileDisk(t, img), volumes[0]
	file := fmt.Sprintf("%d:%s", v.Partition, v.Files[0].Path)
	for _, c := range []struct {
		path string
		want error
	}{
		{"", ErrPath},
		{"/", ErrPath}, // which partition?
		{"1:/..", ErrPath},
		{"1:/", ErrIsDir},
		{"9:/", fs.ErrNotExist},
		{"1:/no such file", fs.ErrNotExist},
		{file + "/below", ErrNotDir},
	} {
		if err := Cat(context.Background(), io.Discard, d, c.path); !errors.Is(err, c.want) {
			t.Errorf("cat %q: %v, not %v", c.path, err, c.want)
		}
	}
	l, err := List(context.Background(), d, file)
	if err != nil || len(l.Entries) != 1 || l.Entries[0].Name != path.Base(file) {
		t.Errorf("a file lists as %+v, %v", l, err)
	}
	if _, err := List(context.Background(), memDisk(make([]byte, 1<<20)), ""); !errors.Is(err, ErrNoFilesystem) {
		t.Errorf("a blank disk: %v", err)
	}
	if _, err := List(context.Background(), memDisk(nil), ""); !errors.Is(err, ErrNoFilesystem) {
		t.Errorf("an empty disk: %v", err)
	}
	if _, err := List(context.Background(), memDisk([]byte("XFSB"+strings.Repeat("\x00", 1<<17))), ""); !errors.Is(err, ErrNoFilesystem) || !strings.Contains(err.Error(), "xfs") {
		t.Errorf("xfs: %v", err)
	}
}

func TestContextAndReadErrorsEndIt(t *testing.T) {
	img := seed(t, "ext4")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := List(ctx, memDisk(img), "/"); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	broken := errors.New("broken")
	for n := range 40 {
		d := testDisk{&failingReader{bytes.NewReader(img), n, broken}, int64(len(img))}
		var out bytes.Buffer
		err := Cat(context.Background(), &out, d, "/dir/file")
		if err == nil && out.Len() != seedFileSize {
			t.Errorf("read error %d: cut short without an error", n)
		}
	}
}

// failingReader fails after some reads.
type failingReader struct {
	io.ReaderAt
	left int
	err  error
}

func (r *failingReader) ReadAt(b []byte, at int64) (int, error) {
	if r.left--; r.left < 0 {
		return 0, r.err
	}
	return r.ReaderAt.ReadAt(b, at)
}

// memStorage lets go-diskfs write into memory.
type memStorage struct {
	diskFile
	b []byte
}

func (m memStorage) WriteAt(b []byte, at int64) (int, error) { return copy(m.b[at:], b), nil }

func gptDisk(t testing.TB, size, sector int, parts ...*gpt.Partition) []byte {
	t.Helper()
	b := make([]byte, size)
	table := &gpt.Table{Partitions: parts, LogicalSectorSize: sector, PhysicalSectorSize: sector, ProtectiveMBR: true}
	if err := table.Write(memStorage{b: b}, int64(size)); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestGPT(t *testing.T) {
	for _, sector := range []int{512, 4096} {
		start := uint64(128 * 512 / sector)
		b := gptDisk(t, 1<<20, sector, &gpt.Partition{Index: 3, Start: start, End: start + 15, Type: gpt.LinuxFilesystem, Name: "root"})
		img := seed(t, "fat12")
		copy(b[128*512:], img)
		for _, c := range []struct {
			name   string
			damage func([]byte)
			want   bool
		}{
			{"intact", func([]byte) {}, true},
			{"primary damaged", func(b []byte) { b[sector+20] ^= 1 }, true},
			{"both damaged", func(b []byte) { b[sector+56] ^= 1; b[len(b)-sector+56] ^= 1 }, false},
			{"entries damaged", func(b []byte) { b[2*sector] ^= 1; b[len(b)-sector-128*128] ^= 1 }, false},
			{"4 billion entries", func(b []byte) { binary.LittleEndian.PutUint32(b[sector+80:], 1<<32-1) }, false},
		} {
			disk := bytes.Clone(b)
			c.damage(disk)
			l, err := List(context.Background(), memDisk(disk), "")
			if (err == nil) != c.want {
				t.Errorf("%d %s: %+v, %v", sector, c.name, l, err)
			}
			want := Partition{3, 65536, int64(16 * sector), string(gpt.LinuxFilesystem), "root", "fat12"}
			if c.want && (len(l.Partitions) != 1 || l.Partitions[0] != want) {
				t.Errorf("%d %s: %+v", sector, c.name, l)
			}
		}
	}
}

// TestRemnantsDoNotCount: a GPT without a protective MBR and an ext4 superblock
// beside a partition table are left over from earlier use of the disk.
func TestRemnantsDoNotCount(t *testing.T) {
	b := gptDisk(t, 1<<20, 512, &gpt.Partition{Index: 1, Start: 64, End: 99, Type: gpt.LinuxFilesystem})
	putMBR(b, 0, mbrEntry{0x83, 100, 200})
	copy(b[1024:], seed(t, "ext4")[1024:])
	l, err := List(context.Background(), memDisk(b), "")
	if err != nil || l.Table != "mbr" || l.Filesystem != "" || l.Partitions[0].Start != 51200 {
		t.Errorf("%+v, %v", l, err)
	}
}

type mbrEntry struct {
	kind        byte
	start, size uint32
}

func putMBR(disk []byte, sector int, entries ...mbrEntry) {
	b := disk[512*sector:]
	for i, e := range entries {
		at := b[446+16*i:][:16]
		clear(at)
		at[4] = e.kind
		binary.LittleEndian.PutUint32(at[8:], e.start)
		binary.LittleEndian.PutUint32(at[12:], e.size)
	}
	b[510], b[511] = 0x55, 0xaa
}

func TestMBRWithLogicalPartitions(t *testing.T) {
	b := make([]byte, 1<<20)
	putMBR(b, 0, mbrEntry{0x0c, 63, 10}, mbrEntry{}, mbrEntry{0x05, 1000, 1000})
	putMBR(b, 1000, mbrEntry{0x83, 8, 200}, mbrEntry{0x05, 300, 300})
	putMBR(b, 1300, mbrEntry{0x82, 8, 100}, mbrEntry{0x05, 0, 300}) // a loop: it ends here
	copy(b[1008*512:], seed(t, "fat12"))
	l, err := List(context.Background(), memDisk(b), "")
	if err != nil {
		t.Fatal(err)
	}
	got := ""
	for _, p := range l.Partitions {
		got += fmt.Sprintf("%d %s %d+%d %s\n", p.Number, p.Type, p.Start/512, p.Size/512, p.Filesystem)
	}
	want := "1 0x0c 63+10 \n3 0x05 1000+1000 \n5 0x83 1008+200 fat12\n6 0x82 1308+100 \n"
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if len(cat(t, memDisk(b), "5:/dir/file")) != seedFileSize {
		t.Error("a logical partition reads wrong")
	}
}

func TestOnlyPartitionNeedsNoNumber(t *testing.T) {
	b := make([]byte, 1<<20)
	putMBR(b, 0, mbrEntry{0x83, 100, 500})
	copy(b[51200:], seed(t, "fat12"))
	if len(cat(t, memDisk(b), "/dir/file")) != seedFileSize {
		t.Error("reads wrong")
	}
}

func TestSeeds(t *testing.T) {
	for _, name := range seeds {
		d := memDisk(seed(t, name))
		got := cat(t, d, "/dir/file")
		if len(got) != seedFileSize || strings.Trim(string(got), "0123456789\n") != "" {
			t.Errorf("%s: /dir/file reads wrong", name)
		}
		dir := "dir"
		if name == "iso9660" {
			dir = "DIR"
		}
		if e := list(t, d, "/")[dir]; e.Type != Dir || e.ModTime.IsZero() {
			t.Errorf("%s: lists %+v", name, e)
		}
	}
}

// TestISOFileOfTwoParts: a file of more than 4 GiB has several records. This one
// is made of two small files by giving them one name.
func TestISOFileOfTwoParts(t *testing.T) {
	b := bytes.Clone(seed(t, "parts"))
	first := bytes.Index(b, []byte("\x05AA.;1")) - 32
	second := bytes.Index(b, []byte("\x05BB.;1")) - 32
	if first < 0 || second < 0 {
		t.Fatal("the records are not there")
	}
	b[first+25] |= flagContinued
	copy(b[second+33:], "AA.;1")
	got := string(cat(t, memDisk(b), "/AA"))
	if want := strings.Repeat("a", 2048) + "tail"; got != want {
		t.Errorf("%d bytes, not %d, or wrong ones", len(got), len(want))
	}
	if l := list(t, memDisk(b), "/"); len(l) != 1 || l["AA"].Size != 2052 {
		t.Errorf("lists %+v", l)
	}
	b[second+25] |= flagContinued
	if _, err := List(context.Background(), memDisk(b), "/"); !errors.Is(err, ErrCorrupt) {
		t.Errorf("without an end: %v", err)
	}
}

// TestFATNames: a long name counts only with the short one it belongs to, and
// may hold characters of two units.
func TestFATNames(t *testing.T) {
	b := bytes.Clone(seed(t, "fat12"))
	short := bytes.Index(b, []byte("DIR        \x10"))
	long := func(sum byte, units ...uint16) []byte {
		e := make([]byte, 32)
		e[0], e[11], e[13] = 0x41, attrLongName, sum
		for i, at := range []int{1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30} {
			u := uint16(0xffff)
			if i < len(units) {
				u = units[i]
			}
			binary.LittleEndian.PutUint16(e[at:], u)
		}
		return e
	}
	entry := bytes.Clone(b[short:][:32])
	sum := shortChecksum(entry[:11])
	for _, c := range []struct {
		long []byte
		want string
	}{
		{long(sum, 0xd83d, 0xde00, 'x', 0), "😀x"},
		{long(sum+1, 'x', 0), "dir"}, // of another file that is gone
	} {
		disk := bytes.Clone(b)
		copy(disk[short:], append(bytes.Clone(c.long), entry...))
		got := list(t, memDisk(disk), "/")
		if _, ok := got[c.want]; !ok || len(got) > 1 {
			t.Errorf("%q: listed as %v", c.want, got)
		}
	}
}

// TestFATLoopsAndShortChains: a chain of clusters that is too short for its file,
// or runs in a circle, is an error.
func TestFATLoopsAndShortChains(t *testing.T) {
	for name, want := range map[string]uint16{"short": 0xffff, "circle": 3, "outside": 0x7fff, "free": 0} {
		b := bytes.Clone(seed(t, "fat16"))
		table := 512 * int(binary.LittleEndian.Uint16(b[14:]))
		at := bytes.Index(b, []byte("FILE       \x20"))
		first := int(binary.LittleEndian.Uint16(b[at+26:]))
		binary.LittleEndian.PutUint16(b[table+2*first:], want)
		if name == "circle" {
			binary.LittleEndian.PutUint16(b[table+2*first:], uint16(first))
			binary.LittleEndian.PutUint32(b[at+28:], 1<<32-1)
		}
		if err := Cat(context.Background(), io.Discard, memDisk(b), "/dir/file"); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestDamageIsNeverAWrongAnswer changes bytes all over an ext4 filesystem, the
// content of the file left out: its checksums make that an error, or it does not
// matter.
func TestDamageIsNeverAWrongAnswer(t *testing.T) {
	img := seed(t, "ext4")
	want := cat(t, memDisk(img), "/dir/file")
	content, failed := map[int]bool{}, 0
	for i := 0; i < len(want); i += 1024 {
		content[bytes.Index(img, want[i:min(i+1024, len(want))])/1024] = true
	}
	for at := 0; at < len(img); at += 3 {
		if content[at/1024] {
			continue
		}
		patch := []byte{byte(at), byte(at >> 8), byte(at >> 16), img[at] ^ 0x11}
		var got bytes.Buffer
		err := Cat(context.Background(), &got, testDisk{patched{bytes.NewReader(img), patch}, int64(len(img))}, "/dir/file")
		if err == nil && !bytes.Equal(got.Bytes(), want) {
			t.Errorf("byte %d changed: a wrong answer", at)
		}
		if err != nil {
			failed++
		}
	}
	if failed < 100 {
		t.Errorf("only %d changes were noticed", failed)
	}
}

// TestLinksStayInside: a link to /dir/file is one inside the disk, and no number
// of .. leads out of it.
func TestLinksStayInside(t *testing.T) {
	for _, name := range []string{"ext4", "rockridge"} {
		d := memDisk(seed(t, name))
		for _, link := range []string{"/absolute", "/dir/relative", "/outside"} {
			if len(cat(t, d, link)) != seedFileSize {
				t.Errorf("%s: %s reads wrong", name, link)
			}
		}
		for link, want := range map[string]error{"/loop": ErrCorrupt, "/dangling": fs.ErrNotExist} {
			if err := Cat(context.Background(), io.Discard, d, link); !errors.Is(err, want) {
				t.Errorf("%s: %s: %v", name, link, err)
			}
		}
	}
}

func TestPath(t *testing.T) {
	for _, c := range []struct {
		path string
		want string
	}{
		{"/", "0 []"}, {"/a/b", "0 [a b]"}, {"/a/", "0 [a]"}, {"12:/a:b", "12 [a:b]"}, {"/a:b", "0 [a:b]"},
		{"1:/", "1 []"}, {"0:/", ""}, {"01:/", ""}, {"+1:/", ""}, {"-1:/", ""}, {"1:", ""}, {"1:a", ""}, {":/", ""},
		{"a", ""}, {"", ""}, {"//", ""}, {"/a//b", ""}, {"/./a", ""}, {"/a/..", ""}, {"/\x00", ""}, {"10000:/", ""},
		{"/" + strings.Repeat("a", 5000), ""}, {"99999999999999999999:/", ""},
	} {
		loc, err := parsePath(c.path)
		got := fmt.Sprint(loc.partition, " ", loc.parts)
		if (err == nil) != (c.want != "") || err == nil && got != c.want {
			t.Errorf("%.20q: %s, %v", c.path, got, err)
		}
		if err != nil && !errors.Is(err, ErrPath) {
			t.Errorf("%.20q: %v", c.path, err)
		}
	}
}

func TestPrintable(t *testing.T) {
	for name, want := range map[string]string{
		"Größe 日本": "Größe 日本", "a\x1b[31m": `"a\x1b[31m"`, "\xff": `"\xff"`, "": "", "a\u202eb": `"a\u202eb"`,
	} {
		if got := Printable(name); got != want {
			t.Errorf("%q: %s", name, got)
		}
	}
}

func TestJSON(t *testing.T) {
	l, err := List(context.Background(), memDisk(seed(t, "iso9660")), "/DIR")
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(l)
	if err != nil || !strings.HasPrefix(string(b), `{"filesystem":"iso9660","entries":[{"name":"FILE","type":"file","size":5000,"modTime":"20`) {
		t.Errorf("%s, %v", b, err)
	}
}
