package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestBetween(t *testing.T) {
	const doc = "a\n<!-- begin x -->\nold\n<!-- end x -->\nb\n<!-- begin y -->\n<!-- end y -->\n"
	got, err := between([]byte(doc), "x", "new\n")
	if want := strings.Replace(doc, "old", "new", 1); err != nil || string(got) != want {
		t.Errorf("%q, %v", got, err)
	}
	for _, bad := range []string{"", "<!-- begin x -->\n", "<!-- end x -->\n<!-- begin x -->\n"} {
		if _, err := between([]byte(bad), "x", ""); err == nil {
			t.Errorf("%q has no marks of x", bad)
		}
	}
}

// Every section has its place in the document.
func TestDocumentHasAllSections(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join("../..", document))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range sections {
		if _, err := between(doc, s.name, ""); err != nil {
			t.Error(err)
		}
	}
}

func TestTable(t *testing.T) {
	got := table{"Title:", []string{"a", "b"}, [][]string{{"1", "2"}}}.String()
	if want := "Title:\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"; got != want {
		t.Errorf("got %q", got)
	}
}

func TestContestTakesTurns(t *testing.T) {
	var turns []string
	enter := func(name string) contestant {
		return contestant{name, func(context.Context) error {
			turns = append(turns, name)
			return nil
		}, []string{"true"}}
	}
	results, err := contest(t.Context(), 2, []contestant{enter("a"), enter("b")})
	if err != nil || !slices.Equal(turns, []string{"a", "b", "a", "b"}) {
		t.Errorf("%q, %v", turns, err)
	}
	if r := results["a"]; len(r) != 2 || r[0].wall <= 0 || r[0].rss <= 0 {
		t.Errorf("%v", r)
	}
}

func TestContestEndsWithAnError(t *testing.T) {
	failed := errors.New("no disk")
	prepare := func(context.Context) error { return failed }
	if _, err := contest(t.Context(), 1, []contestant{{"a", prepare, nil}}); !errors.Is(err, failed) {
		t.Error(err)
	}
	say := []string{"sh", "-c", "echo it broke; exit 3"}
	if _, err := contest(t.Context(), 1, []contestant{{"a", nil, say}}); err == nil || !strings.Contains(err.Error(), "it broke") {
		t.Error(err)
	}
}

func TestMedianAndRatio(t *testing.T) {
	of := func(seconds ...float64) (rs []result) {
		for _, s := range seconds {
			rs = append(rs, result{wall: time.Duration(s * float64(time.Second))})
		}
		return rs
	}
	if got := median(of(9, 1, 3), wall); got != 3 {
		t.Errorf("median %v", got)
	}
	if got := median(of(1, 3), wall); got != 2 {
		t.Errorf("median of two %v", got)
	}
	// The medians are 4 and 2; round by round, the one took half of the other.
	if got := ratio(of(1, 4, 6), of(2, 8, 2), wall); got != 0.5 {
		t.Errorf("ratio %v", got)
	}
}

func TestVerdicts(t *testing.T) {
	runs := func(wall, cpu, rss int64) []result {
		return []result{{time.Duration(wall), time.Duration(cpu), rss << 20}}
	}
	rows := verdicts("now", map[string][]result{
		byVmcrypt: runs(590, 460, 64), withCipher: runs(104, 0, 0), withoutIt: runs(100, 0, 0),
		byCopying: runs(800, 0, 0), "qemu": runs(1000, 1000, 99),
	}, "qemu")
	var met []string
	for _, row := range rows {
		met = append(met, row[3])
	}
	if want := []string{"yes", "**no**", "**no**", "yes", "yes"}; !slices.Equal(met, want) {
		t.Errorf("got %q of %q", met, rows)
	}
}

func TestVerdictsInPlace(t *testing.T) {
	runs := func(wall, rss int64) []result { return []result{{wall: time.Duration(wall), rss: rss << 20}} }
	rows := verdictsInPlace(
		map[string][]result{vmcryptInPlace: runs(180, 65), vmcryptToNewFile: runs(100, 99)},
		map[string][]result{vmcryptInPlace: runs(81, 64), "cryptsetup": runs(100, 1)}, "cryptsetup")
	var met []string
	for _, row := range rows {
		met = append(met, row[3])
	}
	if want := []string{"yes", "**no**", "**no**", "yes"}; !slices.Equal(met, want) {
		t.Errorf("got %q of %q", met, rows)
	}
}

// The way that is faster in the trial takes part, under its name.
func TestCompareTakesTheBest(t *testing.T) {
	us := []contestant{{"us", nil, []string{"true"}}}
	ways := []contestant{{"slow", nil, []string{"sleep", "0.3"}}, {"fast", nil, []string{"true"}}, {"slow too", nil, []string{"sleep", "0.3"}}}
	results, best, err := compare(t.Context(), 1, us, ways)
	if err != nil || best != "fast" || len(results) != 2 || len(results["us"]) != 1 || len(results["fast"]) != 1 {
		t.Errorf("best %q, %v, %v", best, results, err)
	}
}

func TestResultTable(t *testing.T) {
	of := func(seconds, mib int64) []result {
		return []result{{time.Duration(seconds) * time.Second, time.Duration(seconds) * time.Second / 2, mib << 20}}
	}
	got := resultTable("T", []string{"b", "a"}, map[string][]result{"a": of(3, 10), "b": of(2, 20), "c": of(9, 9)})
	want := table{"T:", []string{"", "wall s", "CPU s", "peak MiB", "wall, b = 1"},
		[][]string{{"b", "2.00", "1.00", "20", "1.00"}, {"a", "3.00", "1.50", "10", "1.50"}}}
	if got.String() != want.String() {
		t.Errorf("got %s", got)
	}
}

func TestRestore(t *testing.T) {
	w := workshop{t.TempDir()}
	if err := os.WriteFile(w.in("plain"), []byte("plain"), 0o600); err != nil {
		t.Fatal(err)
	}
	work := []string{"sh", "-c", `printf ", changed" >>"$0" && mkdir "$0.vmx"`, w.in("work/disk")}
	for _, c := range []struct {
		commands [][]string
		want     string
		files    int
	}{{[][]string{work}, "plain, changed", 2}, {nil, "plain", 1}} {
		if err := w.restore(t.Context(), "plain", c.commands); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(w.in("work/disk"))
		names, _ := filepath.Glob(w.in("work/*"))
		if err != nil || string(got) != c.want || len(names) != c.files {
			t.Errorf("%q, %q, %v", got, names, err)
		}
	}
}

func TestChildCopies(t *testing.T) {
	folder := t.TempDir()
	from, to, encrypted := filepath.Join(folder, "from"), filepath.Join(folder, "to"), filepath.Join(folder, "encrypted")
	content := strings.Repeat("vmcrypt.", 1024)
	if err := os.WriteFile(from, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(child("copy", from, to), child("encrypt", from, encrypted),
		child("touch", "100000", "")); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(to)
	if err != nil || string(got) != content {
		t.Errorf("the copy differs, %v", err)
	}
	got, err = os.ReadFile(encrypted)
	if err != nil || len(got) != len(content) || strings.Contains(string(got), "vmcrypt.") {
		t.Errorf("not encrypted: %v", err)
	}
	if child("fly", "", "") == nil {
		t.Error("a child can fly")
	}
}

func TestCPUModel(t *testing.T) {
	if got := cpuModel("processor\t: 0\nmodel name\t: AMD EPYC\n"); got != "AMD EPYC" {
		t.Errorf("got %q", got)
	}
}
