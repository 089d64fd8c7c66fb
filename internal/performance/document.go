package main

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// table is what a section found, in Markdown.
type table struct {
	title  string
	header []string
	rows   [][]string
}

func (t table) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n", t.title)
	line := func(cells []string) { fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | ")) }
	line(t.header)
	b.WriteString(strings.Repeat("|---", len(t.header)) + "|\n")
	for _, row := range t.rows {
		line(row)
	}
	return b.String()
}

// resultTable has a row for each contestant in this order, the first of which
// the others are compared with.
func resultTable(title string, order []string, results map[string][]result) table {
	first := results[order[0]]
	t := table{title + ":", []string{"", "wall s", "CPU s", "peak MiB", "wall, " + order[0] + " = 1"}, nil}
	for _, name := range order {
		r := results[name]
		t.rows = append(t.rows, []string{name, fmt.Sprintf("%.2f", median(r, wall)), fmt.Sprintf("%.2f", median(r, cpu)),
			fmt.Sprintf("%.0f", median(r, mib)), fmt.Sprintf("%.2f", ratio(r, first, wall))})
	}
	return t
}

// atMost is the row of a target: what, is, at most, met.
func atMost(what string, is, limit float64) []string {
	return verdict(what, is, limit, is <= limit)
}

// atLeast is likewise for what should be large.
func atLeast(what string, is, limit float64) []string {
	return verdict(what, is, limit, is >= limit)
}

func verdict(what string, is, limit float64, met bool) []string {
	answer := "yes"
	if !met {
		answer = "**no**"
	}
	return []string{what, fmt.Sprintf("%.2f", is), fmt.Sprintf("%.2f", limit), answer}
}

// rewrite replaces what stands between the marks of a section in the document.
func rewrite(path, name, text string) error {
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	changed, err := between(old, name, text)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return os.WriteFile(path, changed, 0o644) //nolint:gosec // a document for everybody
}

func between(document []byte, name, text string) ([]byte, error) {
	begin, end := "<!-- begin "+name+" -->\n", "<!-- end "+name+" -->\n"
	before, rest, ok := bytes.Cut(document, []byte(begin))
	_, after, ended := bytes.Cut(rest, []byte(end))
	if !ok || !ended {
		return nil, fmt.Errorf("there are no marks of section %q", name)
	}
	return bytes.Join([][]byte{before, []byte(begin), []byte(text), []byte(end), after}, nil), nil
}

// describeMachine says what the figures are of.
func describeMachine() (string, error) {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "", err
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "", err
	}
	return fmt.Sprintf("Machine: %s, %d cores, Linux %s.\n", cpuModel(string(info)), runtime.NumCPU(),
		unix.ByteSliceToString(name.Release[:])), nil
}

// cpuModel finds the name of the CPU, which not every architecture tells.
func cpuModel(cpuinfo string) string {
	for line := range strings.Lines(cpuinfo) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}
