package kms

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// serviceUser is who the key manager runs as, in this test: a number does.
const serviceUser = 61234

// TestRootWorksForItsUser: what root makes in the home of a key manager that runs as
// another user is that user's, and a link that this user put there leads root nowhere.
func TestRootWorksForItsUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	h := newHome(t)
	victim := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(victim, []byte("root's"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, h.path(lastBackupFile)); err != nil {
		t.Fatal(err)
	}
	each(t, h.Dir, func(path string) error { return os.Lchown(path, serviceUser, serviceUser) })

	if _, err := h.AddClient(t.Context(), NewClient{Name: "one", Dir: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	if err := h.RotateRoot(t.Context()); err != nil {
		t.Fatal(err)
	}
	backup(t, h)

	each(t, h.Dir, func(path string) error {
		info, err := os.Lstat(path)
		if err == nil && info.Sys().(*syscall.Stat_t).Uid != serviceUser {
			t.Errorf("%s is not the key manager's user's", path)
		}
		return err
	})
	if text, err := os.ReadFile(victim); err != nil || string(text) != "root's" {
		t.Errorf("root was led astray: %q, %v", text, err)
	}
	if err := os.Rename(h.path("audit.log"), h.path("aside")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, h.path("audit.log")); err != nil {
		t.Fatal(err)
	}
	if err := h.RevokeClient(t.Context(), "one"); err == nil {
		t.Error("root wrote its log through a link")
	}
}

func each(t *testing.T, dir string, do func(path string) error) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return do(path)
	})
	if err != nil {
		t.Fatal(err)
	}
}
