package browse

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits on paths; both are above what Linux itself accepts in a path.
const (
	maxPath      = 4096 // bytes
	maxPartition = 9999
)

// location is a parsed path: the parts of the path in a partition, or, with
// partition 0, in the disk's only filesystem.
type location struct {
	partition int
	parts     []string
}

// parsePath reads N:/path or /path. There is one spelling of each path: no
// leading zeros, no empty parts (but for one / at the end), no . or .. parts.
func parsePath(s string) (location, error) {
	var loc location
	number, path, found := strings.Cut(s, ":")
	if found && !strings.Contains(number, "/") {
		n, err := strconv.Atoi(number)
		if err != nil || n < 1 || n > maxPartition || strconv.Itoa(n) != number {
			return loc, fmt.Errorf("%q: %w: the partition before the colon must be a number from 1", s, ErrPath)
		}
		loc.partition = n
	} else {
		path = s
	}
	if !strings.HasPrefix(path, "/") || len(path) > maxPath || strings.ContainsRune(path, 0) {
		return loc, fmt.Errorf("%q: %w: write /path, or N:/path for partition N", s, ErrPath)
	}
	if path == "/" {
		return loc, nil
	}
	loc.parts = strings.Split(strings.TrimSuffix(path[1:], "/"), "/")
	for _, part := range loc.parts {
		if part == "" || part == "." || part == ".." {
			return loc, fmt.Errorf("%q: %w: leave out empty, . and .. parts", s, ErrPath)
		}
	}
	return loc, nil
}

// Printable gives a guest's name in a form that is safe on a terminal: the name
// itself where all of it is printable, else quoted with escapes as in Go.
func Printable(name string) string {
	if !utf8.ValidString(name) {
		return strconv.Quote(name)
	}
	for _, r := range name {
		if !unicode.IsPrint(r) {
			return strconv.Quote(name)
		}
	}
	return name
}
