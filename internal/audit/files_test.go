package audit

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestGapStays: what was cut off is missing for ever, also when the log has gone
// on.
func TestGapStays(t *testing.T) {
	dir := t.TempDir()
	known := appendNotes(t, dir, Head{}, 9)
	lines := strings.SplitAfter(text(t, dir), "\n")
	for what, test := range map[string]struct {
		left  string
		words string // of the problem
	}{
		"some": {strings.Join(lines[:5], ""), "entries 6 to 9 are missing before it"},
		"none": {"", ""},
	} {
		t.Run(what, func(t *testing.T) {
			replace(t, dir, test.left)
			head := appendNotes(t, dir, known, 1)
			r := verify(t, dir, head)
			if head.Sequence != 10 || test.words == "" && (r.First != 10 || r.Entries != 1) {
				t.Errorf("%+v, want it to go on after the entries that are gone", r)
			}
			if test.words != "" && (len(r.Problems) != 1 || !strings.Contains(r.Problems[0].Message, test.words)) {
				t.Errorf("%+v, want a gap", r)
			}
		})
	}
}

// TestGapAfterFormer: the end that was cut off was all of the last file. Whoever
// finds it can put it back.
func TestGapAfterFormer(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Head{})
	l.must(t, true, noted(1))
	l.full = 1
	l.must(t, true, noted(2), noted(3))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	lost := text(t, dir)
	replace(t, dir, "")
	head := appendNotes(t, dir, l.Head(), 1)
	if r := verify(t, dir, head); len(r.Problems) != 1 || !strings.Contains(r.Problems[0].Message, "entries 2 to 3 are missing") {
		t.Errorf("%+v", r)
	}
	replace(t, dir, lost+text(t, dir))
	wantWhole(t, dir, head, 1, 4)
}

var tornWrites = map[string]string{
	"part of a line":     `{"sequence":6,"prev`,
	"a whole line but 1": `{"sequence":6}`,
	"zeros":              strings.Repeat("\x00", 4096),
	"zeros, then a line": strings.Repeat("\x00", 100) + "\"}\n{\"sequence\":7}\n",
	"a line with zeros":  `{"sequence":6,"pre` + strings.Repeat("\x00", 100) + "\"}\n",
}

// TestTornWrite: after power loss the log goes on behind the last line that is
// whole, and what was behind that is kept elsewhere.
func TestTornWrite(t *testing.T) {
	for what, torn := range tornWrites {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			head := appendNotes(t, dir, Head{}, 5)
			replace(t, dir, text(t, dir)+torn)
			head = appendNotes(t, dir, head, 2)
			wantWhole(t, dir, head, 1, 7)
			kept, err := filepath.Glob(filepath.Join(dir, "audit-torn-*"))
			if err != nil || len(kept) != 1 {
				t.Fatalf("%v %v", kept, err)
			}
			if text, err := os.ReadFile(kept[0]); err != nil || !strings.HasSuffix(torn, string(text)) || len(text) == 0 {
				t.Errorf("kept %q, %v", text, err)
			}
		})
	}
}

// TestFirstWriteTorn: there was nothing before.
func TestFirstWriteTorn(t *testing.T) {
	dir := t.TempDir()
	replace(t, dir, `{"sequence":1,`)
	wantWhole(t, dir, appendNotes(t, dir, Head{}, 2), 1, 2)
}

// TestUnreadable: a last line that no power loss explains is not built upon, and
// stays.
func TestUnreadable(t *testing.T) {
	dir := t.TempDir()
	appendNotes(t, dir, Head{}, 1)
	good := text(t, dir)
	for _, last := range []string{
		"hello\n", "\n", "{}\n", strings.Replace(good, ":1,", ":0,", 1), strings.Replace(good, ":1,", ":01,", 1),
		strings.Replace(good, "}", "} ", 1), strings.Replace(good, "{", "{ ", 1), strings.Replace(good, "}", "},{}", 1),
		strings.Repeat("x", maxUnsynced+maxLine-1) + "\n",
	} {
		replace(t, dir, good+last)
		if _, err := Open(dir, Head{}); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), fileName) {
			t.Errorf("error is %v after %.20q", err, last)
		}
		if text(t, dir) != good+last {
			t.Errorf("changed what it can't read, %.20q", last)
		}
	}
}

func TestNoFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "missing")
	if _, err := Open(dir, Head{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("open: %v", err)
	}
	if _, err := Verify(t.Context(), dir, Head{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("verify: %v", err)
	}
}

func TestRotation(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Head{})
	l.full = 300
	for i := range 10 {
		l.must(t, i%2 == 0, noted(i))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	former, err := formerFiles(dir)
	if err != nil || len(former) != 3 {
		t.Fatalf("%d former files, %v", len(former), err)
	}
	wantWhole(t, dir, l.Head(), 1, 10)
	// A crash between the two steps of a rotation.
	if err := os.Rename(current(dir), filepath.Join(dir, formerName(10))); err != nil {
		t.Fatal(err)
	}
	wantWhole(t, dir, l.Head(), 1, 10)
	head := appendNotes(t, dir, l.Head(), 1)
	wantWhole(t, dir, head, 1, 11)
	// What is called nearly so is none of them.
	if err := os.WriteFile(filepath.Join(dir, "audit-0000000000000000000x.log"), []byte("x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	wantWhole(t, dir, head, 1, 11)
	// The oldest file goes to an archive, then one in the middle is cut short.
	if err := os.Remove(former[0]); err != nil {
		t.Fatal(err)
	}
	if r := verify(t, dir, head); r.First != 4 || len(r.Problems) != 0 {
		t.Errorf("%+v", r)
	}
	whole, err := os.ReadFile(former[1])
	if err != nil {
		t.Fatal(err)
	}
	for words, cut := range map[string]int{
		"cut short":         len(whole) - 7,
		"missing before it": 1 + bytes.LastIndexByte(whole[:len(whole)-1], '\n'),
	} {
		if err := os.WriteFile(former[1], whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		if r := verify(t, dir, head); len(r.Problems) == 0 || !strings.Contains(r.Problems[0].Message, words) {
			t.Errorf("%+v, want %q", r, words)
		}
	}
}
