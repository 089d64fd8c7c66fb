package durable

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

var errSync = errors.New("input/output error")

// failSync makes every fsync fail whose file satisfies match.
func failSync(t *testing.T, match func(fs.FileInfo) bool) {
	t.Helper()
	old := fsync
	t.Cleanup(func() { fsync = old })
	fsync = func(f *os.File) error {
		info, err := f.Stat()
		if err == nil && match(info) {
			return errSync
		}
		return old(f)
	}
}

func isDir(info fs.FileInfo) bool  { return info.IsDir() }
func isFile(info fs.FileInfo) bool { return info.Mode().IsRegular() }

// without makes renameat2, and link as well, fail as on a filesystem that has
// no such operation.
func without(t *testing.T, renameErr, linkErr error) {
	t.Helper()
	oldRename, oldLink := renameat2, link
	t.Cleanup(func() { renameat2, link = oldRename, oldLink })
	renameat2 = func(int, string, int, string, uint) error { return renameErr }
	if linkErr != nil {
		link = func(a, b string) error {
			return &os.LinkError{Op: "link", Old: a, New: b, Err: linkErr}
		}
	}
}

func content(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// wantNames checks what is in a folder: no temporary file may be left.
func wantNames(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("folder has %q, want %q", got, want)
	}
}

// must ends a test whose own preparation failed.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, data string, perm fs.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(data), perm); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, perm); err != nil {
		t.Fatal(err)
	}
}

func TestWriteFileNew(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.vmx")
	if err := WriteFile(path, []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := content(t, path); got != "new" {
		t.Errorf("content is %q", got)
	}
	if info, _ := os.Stat(path); info.Mode() != 0o600 {
		t.Errorf("mode is %v, want 0600", info.Mode())
	}
	wantNames(t, dir, "a.vmx")
}

func TestWriteFileKeepsMode(t *testing.T) {
	for _, mode := range []fs.FileMode{0o400, 0o600, 0o640, 0o644, 0o666} {
		dir := t.TempDir()
		path := filepath.Join(dir, "a.vmx")
		write(t, path, "old", mode)
		if err := WriteFile(path, []byte("new"), 0o600); err != nil {
			t.Fatal(err)
		}
		if info, _ := os.Stat(path); info.Mode() != mode {
			t.Errorf("mode is %v, want %v", info.Mode(), mode)
		}
		if got := content(t, path); got != "new" {
			t.Errorf("content is %q", got)
		}
		wantNames(t, dir, "a.vmx")
	}
}

func TestWriteFileKeepsOwner(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to give a file away")
	}
	path := filepath.Join(t.TempDir(), "a.vmx")
	write(t, path, "old", 0o640)
	if err := os.Chown(path, 4321, 1234); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(path, []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	info, _ := os.Stat(path)
	st := info.Sys().(*syscall.Stat_t)
	if st.Uid != 4321 || st.Gid != 1234 || info.Mode() != 0o640 {
		t.Errorf("owner %d:%d mode %v, want 4321:1234 0640", st.Uid, st.Gid, info.Mode())
	}
}

func TestWriteFileFollowsLink(t *testing.T) {
	dir, far := t.TempDir(), t.TempDir()
	target := filepath.Join(far, "real.vmx")
	write(t, target, "old", 0o600)
	path := filepath.Join(dir, "a.vmx")
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(path, []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	if to, err := os.Readlink(path); err != nil || to != target {
		t.Errorf("the link is now %q, %v", to, err)
	}
	if got := content(t, target); got != "new" {
		t.Errorf("content is %q", got)
	}
	wantNames(t, far, "real.vmx")
}

func TestWriteFileRefuses(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Symlink("nowhere", filepath.Join(dir, "dangling")))
	must(t, os.Symlink("loop", filepath.Join(dir, "loop")))
	must(t, os.Mkdir(filepath.Join(dir, "folder"), 0o700))
	must(t, unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600))
	for _, name := range []string{"dangling", "loop", "folder", "pipe"} {
		if err := WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	wantNames(t, dir, "dangling", "folder", "loop", "pipe")
}

func TestWriteFileFailedSync(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.vmx")
	write(t, path, "old", 0o600)
	failSync(t, isFile)
	if err := WriteFile(path, []byte("new"), 0o600); !errors.Is(err, errSync) || errors.Is(err, ErrNotDurable) {
		t.Errorf("error is %v, want only that of fsync", err)
	}
	if got := content(t, path); got != "old" {
		t.Errorf("content is %q, want the old one", got)
	}
	wantNames(t, dir, "a.vmx")
}

func TestWriteFileFailedDirSync(t *testing.T) {
	dir := t.TempDir()
	failSync(t, isDir)
	err := WriteFile(filepath.Join(dir, "a.vmx"), []byte("new"), 0o600)
	if !errors.Is(err, errSync) || !errors.Is(err, ErrNotDurable) {
		t.Errorf("error is %v, want ErrNotDurable and that of fsync", err)
	}
	wantNames(t, dir, "a.vmx")
}

func TestPublishPending(t *testing.T) {
	dir := t.TempDir()
	p, err := Create(filepath.Join(dir, "disk.img"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Abort()
	name := filepath.Base(p.Name())
	if !strings.HasPrefix(name, ".disk.img.") || !strings.HasSuffix(name, ".vmcrypt-tmp") {
		t.Errorf("temporary name is %q", name)
	}
	wantNames(t, dir, name)
	for _, part := range []string{"one ", "two"} {
		_, err := p.Write([]byte(part))
		must(t, err)
	}
	if err := p.Publish(); err != nil {
		t.Fatal(err)
	}
	p.Abort()
	if got := content(t, filepath.Join(dir, "disk.img")); got != "one two" {
		t.Errorf("content is %q", got)
	}
	wantNames(t, dir, "disk.img")
}

func TestAbort(t *testing.T) {
	dir := t.TempDir()
	p, err := Create(filepath.Join(dir, "disk.img"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.Write([]byte("half"))
	must(t, err)
	p.Abort()
	p.Abort()
	wantNames(t, dir)
}

func TestPendingFailedSync(t *testing.T) {
	dir := t.TempDir()
	p, err := Create(filepath.Join(dir, "disk.img"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	failSync(t, isFile)
	if err := p.Publish(); !errors.Is(err, errSync) {
		t.Errorf("error is %v, want that of fsync", err)
	}
	wantNames(t, dir)
}

// filesystems are what renameNew can meet: with RENAME_NOREPLACE, with hard
// links only, and with neither.
var filesystems = map[string]func(t *testing.T){
	"renameat2": func(*testing.T) {},
	"einval":    func(t *testing.T) { without(t, unix.EINVAL, nil) },
	"enosys":    func(t *testing.T) { without(t, unix.ENOSYS, nil) },
	"neither":   func(t *testing.T) { without(t, unix.EINVAL, unix.EPERM) },
}

func TestPublishNew(t *testing.T) {
	for name, prepare := range filesystems {
		t.Run(name, func(t *testing.T) {
			prepare(t)
			dir := t.TempDir()
			publishFile(t, dir)
			publishFolder(t, dir)
			wantNames(t, dir, "file", "folder")
			if got := content(t, filepath.Join(dir, "folder/sub/x")); got != "inside" {
				t.Errorf("content is %q", got)
			}
		})
	}
}

func publishFile(t *testing.T, dir string) {
	t.Helper()
	path := filepath.Join(dir, "file")
	tmp := TempName(path)
	write(t, tmp, "new", 0o600)
	if err := Publish(tmp, path); err != nil {
		t.Fatal(err)
	}
}

func publishFolder(t *testing.T, dir string) {
	t.Helper()
	path := filepath.Join(dir, "folder")
	tmp, err := MkdirTemp(path, 0o700)
	if err != nil {
		t.Fatal(err)
	}
	must(t, os.Mkdir(filepath.Join(tmp, "sub"), 0o700))
	write(t, filepath.Join(tmp, "sub/x"), "inside", 0o600)
	must(t, os.Symlink("nowhere", filepath.Join(tmp, "link")))
	if err := Publish(tmp, path); err != nil {
		t.Fatal(err)
	}
}

func TestPublishNeverReplaces(t *testing.T) {
	targets := map[string]func(path string) error{
		"file":         func(p string) error { return os.WriteFile(p, []byte("old"), 0o600) },
		"empty folder": func(p string) error { return os.Mkdir(p, 0o700) },
		"link":         func(p string) error { return os.Symlink("nowhere", p) },
	}
	for fsName, prepare := range filesystems {
		for target, occupy := range targets {
			t.Run(fsName+"/"+target, func(t *testing.T) {
				prepare(t)
				path := filepath.Join(t.TempDir(), "taken")
				if err := occupy(path); err != nil {
					t.Fatal(err)
				}
				neverReplaces(t, path)
			})
		}
	}
}

// neverReplaces tries a file, a folder and a pending file on a taken name.
func neverReplaces(t *testing.T, path string) {
	t.Helper()
	before, _ := os.Lstat(path)
	file := TempName(path)
	write(t, file, "new", 0o600)
	folder, err := MkdirTemp(path, 0o700)
	if err != nil {
		t.Fatal(err)
	}
	p, err := Create(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{Publish(file, path), Publish(folder, path), p.Publish()} {
		if !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), path) {
			t.Errorf("error is %v, want file exists, with its name", err)
		}
	}
	after, _ := os.Lstat(path)
	if !os.SameFile(before, after) || before.Mode() != after.Mode() {
		t.Error("the target was touched")
	}
	os.Remove(file)
	os.Remove(folder)
	wantNames(t, filepath.Dir(path), "taken")
}

func TestPublishRealError(t *testing.T) {
	dir := t.TempDir()
	without(t, unix.EIO, unix.EPERM)
	tmp := TempName(filepath.Join(dir, "x"))
	write(t, tmp, "new", 0o600)
	if err := Publish(tmp, filepath.Join(dir, "x")); !errors.Is(err, unix.EIO) {
		t.Errorf("error is %v, want EIO: only a missing operation has a fallback", err)
	}
	wantNames(t, dir, filepath.Base(tmp))
}

func TestPublishFailedSync(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "vm")
	tmp, err := MkdirTemp(path, 0o700)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(tmp, "disk.img"), "new", 0o600)
	failSync(t, isFile)
	if err := Publish(tmp, path); !errors.Is(err, errSync) {
		t.Errorf("error is %v, want that of fsync", err)
	}
	wantNames(t, dir, filepath.Base(tmp))
}

func TestSyncTreeReachesEverything(t *testing.T) {
	dir := t.TempDir()
	publishFolder(t, dir)
	synced := make(map[string]int)
	old := fsync
	t.Cleanup(func() { fsync = old })
	fsync = func(f *os.File) error {
		rel, _ := filepath.Rel(dir, f.Name())
		synced[rel]++
		return old(f)
	}
	if err := SyncTree(dir); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{".", "folder", "folder/sub", "folder/sub/x"} {
		if synced[name] != 1 {
			t.Errorf("%s synced %d times, want once", name, synced[name])
		}
	}
	if len(synced) != 4 {
		t.Errorf("synced %v", synced)
	}
}

func TestSyncDirWithoutFsync(t *testing.T) {
	old := fsync
	t.Cleanup(func() { fsync = old })
	fsync = func(f *os.File) error {
		return &fs.PathError{Op: "sync", Path: f.Name(), Err: unix.EINVAL}
	}
	if err := SyncDir(t.TempDir()); err != nil {
		t.Errorf("a filesystem without fsync for folders gives %v", err)
	}
}

func TestTempNames(t *testing.T) {
	long := strings.Repeat("x", 250)
	for _, path := range []string{"a", "dir/a", "/dir/" + long} {
		name := TempName(path)
		if filepath.Dir(name) != filepath.Dir(path) {
			t.Errorf("%s is not beside %s", name, path)
		}
		if len(filepath.Base(name)) > 255 {
			t.Errorf("%s is too long", name)
		}
		if TempName(path) == name {
			t.Errorf("%s came twice", name)
		}
	}
}

func TestWriteFileLarge(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	if err := WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if content(t, path) != string(data) {
		t.Error("content differs")
	}
}
