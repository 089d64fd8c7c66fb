package kms

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// tree lists the files below a folder with their modes and contents.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		content := info.Mode().String()
		if d.Type().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			content += " " + string(data)
		}
		rel, err := filepath.Rel(dir, path)
		files[rel] = content
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return files
}

// sameTree fails the test unless the folder is as it was.
func sameTree(t *testing.T, dir string, before map[string]string) {
	t.Helper()
	after := tree(t, dir)
	for name := range after {
		if _, ok := before[name]; !ok {
			t.Errorf("%s appeared", name)
		}
	}
	for name, content := range before {
		if after[name] != content {
			t.Errorf("%s changed or vanished", name)
		}
	}
}

func TestInitMakesAHome(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	if !h.Exists() {
		t.Error("it does not exist")
	}
	var names []string
	for name, content := range tree(t, h.ConfigDir()) {
		want := "-rw-------"
		if name == "kms" {
			want = "drwx------"
		}
		if content[:10] != want {
			t.Errorf("%s has mode %s", name, content[:10])
		}
		names = append(names, name)
	}
	slices.Sort(names)
	want := []string{"ca.pem", "client.key", "client.pem", "config.yaml", "kms", "kms/ca.key", "kms/ca.pem",
		"kms/root.key", "kms/server.key", "kms/server.pem", "kms/store.db"}
	if !slices.Equal(names, want) {
		t.Errorf("files %v, want %v", names, want)
	}
	if got, _ := os.ReadFile(filepath.Join(h.ConfigDir(), "config.yaml")); string(got) != "# test\n" {
		t.Errorf("config.yaml is %q", got)
	}
	if info, err := os.Stat(h.ConfigDir()); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("folder has mode %v, %v", info.Mode(), err)
	}
}

func TestInitFarApart(t *testing.T) {
	dir := t.TempDir()
	h := Home{Config: filepath.Join(dir, "etc/vmcrypt/config.yaml"), Dir: filepath.Join(dir, "var/lib/vmcrypt/kms")}
	if err := os.MkdirAll(h.Dir, 0o700); err != nil { // as a package might
		t.Fatal(err)
	}
	if err := h.Init(nil); err != nil {
		t.Fatal(err)
	}
	dial(t, h).create("k")
}

func TestInitRefusesToOverwrite(t *testing.T) {
	t.Parallel()
	for _, name := range append(slices.Clone(homeFiles), "kms/store.db", "kms/anything") {
		t.Run(name, func(t *testing.T) {
			h := emptyHome(t)
			path := h.place(name)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink("/nowhere", path); err != nil { // dangling, and yet there
				t.Fatal(err)
			}
			before := tree(t, h.ConfigDir())
			err := h.Init([]byte("new"))
			if !errors.Is(err, ErrExists) || !bytes.Contains([]byte(err.Error()), []byte(path)) {
				t.Errorf("error is %v", err)
			}
			sameTree(t, h.ConfigDir(), before)
		})
	}
}

func TestInitTwice(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	before := tree(t, h.ConfigDir())
	if err := h.Init([]byte("new")); !errors.Is(err, ErrExists) {
		t.Errorf("error is %v", err)
	}
	sameTree(t, h.ConfigDir(), before)
}

func TestInitNeedsTwoFolders(t *testing.T) {
	dir := t.TempDir()
	if err := (Home{Config: filepath.Join(dir, "config.yaml"), Dir: dir + "/"}).Init(nil); err == nil {
		t.Error("one folder for both was accepted")
	}
	sameTree(t, dir, nil)
}

// TestInstallTakesBack: what is in the way appears when the first files are in
// place already.
func TestInstallTakesBack(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"client.key", "config.yaml"} {
		t.Run(name, func(t *testing.T) {
			h := emptyHome(t)
			files := contents{}
			for _, name := range homeFiles {
				files[name] = []byte(name)
			}
			var before map[string]string
			err := h.install(files, func(Home) error {
				err := errors.Join(os.MkdirAll(h.ConfigDir(), 0o700),
					os.WriteFile(filepath.Join(h.ConfigDir(), name), []byte("theirs"), 0o600))
				before = map[string]string{name: "-rw------- theirs"}
				return err
			})
			if !errors.Is(err, ErrExists) {
				t.Errorf("error is %v", err)
			}
			sameTree(t, h.ConfigDir(), before)
		})
	}
}

func TestInstallFailsBeforeItStarts(t *testing.T) {
	t.Parallel()
	h := emptyHome(t)
	failed := errors.New("no store today")
	if err := h.install(contents{"kms/ca.pem": nil}, func(Home) error { return failed }); !errors.Is(err, failed) {
		t.Errorf("error is %v", err)
	}
	sameTree(t, h.ConfigDir(), nil)
}

func TestCertificates(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	ca := certificate(t, h.path("ca.pem"))
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	for path, use := range map[string]x509.ExtKeyUsage{
		h.path("server.pem"):                       x509.ExtKeyUsageServerAuth,
		filepath.Join(h.ConfigDir(), "client.pem"): x509.ExtKeyUsageClientAuth,
	} {
		opts := x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{use}, CurrentTime: time.Now().AddDate(19, 0, 0)}
		cert := certificate(t, path)
		if _, err := cert.Verify(opts); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		if len(cert.ExtKeyUsage) != 1 || cert.IsCA {
			t.Errorf("%s: usages %v, CA %v", path, cert.ExtKeyUsage, cert.IsCA)
		}
	}
	server := certificate(t, h.path("server.pem"))
	for _, name := range []string{"localhost", "127.0.0.1", "::1"} {
		if err := server.VerifyHostname(name); err != nil {
			t.Error(err)
		}
	}
	for _, pair := range []string{h.path("ca"), h.path("server"), filepath.Join(h.ConfigDir(), "client")} {
		if _, err := tls.LoadX509KeyPair(pair+".pem", pair+".key"); err != nil {
			t.Error(err)
		}
	}
}

func certificate(t *testing.T, path string) *x509.Certificate {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block, rest := pem.Decode(data)
	if block == nil || len(rest) != 0 {
		t.Fatalf("%s: not one PEM block", path)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestMissingHome(t *testing.T) {
	t.Parallel()
	h := emptyHome(t)
	if h.Exists() {
		t.Error("it exists")
	}
	if _, err := h.Dial(t.Context(), ""); !errors.Is(err, ErrMissing) {
		t.Errorf("dial: %v", err)
	}
	if err := h.Serve(t.Context(), "127.0.0.1:0", nil); !errors.Is(err, ErrMissing) {
		t.Errorf("serve: %v", err)
	}
	if err := h.Backup(t.Context(), filepath.Join(t.TempDir(), "b"), passphrase(t, "x")); !errors.Is(err, ErrMissing) {
		t.Errorf("backup: %v", err)
	}
	sameTree(t, h.ConfigDir(), nil)
}

func TestIsCA(t *testing.T) {
	t.Parallel()
	h, other := newHome(t), newHome(t)
	for path, want := range map[string]bool{
		h.place("config/ca.pem"): true,
		h.path("server.pem"):     false,
		other.path("ca.pem"):     false,
	} {
		if got, err := h.IsCA(path); got != want || err != nil {
			t.Errorf("%s: %v, %v", path, got, err)
		}
	}
	if _, err := h.IsCA(filepath.Join(h.Dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

func TestInitDoesNotFollowALink(t *testing.T) {
	t.Parallel()
	h := emptyHome(t)
	if err := os.MkdirAll(h.ConfigDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(h.ConfigDir(), "elsewhere"), h.Dir); err != nil {
		t.Fatal(err)
	}
	before := tree(t, h.ConfigDir())
	if err := h.Init(nil); err == nil {
		t.Error("a dangling link was replaced")
	}
	sameTree(t, h.ConfigDir(), before)
}
