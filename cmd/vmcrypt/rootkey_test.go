package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// passphraseFile writes a passphrase and returns the flag that names its file.
func passphraseFile(t *testing.T, flag, text string) []string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "passphrase")
	write(t, path, []byte(text+"\n"))
	return []string{"--" + flag, path}
}

// with puts flags behind a command.
func with(flags []string, command ...string) []string { return append(command, flags...) }

func (h *home) rootKey() []byte {
	h.t.Helper()
	return read(h.t, filepath.Join(h.dir, "kms", "root.key"))
}

// thereAndBack encrypts and decrypts a disk at the local key manager.
func (h *home) thereAndBack(name string) {
	h.t.Helper()
	path := filepath.Join(h.t.TempDir(), name)
	smallImage(h.t, path)
	h.ok("encrypt", path, "--output", path+".enc")
	h.ok("decrypt", path+".enc", "--output", path+".dec")
	if sum(h.t, path) != sum(h.t, path+".dec") {
		h.t.Error("the disk came back wrong")
	}
}

func TestBareRootKeyIsWarnedOf(t *testing.T) {
	t.Parallel()
	h := emptyHome(t)
	if r := h.run("init"); r.code != exitDone || strings.Count(r.stderr, "root key") != 1 || strings.Count(r.stderr, "\n") != 1 {
		t.Errorf("exit code %d, %q", r.code, r.stderr)
	}
	h.fails(exitUsage, []string{"--root-key", "cloud"}, "kms", "rotate-root", "--root-key", "cloud")
}

func TestRootKeyUnderAPassphrase(t *testing.T) {
	t.Parallel()
	h := emptyHome(t)
	pass := passphraseFile(t, rootPassphraseFile, "open sesame")
	if r := h.run(with(pass, "init", "--root-key", "passphrase")...); r.code != exitDone || strings.Contains(r.stderr, "bare") {
		t.Fatalf("exit code %d, %q", r.code, r.stderr)
	}
	if bytes.Contains(h.rootKey(), []byte("root-key-1")) {
		t.Error("the root key is bare")
	}
	h.fails(exitFailure, []string{"sealed", "kms serve"}, "kms", "backup", filepath.Join(t.TempDir(), "b"), "--passphrase-file", pass[1])
	h.fails(exitFailure, []string{"wrong passphrase"}, with(passphraseFile(t, rootPassphraseFile, "open rye"), "kms", "serve", "--listen", "127.0.0.1:0")...)
	h.serveKMS(pass...)
	h.thereAndBack("disk.img") // needs no passphrase: the server has it
	before := h.rootKey()
	h.ok("kms", "rotate-root")
	if bytes.Equal(before, h.rootKey()) || len(before) != len(h.rootKey()) {
		t.Error("the root key is the old one, or kept in another way")
	}
	h.thereAndBack("disk.img")
}

// TestRootKeyChangesItsKeeper: from bare to one passphrase, to another, to a
// credential, and back.
func TestRootKeyChangesItsKeeper(t *testing.T) {
	h := newHome(t)
	one, two := passphraseFile(t, rootPassphraseFile, "one"), passphraseFile(t, rootPassphraseFile, "two")
	h.ok(with(one, "kms", "rotate-root", "--root-key", "passphrase")...)
	h.ok(with(one, "kms", "rotate-root", "--root-key", "passphrase", "--"+newRootPassphraseFile, two[1])...)
	h.fails(exitFailure, []string{"wrong passphrase"}, with(one, "kms", "rotate-root")...)

	t.Setenv("CREDENTIALS_DIRECTORY", t.TempDir())
	h.fails(exitFailure, []string{"LoadCredentialEncrypted"}, "kms", "rotate-root", "--root-key", "systemd", "--"+rootPassphraseFile, "")
	credential := filepath.Join(os.Getenv("CREDENTIALS_DIRECTORY"), credentialName)
	write(t, credential, []byte("c2VjcmV0\n"))
	h.ok(with(two, "kms", "rotate-root", "--root-key", "systemd", "--"+newRootPassphraseFile, credential)...)
	h.thereAndBack("disk.img")
	write(t, credential, []byte("\x00binary\n\n"))
	h.fails(exitFailure, []string{"not one line of text"}, "kms", "rotate-root")
	write(t, credential, []byte("c2VjcmV0\n"))
	h.ok("kms", "rotate-root", "--root-key", "file")
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	h.thereAndBack("disk.img")
}

// TestBackupOfASealedRootKey: it can be restored where nothing but the backup
// and its passphrase are left.
func TestBackupOfASealedRootKey(t *testing.T) {
	h := emptyHome(t)
	t.Setenv("CREDENTIALS_DIRECTORY", t.TempDir())
	write(t, filepath.Join(os.Getenv("CREDENTIALS_DIRECTORY"), credentialName), []byte("c2VjcmV0"))
	h.ok("init", "--root-key", "systemd")
	path := filepath.Join(t.TempDir(), "disk.img")
	smallImage(t, path)
	h.ok("encrypt", path, "--output", path+".enc")
	backup := filepath.Join(t.TempDir(), "backup")
	pass := passphraseFile(t, "passphrase-file", "of the backup")
	h.ok(with(pass, "kms", "backup", backup)...)

	t.Setenv("CREDENTIALS_DIRECTORY", "")
	other := emptyHome(t)
	if r := other.run(with(pass, "kms", "restore", backup)...); r.code != exitDone || !strings.Contains(r.stderr, "bare") {
		t.Errorf("exit code %d, %q", r.code, r.stderr)
	}
	other.ok("decrypt", path+".enc", "--output", path+".dec")
	if sum(t, path) != sum(t, path+".dec") {
		t.Error("the disk came back wrong")
	}
	sealed := emptyHome(t)
	sealed.ok(with(pass, "kms", "restore", backup, "--root-key", "passphrase", "--"+rootPassphraseFile, pass[1])...)
	sealed.serveKMS("--"+rootPassphraseFile, pass[1])
	sealed.ok("decrypt", path+".enc", "--output", path+".dec2")
}
