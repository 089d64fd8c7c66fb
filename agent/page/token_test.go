package page

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestTokenStays: it is made once, and no other user can read it.
func TestTokenStays(t *testing.T) {
	file := filepath.Join(t.TempDir(), "http-token")
	group := os.Getegid()
	first, err := OpenToken(file, group)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil || !regexp.MustCompile(`^[0-9a-f]{64}\n$`).Match(text) {
		t.Fatalf("%v, %d bytes", err, len(text))
	}
	checkMode(t, file, 0o640)
	second, err := OpenToken(file, -1)
	if err != nil || first.digest != second.digest || !second.is(string(bytes.TrimSpace(text))) {
		t.Errorf("the next agent has another token: %v", err)
	}
	checkMode(t, file, 0o600)
	other, err := OpenToken(file+"2", -1)
	if err != nil || other.digest == first.digest {
		t.Errorf("two agents have the same token: %v", err)
	}
	checkMode(t, file+"2", 0o600)
}

func checkMode(t *testing.T, file string, want fs.FileMode) {
	t.Helper()
	info, err := os.Stat(file)
	if err != nil || info.Mode() != want {
		t.Errorf("%v %v", err, info.Mode())
	}
}

// TestTokenRefused: what others may know, or is none.
func TestTokenRefused(t *testing.T) {
	good := strings.Repeat("0a", 32)
	for name, test := range map[string]struct {
		text string
		mode fs.FileMode
	}{
		"readable by all": {good, 0o644}, "writable by the group": {good, 0o660}, "empty": {"", 0o600}, "short": {good[2:], 0o600},
		"long": {good + "00", 0o600}, "no digits": {strings.Repeat("xy", 32), 0o600}, "more lines": {good + "\n\n", 0o600},
	} {
		file := filepath.Join(t.TempDir(), "http-token")
		if err := os.WriteFile(file, []byte(test.text), test.mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, test.mode); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenToken(file, -1); err == nil || !strings.Contains(err.Error(), "remove it") || strings.Contains(err.Error(), "0a0a") {
			t.Errorf("%s: %v", name, err)
		}
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink("/etc/hostname", link); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenToken(link, -1); err == nil {
		t.Error("a symbolic link is followed")
	}
}
