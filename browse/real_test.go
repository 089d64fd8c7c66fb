package browse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmcrypt/vmcrypt/internal/testtool"
)

// mkext4 makes an ext4 image of a folder.
func mkext4(t testing.TB, tree, size, args string) string {
	t.Helper()
	img := filepath.Join(t.TempDir(), "disk.img")
	command(t, testtool.Need(t, "mke2fs"), append(strings.Fields(args), "-q", "-F", "-d", tree, img, size)...)
	return img
}

func TestExt4MadeByMke2fs(t *testing.T) {
	testtool.Need(t, "mke2fs")
	tree := t.TempDir()
	makeTree(t, tree, true)
	for _, args := range []string{
		"-t ext4",
		"-t ext4 -b 1024",
		"-t ext4 -b 2048 -I 128",
		"-t ext4 -O ^metadata_csum",
		"-t ext4 -O ^metadata_csum,^64bit,uninit_bg",
		"-t ext4 -O ^64bit -b 1024",
		"-t ext4 -O metadata_csum_seed -U random",
		"-t ext4 -O meta_bg,^resize_inode -b 1024 -g 1024 -N 512",
		"-t ext4 -O meta_bg,^resize_inode,sparse_super2 -b 1024 -g 1024 -N 512",
		"-t ext4 -O ^flex_bg,^sparse_super,^resize_inode",
		"-t ext4 -O bigalloc -C 16384",
		"-t ext4 -O bigalloc -b 1024 -C 8192",
		"-t ext4 -O large_dir,ea_inode,mmp,quota",
		"-t ext4 -O casefold -E encoding=utf8",
		"-t ext4 -b 65536",
		"-t ext3",
		"-t ext2 -b 1024",
		"-t ext2 -r 0",
	} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			img := mkext4(t, tree, "64M", args)
			if n := compareTree(t, fileDisk(t, img), "/", tree, "lost+found"); n < 300 {
				t.Errorf("only %d files compared", n)
			}
		})
	}
}

func TestExt4HashedFolder(t *testing.T) {
	e2fsck := testtool.Need(t, "e2fsck")
	tree := t.TempDir()
	n := 1500 // mke2fs takes time that grows with the square
	if os.Getenv("VMCRYPT_TEST_LONG") == "1" {
		n = 5000
	}
	for i := range n {
		name := filepath.Join(tree, fmt.Sprintf("file-%05d-%s", i, strings.Repeat("x", i%100)))
		if err := os.WriteFile(name, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range []string{"-t ext4 -b 1024 -N 8000", "-t ext4 -N 8000 -O ^metadata_csum"} {
		img := mkext4(t, tree, "32M", args)
		command(t, e2fsck, "-fyD", img) // builds the hash tree
		d := fileDisk(t, img)
		got := list(t, d, "/")
		if len(got) != n+1 {
			t.Errorf("%s: %d names, not %d", args, len(got), n+1)
		}
		for i := range n {
			name := fmt.Sprintf("file-%05d-%s", i, strings.Repeat("x", i%100))
			if got[name].Type != File {
				t.Errorf("%s: %s is missing", args, name)
			}
			if i%500 == 0 && string(cat(t, d, "/"+name)) != filepath.Join(tree, name) {
				t.Errorf("%s: %s reads wrong", args, name)
			}
		}
	}
}

// debugfs runs commands on an image.
func debugfs(t *testing.T, img string, commands ...string) {
	t.Helper()
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte(strings.Join(commands, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	command(t, testtool.Need(t, "debugfs"), "-w", "-f", script, img)
}

func TestExt4FragmentedFile(t *testing.T) {
	testtool.Need(t, "debugfs")
	tree := t.TempDir()
	for i := range 1200 {
		if err := os.WriteFile(filepath.Join(tree, fmt.Sprint(i)), make([]byte, 4096), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	big := filepath.Join(t.TempDir(), "big")
	content := make([]byte, 2<<20+77)
	for i := range content {
		content[i] = byte(i*7 + i>>10)
	}
	if err := os.WriteFile(big, content, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range []string{"-t ext4 -b 1024", "-t ext2 -b 1024"} {
		img := mkext4(t, tree, "6M", args+" -N 1500 -m 0 -O ^has_journal")
		var script []string
		for i := 0; i < 1200; i += 2 {
			script = append(script, fmt.Sprintf("rm %d", i))
		}
		debugfs(t, img, append(script, "write "+big+" big")...)
		if out := command(t, testtool.Need(t, "debugfs"), "-R", "blocks big", img); bytes.Count(out, []byte(" ")) < 2000 {
			t.Fatalf("%s: debugfs did not write the file: %s", args, out)
		}
		if !bytes.Equal(cat(t, fileDisk(t, img), "/big"), content) {
			t.Errorf("%s: a fragmented file reads wrong", args)
		}
	}
}

func TestExt4UnwrittenExtents(t *testing.T) {
	testtool.Need(t, "debugfs")
	tree := t.TempDir()
	part := bytes.Repeat([]byte("data"), 4096)
	if err := os.WriteFile(filepath.Join(tree, "f"), part, 0o600); err != nil {
		t.Fatal(err)
	}
	img := mkext4(t, tree, "8M", "-t ext4")
	debugfs(t, img, "fallocate f 10 20", "set_inode_field f size 102400")
	want := append(bytes.Clone(part), make([]byte, 102400-len(part))...)
	if !bytes.Equal(cat(t, fileDisk(t, img), "/f"), want) {
		t.Error("unwritten extents do not read as zeros")
	}
}

func TestExt4RefusesWhatItCannotReadRight(t *testing.T) {
	testtool.Need(t, "debugfs")
	tree := t.TempDir()
	if err := os.WriteFile(filepath.Join(tree, "f"), []byte("small"), 0o600); err != nil {
		t.Fatal(err)
	}
	inline := mkext4(t, tree, "8M", "-t ext4 -O inline_data")
	dirty := mkext4(t, tree, "8M", "-t ext4")
	debugfs(t, dirty, "feature needs_recovery")
	encrypted := mkext4(t, tree, "8M", "-t ext4 -O encrypt")
	debugfs(t, encrypted, "set_inode_field f flags 0x80800")
	for name, img := range map[string]string{"inline": inline, "dirty": dirty, "encrypted": encrypted} {
		var out bytes.Buffer
		err := Cat(context.Background(), &out, fileDisk(t, img), "/f")
		if !errors.Is(err, ErrUnsupported) || out.Len() > 0 {
			t.Errorf("%s: %v, and %d bytes written", name, err, out.Len())
		}
	}
}

// TestExt4OfUsrShare lists every folder of a tree of real files and reads every
// fiftieth file.
func TestExt4OfUsrShare(t *testing.T) {
	testtool.Long(t)
	const tree = "/usr/share"
	d := fileDisk(t, mkext4(t, tree, "2G", "-t ext4"))
	files, read := 0, 0
	err := filepath.WalkDir(tree, func(host string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return err
		}
		at := "/" + strings.TrimPrefix(strings.TrimPrefix(host, tree), "/")
		want, err := os.ReadDir(host)
		got := list(t, d, at)
		delete(got, "lost+found")
		if len(got) != len(want) {
			t.Errorf("%s: %d names, not %d", at, len(got), len(want))
		}
		for _, w := range want {
			e := got[w.Name()]
			if files++; w.Type().IsRegular() && files%50 == 0 {
				compareFile(t, d, e, path.Join(at, w.Name()), filepath.Join(host, w.Name()))
				read++
			}
		}
		return err
	})
	if err != nil || read < 20 {
		t.Errorf("%d of %d files read: %v", read, files, err)
	}
	t.Logf("%d of %d files read", read, files)
}

// mkfat makes a FAT image of a folder.
func mkfat(t testing.TB, tree, size, args string) string {
	t.Helper()
	mkfs, mcopy := testtool.Need(t, "mkfs.fat"), testtool.Need(t, "mcopy")
	img := filepath.Join(t.TempDir(), "disk.img")
	command(t, "truncate", "-s", size, img)
	command(t, mkfs, append(strings.Fields(args), img)...)
	names, err := filepath.Glob(filepath.Join(tree, "*"))
	if err != nil {
		t.Fatal(err)
	}
	command(t, mcopy, append([]string{"-s", "-i", img}, append(names, "::")...)...)
	return img
}

func TestFATMadeByMkfs(t *testing.T) {
	testtool.Need(t, "mcopy")
	tree := t.TempDir()
	makeTree(t, tree, false)
	for _, c := range []struct{ size, args, kind string }{
		{"8M", "-F 12", "fat12"},
		{"32M", "-F 16 -r 1024", "fat16"},
		{"32M", "-F 16 -s 1 -f 1", "fat16"},
		{"32M", "-F 16 -S 2048", "fat16"},
		{"40M", "-F 32", "fat32"},
		{"40M", "-F 32 -f 1 -s 1", "fat32"},
		{"300M", "-F 32 -S 4096 -s 1", "fat32"},
		{"300M", "-F 32 -n LABEL", "fat32"},
	} {
		t.Run(c.args, func(t *testing.T) {
			t.Parallel()
			d := fileDisk(t, mkfat(t, tree, c.size, c.args))
			if n := compareTree(t, d, "/", tree); n < 300 {
				t.Errorf("only %d files compared", n)
			}
			l, err := List(context.Background(), d, "")
			if err != nil || l.Filesystem != c.kind {
				t.Errorf("listed as %v, %v", l, err)
			}
			if !bytes.Equal(cat(t, d, "/LOWER.TXT"), cat(t, d, "/lower.txt")) {
				t.Error("case matters")
			}
		})
	}
}

func TestFATFragmentedFile(t *testing.T) {
	mcopy, mdel := testtool.Need(t, "mcopy"), "mdel"
	tree := t.TempDir()
	for i := range 200 {
		if err := os.WriteFile(filepath.Join(tree, fmt.Sprint(i)), make([]byte, 4096), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range []string{"-F 12 -s 1", "-F 16 -s 1", "-F 32 -s 1"} {
		size := map[string]string{"-F 12 -s 1": "2M", "-F 16 -s 1": "3M", "-F 32 -s 1": "40M"}[args]
		img := mkfat(t, tree, size, args)
		for i := 0; i < 200; i += 2 {
			command(t, mdel, "-i", img, fmt.Sprintf("::%d", i))
		}
		big := filepath.Join(t.TempDir(), "big")
		content := bytes.Repeat([]byte("0123456789abcde"), 40000)
		if err := os.WriteFile(big, content, 0o600); err != nil {
			t.Fatal(err)
		}
		command(t, mcopy, "-i", img, big, "::")
		if !bytes.Equal(cat(t, fileDisk(t, img), "/big"), content) {
			t.Errorf("%s: a fragmented file reads wrong", args)
		}
	}
}

func TestISOMadeByXorriso(t *testing.T) {
	xorriso := testtool.Need(t, "xorriso")
	tree := t.TempDir()
	makeTree(t, tree, true)
	for _, args := range []string{
		"",
		"-joliet on",
		"-compliance deep_paths_off:long_paths_off -rr_reloc_dir moved",
	} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			img := filepath.Join(t.TempDir(), "disk.iso")
			all := append(strings.Fields(args), "-outdev", img, "-map", tree, "/", "-commit")
			command(t, xorriso, all...)
			if n := compareTree(t, fileDisk(t, img), "/", tree, "moved"); n < 300 {
				t.Errorf("only %d files compared", n)
			}
		})
	}
}

// TestISOOfFewerExtensions reads the same tree without Rock Ridge: by the names
// of Joliet, and by those of ISO 9660, which are shortened but keep their order.
func TestISOOfFewerExtensions(t *testing.T) {
	xorriso := testtool.Need(t, "xorriso")
	tree := t.TempDir()
	for i, name := range []string{"ABC.TXT", "DEF", "a long name of mine.text", "Größe.日本", ".hidden"} {
		if err := os.WriteFile(filepath.Join(tree, name), make([]byte, 3000*i), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	joliet, plain := filepath.Join(t.TempDir(), "joliet.iso"), filepath.Join(t.TempDir(), "plain.iso")
	command(t, xorriso, "-rockridge", "off", "-joliet", "on", "-outdev", joliet, "-map", tree, "/", "-commit")
	command(t, xorriso, "-rockridge", "off", "-outdev", plain, "-map", tree, "/", "-commit")
	if n := compareTree(t, fileDisk(t, joliet), "/", tree); n != 5 {
		t.Errorf("%d files compared, not 5", n)
	}
	got := list(t, fileDisk(t, plain), "/")
	if len(got) != 5 || got["ABC.TXT"].Type != File || got["DEF"].Size != 3000 {
		t.Errorf("plain: %+v", got)
	}
	if len(cat(t, fileDisk(t, plain), "/abc.txt")) != 0 || len(cat(t, fileDisk(t, plain), "/def")) != 3000 {
		t.Error("plain names read wrong")
	}
}

func TestISORefusesCompressedFiles(t *testing.T) {
	xorriso := testtool.Need(t, "xorriso")
	tree := t.TempDir()
	if err := os.WriteFile(filepath.Join(tree, "f"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	img := filepath.Join(t.TempDir(), "disk.iso")
	command(t, xorriso, "-outdev", img, "-map", tree, "/", "-zisofs", "by_magic=off", "-set_filter_r", "--zisofs", "/", "--", "-commit")
	var out bytes.Buffer
	if err := Cat(context.Background(), &out, fileDisk(t, img), "/f"); !errors.Is(err, ErrUnsupported) || out.Len() > 0 {
		t.Errorf("%v, and %d bytes written", err, out.Len())
	}
}

func TestRealImages(t *testing.T) {
	t.Run("cdrom", func(t *testing.T) {
		img := testtool.NeedFile(t, "/usr/lib/grub-rescue/grub-rescue-cdrom.iso", "grub-rescue-pc")
		compareWithXorriso(t, img)
	})
	t.Run("memtest", func(t *testing.T) {
		img := testtool.NeedFile(t, "/usr/lib/memtest86+/memtest86+x64.iso", "memtest86+")
		compareWithXorriso(t, img)
	})
}

func compareWithXorriso(t *testing.T, img string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "out")
	command(t, testtool.Need(t, "xorriso"), "-osirrox", "on", "-indev", img, "-extract", "/", dir)
	command(t, "chmod", "-R", "u+rwX", dir)
	if n := compareTree(t, fileDisk(t, img), "/", dir); n == 0 {
		t.Error("no file compared")
	}
	l, err := List(context.Background(), fileDisk(t, img), "")
	if err != nil {
		t.Fatal(err)
	}
	if l.Filesystem != "iso9660" || l.Table == "" {
		t.Errorf("listed as %+v", l)
	}
}
