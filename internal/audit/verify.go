package audit

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

const maxProblems = 20 // reported

// Report is what a check of a log finds.
type Report struct {
	Entries uint64 `json:"entries"`
	First   uint64 `json:"first"` // number of the first entry that is there
	Last    uint64 `json:"last"`
	// Hash is the SHA-256 of the last entry's line, in hexadecimal. Who notes it
	// elsewhere can tell later that nothing up to that entry was changed.
	Hash     string    `json:"hash"`
	Problems []Problem `json:"problems"` // the first 20
	// Files is how many there are; none: there is no log.
	Files int `json:"-"`
}

// Problem is a place where a log is not as it was written.
type Problem struct {
	File    string `json:"file"`
	Line    int    `json:"line"`
	Message string `json:"message"`
}

// Err is an error that wraps ErrChanged if there are problems, and names the
// first.
func (r *Report) Err() error {
	if len(r.Problems) == 0 {
		return nil
	}
	p := r.Problems[0]
	return fmt.Errorf("%w: %s line %d: %s", ErrChanged, p.File, p.Line, p.Message)
}

// Verify reads the log in dir, all its files, and checks the chain of its entries
// and that none is missing, up to known at least, where that is not the zero Head.
// What known tells must have been written before. A file that was archived from
// the beginning is no problem. It changes nothing and works while the log is
// written. It fails where it cannot read; what it finds is in the report.
func Verify(ctx context.Context, dir string, known Head) (*Report, error) {
	// It is opened before the others are looked for, as it may become one of them.
	current, err := os.Open(filepath.Join(dir, fileName))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if current != nil {
		defer current.Close()
	}
	paths, err := formerFiles(dir)
	if err != nil {
		return nil, err
	}
	c := &check{known: known, report: Report{Problems: []Problem{}}}
	if err := c.files(ctx, paths, current); err != nil {
		return nil, err
	}
	c.conclude()
	return &c.report, nil
}

// check reads lines in order.
type check struct {
	report Report
	known  Head
	head   Head // of the line before
	name   string
	line   int
}

// files reads former files up to the current one, and that, if there is one.
func (c *check) files(ctx context.Context, paths []string, current *os.File) error {
	for _, path := range paths {
		if err := ctx.Err(); err != nil {
			return err
		}
		last, err := c.former(path, current)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // it may go to an archive just now
			return err
		}
		if last {
			break
		}
	}
	if current == nil {
		return nil
	}
	return c.read(fileName, current, true)
}

// former reads a file that was put aside, unless it is the current one, which was
// put aside since that was opened: then it tells that those after it are newer
// than the check.
func (c *check) former(path string, current *os.File) (last bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	if current != nil {
		if last, err = same(f, current); last || err != nil {
			return last, err
		}
	}
	return false, c.read(filepath.Base(path), f, false)
}

func same(a, b *os.File) (bool, error) {
	infoA, err := a.Stat()
	if err != nil {
		return false, err
	}
	infoB, err := b.Stat()
	return err == nil && os.SameFile(infoA, infoB), err
}

// read checks the lines of a file. One that may still be written can end within
// a line: a write is under way or was interrupted, and never acknowledged.
func (c *check) read(name string, f io.Reader, written bool) error {
	c.name, c.line = name, 0
	c.report.Files++
	r := bufio.NewReaderSize(f, maxLine)
	for {
		text, err := r.ReadSlice('\n')
		if err == io.EOF && (len(text) == 0 || written) {
			return nil
		}
		c.line++
		switch {
		case err == io.EOF:
			c.problem("cut short")
			return nil
		case errors.Is(err, bufio.ErrBufferFull):
			c.problem("longer than any entry; the rest of the file was not read")
			return nil
		case err != nil:
			return err
		}
		c.entry(text)
	}
}

// entry checks that a line follows on the one before. Where it doesn't, the
// chain is taken up anew from it.
func (c *check) entry(text []byte) {
	line, err := parseLine(text)
	if err != nil {
		c.problem("not an entry")
		return
	}
	if c.report.Entries == 0 {
		c.begin(line)
	}
	switch {
	case line.sequence > c.head.Sequence+1:
		c.problem("entries %d to %d are missing before it", c.head.Sequence+1, line.sequence-1)
	case line.sequence <= c.head.Sequence:
		c.problem("entry %d follows on entry %d", line.sequence, c.head.Sequence)
	case line.previous != c.head.previous():
		c.problem("entry %d does not follow on the line before, which is not the one that was written", line.sequence)
	}
	c.report.Entries++
	c.head = headAt(line.sequence, text)
	if c.head.Sequence == c.known.Sequence && c.head != c.known {
		c.problem("entry %d is not the one that was written", line.sequence)
	}
}

// begin takes up the chain where the first file that is there does. Those before
// it may have been moved into an archive.
func (c *check) begin(l line) {
	c.report.First = l.sequence
	if l.sequence > 1 {
		c.head = Head{l.sequence - 1, l.previous}
	}
}

func (c *check) conclude() {
	c.report.Last, c.report.Hash = c.head.Sequence, c.head.previous()
	if c.head.Sequence < c.known.Sequence {
		c.name = fileName
		c.problem("entries %d to %d are missing at the end", c.head.Sequence+1, c.known.Sequence)
	}
}

func (c *check) problem(format string, args ...any) {
	if len(c.report.Problems) < maxProblems {
		c.report.Problems = append(c.report.Problems, Problem{c.name, c.line, fmt.Sprintf(format, args...)})
	}
}
