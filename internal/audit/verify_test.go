package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestTampering: whatever is done to the file is noticed, and where. What is done
// to its end is noticed by those who know the end.
func TestTampering(t *testing.T) {
	dir := t.TempDir()
	known := appendNotes(t, dir, Head{}, 9)
	good := strings.SplitAfter(text(t, dir), "\n")
	good = good[:len(good)-1]
	with := func(i int, line string) []string {
		return append(append(append([]string{}, good[:i]...), line), good[i+1:]...)
	}
	for what, test := range map[string]struct {
		lines []string
		line  int // of the first problem
		words string
		end   bool // of the log is all that it changes
	}{
		"nothing":            {good, 0, "", true},
		"an altered line":    {with(3, strings.Replace(good[3], `"c"`, `"d"`, 1)), 5, "entry 5 does not follow", false},
		"the last altered":   {with(8, strings.Replace(good[8], `"c"`, `"d"`, 1)), 9, "entry 9 is not the one", true},
		"a line removed":     {with(3, ""), 4, "entries 4 to 4 are missing", false},
		"a line repeated":    {with(3, good[3]+good[3]), 5, "entry 4 follows on entry 4", false},
		"lines swapped":      {with(3, good[4]+good[3]), 4, "entries 4 to 4 are missing", false},
		"no entry":           {with(3, "{}\n"), 4, "not an entry", false},
		"no JSON":            {with(3, "x\n"), 4, "not an entry", false},
		"two on a line":      {with(3, strings.TrimSuffix(good[3], "\n")+good[4]), 4, "not an entry", false},
		"a field before it":  {with(3, strings.Replace(good[3], `{`, `{"x":1,`, 1)), 4, "not an entry", false},
		"a field behind it":  {with(3, strings.Replace(good[3], `}`, `,"sequence":9}`, 1)), 5, "entry 5 does not follow", false},
		"a very long line":   {with(3, strings.Repeat("x", maxLine+1)+"\n"), 4, "longer than", false},
		"the end cut off":    {good[:7], 7, "entries 8 to 9 are missing at the end", true},
		"cut inside a line":  {append(append([]string{}, good[:8]...), good[8][:20]), 8, "entries 9 to 9 are missing at the end", true},
		"all removed":        {nil, 0, "entries 1 to 9 are missing at the end", true},
		"the hash replaced":  {with(3, strings.Replace(good[3], `"previous":"`, `"previous":"0`, 1)), 4, "entry 4 does not follow", false},
		"a number too large": {with(3, strings.Replace(good[3], `"sequence":4`, `"sequence":44`, 1)), 4, "entries 4 to 43 are missing", false},
		"a number beyond":    {with(3, strings.Replace(good[3], `"sequence":4`, `"sequence":18446744073709551615`, 1)), 4, "not an entry", false},
	} {
		t.Run(what, func(t *testing.T) {
			replace(t, dir, strings.Join(test.lines, ""))
			if r := verify(t, dir, Head{}); (len(r.Problems) == 0) != test.end {
				t.Errorf("without knowledge of the end: %+v", r)
			}
			if test.words == "" {
				wantWhole(t, dir, known, 1, 9)
				return
			}
			r := verify(t, dir, known)
			if len(r.Problems) == 0 {
				t.Fatal("not noticed")
			}
			if p := r.Problems[0]; p.File != fileName || p.Line != test.line || !strings.Contains(p.Message, test.words) {
				t.Errorf("%+v, want line %d, %q", p, test.line, test.words)
			}
		})
	}
}

// TestNoLog is no problem where none is known of, and told from an empty one.
func TestNoLog(t *testing.T) {
	dir := t.TempDir()
	if r := verify(t, dir, Head{}); r.Files != 0 || r.Hash != noHash || r.Err() != nil {
		t.Errorf("%+v", r)
	}
	appendNotes(t, dir, Head{}, 0)
	if r := verify(t, dir, Head{}); r.Files != 1 || r.Entries != 0 || r.Err() != nil {
		t.Errorf("%+v", r)
	}
}

// TestProblemsAreBounded: a log of nothing but problems makes no endless report.
func TestProblemsAreBounded(t *testing.T) {
	dir := t.TempDir()
	replace(t, dir, strings.Repeat("x\n", 10*maxProblems))
	if r := verify(t, dir, Head{}); len(r.Problems) != maxProblems {
		t.Errorf("%d problems", len(r.Problems))
	}
}

func TestVerifyEnds(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Head{})
	l.full = 1
	l.must(t, true, noted(1))
	l.must(t, true, noted(2))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Verify(ctx, dir, Head{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
}

// TestFullMeanwhile: files that are put aside after the check has begun are
// neither missed nor read twice.
func TestFullMeanwhile(t *testing.T) {
	for rotations := range 4 {
		dir := t.TempDir()
		l := open(t, dir, Head{})
		for i := range 3 {
			l.must(t, false, noted(i))
		}
		known := l.Head()
		file, err := os.Open(current(dir))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		l.full = 1
		for i := range rotations {
			l.must(t, false, noted(i))
		}
		paths, err := formerFiles(dir)
		if err != nil || len(paths) != rotations {
			t.Fatal(paths, err)
		}
		c := &check{known: known}
		if err := c.files(t.Context(), paths, file); err != nil {
			t.Fatal(err)
		}
		if c.conclude(); c.report.Entries != 3 || c.report.Err() != nil {
			t.Errorf("%d rotations: %+v", rotations, c.report)
		}
	}
}

// TestWhileWritten: a log that is written, and gets full again and again, is
// found whole.
func TestWhileWritten(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Head{})
	l.full = 4000
	done := make(chan error)
	go func() {
		var err error
		for i := 0; i < 2000 && err == nil; i++ {
			err = l.Append(false, noted(i))
		}
		done <- err
	}()
	for checks := 1; ; checks++ {
		if r := verify(t, dir, l.Head()); r.Err() != nil {
			t.Fatalf("check %d: %+v", checks, r)
		}
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
			wantWhole(t, dir, l.Head(), 1, 2000)
			return
		default:
		}
	}
}

// goodLog is a log of three entries, one in a former file.
func goodLog(t testing.TB) (former, current []byte) {
	t.Helper()
	h := Head{}
	for i := range 3 {
		object, err := json.Marshal(noted(i))
		if err != nil {
			t.Fatal(err)
		}
		var line []byte
		if line, h = h.line(object); i == 0 {
			former = line
		} else {
			current = append(current, line...)
		}
	}
	return former, current
}

// FuzzVerify reads what anybody may have put into the folder. Where it finds no
// problem, other code finds none.
func FuzzVerify(f *testing.F) {
	former, current := goodLog(f)
	f.Add(former, current)
	f.Add([]byte{}, current)
	f.Add(current, former)
	f.Add(former, append(bytes.Clone(current), "{"...))
	f.Add(former, bytes.Repeat([]byte("["), maxLine+1))
	f.Add([]byte(`{"sequence":1,"previous":"\u0030"}`+"\n"), []byte(`{"sequence":1,"Sequence":2}`+"\n"))
	for _, torn := range tornWrites {
		f.Add(former, append(bytes.Clone(current), torn...))
	}
	f.Fuzz(func(t *testing.T, former, current []byte) {
		c := &check{}
		if err := errors.Join(c.read(formerName(1), bytes.NewReader(former), false), c.read(fileName, bytes.NewReader(current), true)); err != nil {
			t.Fatal(err)
		}
		c.conclude()
		if n := len(c.report.Problems); n > maxProblems || n > 0 {
			return
		}
		current = current[:bytes.LastIndexByte(current, '\n')+1]
		if err := chained(append(bytes.Clone(former), current...), &c.report); err != nil {
			t.Error(err)
		}
	})
}

// chained checks lines in another way than a check does.
func chained(text []byte, r *Report) error {
	lines := bytes.SplitAfter(text, []byte("\n"))
	lines = lines[:len(lines)-1]
	if uint64(len(lines)) != r.Entries {
		return fmt.Errorf("%d lines, %+v", len(lines), r)
	}
	last, hash := uint64(0), noHash
	for i, l := range lines {
		sequence, previous, err := firstMembers(l)
		if err != nil {
			return fmt.Errorf("line %d: %w", i+1, err)
		}
		if begun := i > 0 || sequence == 1; begun && (sequence != last+1 || previous != hash) {
			return fmt.Errorf("line %d: %d, %s after %d, %s", i+1, sequence, previous, last, hash)
		}
		sum := sha256.Sum256(l)
		last, hash = sequence, hex.EncodeToString(sum[:])
	}
	if r.Last != last || r.Hash != hash {
		return fmt.Errorf("ends with %d %s, %+v", last, hash, r)
	}
	return nil
}

// firstMembers reads sequence and previous as the first members of an object.
func firstMembers(line []byte) (sequence uint64, previous string, err error) {
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.UseNumber()
	var tokens [5]json.Token
	for i := range tokens {
		if tokens[i], err = dec.Token(); err != nil {
			return 0, "", err
		}
	}
	number, ok1 := tokens[2].(json.Number)
	previous, ok2 := tokens[4].(string)
	if tokens[0] != json.Delim('{') || tokens[1] != "sequence" || !ok1 || tokens[3] != "previous" || !ok2 {
		return 0, "", fmt.Errorf("begins with %v", tokens)
	}
	sequence, err = strconv.ParseUint(number.String(), 10, 64)
	return sequence, previous, err
}

// FuzzOpen goes on with what anybody may have put into the file: the next entry
// follows on a line that is there, or the log is refused and left as it is.
func FuzzOpen(f *testing.F) {
	former, current := goodLog(f)
	f.Add(append(former, current...))
	f.Add(current)
	f.Add([]byte("{}\n"))
	for _, torn := range tornWrites {
		f.Add(append(bytes.Clone(current), torn...))
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, content []byte) {
		replace(t, dir, string(content))
		l, err := Open(dir, Head{})
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Fatal(err)
			}
			return
		}
		defer removeTorn(t, dir)
		before := l.Head()
		l.must(t, false, noted(1))
		defer l.Close()
		lines := bytes.SplitAfter([]byte(text(t, dir)), []byte("\n"))
		want, _ := before.line([]byte(`{"who":"c","object":"1"}`))
		if n := len(lines); !bytes.Equal(lines[n-2], want) || n > 2 && headAt(before.Sequence, lines[n-3]) != before || n == 2 && before != (Head{}) {
			t.Errorf("it went on with\n%sfrom %+v", lines[n-2], before)
		}
	})
}

func removeTorn(t *testing.T, dir string) {
	torn, err := filepath.Glob(filepath.Join(dir, "audit-torn-*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range torn {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}
