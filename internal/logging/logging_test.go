package logging

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// logged gives what is in a file after some events.
func logged(t *testing.T, stream func(*os.File) string) []string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	t.Setenv("JOURNAL_STREAM", stream(f))
	log := slog.New(Handler(f))
	log.Info("unlock", "vm", "web 01\nMESSAGE=forged", "result", "success")
	log.With("alias", "prod").WithGroup("g").Warn("two\nlines", "time", 7)
	log.Error("\x1b[2J", "error", "no\rway")
	log.Debug("not logged")
	text, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(string(text), "\n")
}

func none(*os.File) string { return "" }

func own(f *os.File) string {
	var stat unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &stat); err != nil {
		panic(err)
	}
	return fmt.Sprintf("%d:%d", stat.Dev, stat.Ino)
}

func TestJournal(t *testing.T) {
	want := []string{
		`<6>msg=unlock vm="web 01\nMESSAGE=forged" result=success`,
		`<4>msg="two\nlines" alias=prod g.time=7`,
		`<3>msg="\x1b[2J" error="no\rway"`,
		``,
	}
	if got := logged(t, own); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestElsewhere: no other file than the journal's stream gets priorities.
func TestElsewhere(t *testing.T) {
	for name, stream := range map[string]func(*os.File) string{
		"no journal": none,
		"another's":  func(f *os.File) string { return own(f) + "0" },
		"nonsense":   func(*os.File) string { return "journal" },
	} {
		got := logged(t, stream)
		if len(got) != 4 || !strings.HasPrefix(got[0], "time=20") ||
			!strings.HasSuffix(got[0], ` level=INFO msg=unlock vm="web 01\nMESSAGE=forged" result=success`) {
			t.Errorf("%s: %q", name, got)
		}
	}
}
