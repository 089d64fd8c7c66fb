package kms

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

const (
	maxAuditLine    = 16 << 10 // bytes
	maxAuditProblem = 20       // reported
)

// ErrAudit says that the audit log is not as it was written.
var ErrAudit = errors.New("the audit log was changed")

// AuditReport is what a check of the audit log finds.
type AuditReport struct {
	Entries uint64 `json:"entries"`
	First   uint64 `json:"first"` // number of the first entry that is there
	Last    uint64 `json:"last"`
	// Hash is the SHA-256 of the last entry's line, in hexadecimal. Who notes it
	// elsewhere can tell later that nothing up to that entry was changed.
	Hash     string         `json:"hash"`
	Problems []AuditProblem `json:"problems"` // the first 20
}

// AuditProblem is a place where the log is not as it was written.
type AuditProblem struct {
	File    string `json:"file"`
	Line    int    `json:"line"`
	Message string `json:"message"`
}

// VerifyAudit reads the audit log, all its files, and checks the chain of its
// entries and that none is missing. It works while the key manager serves.
func (h Home) VerifyAudit(ctx context.Context) (*AuditReport, error) {
	// What the store knows is asked first, as the log goes on meanwhile.
	known, err := h.knownAudit(ctx)
	if err != nil {
		return nil, err
	}
	names, err := formerAudits(h.Dir)
	if err != nil {
		return nil, err
	}
	c := &auditCheck{known: known, head: beginning}
	for _, name := range append(names, h.path(auditFile)) {
		if err := c.file(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	c.conclude()
	return c.result(), nil
}

// auditCheck reads lines in order.
type auditCheck struct {
	report AuditReport
	known  auditHead
	head   auditHead // of the line before
	name   string
	line   int
}

func (c *auditCheck) file(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	c.name, c.line = filepath.Base(path), 0
	r := bufio.NewReaderSize(f, maxAuditLine)
	for {
		text, err := r.ReadSlice('\n')
		if err == io.EOF && len(text) == 0 {
			return nil
		}
		c.line++
		switch {
		case err == io.EOF && c.name == auditFile:
			return nil // a write is under way, or was interrupted: it was never acknowledged
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
func (c *auditCheck) entry(text []byte) {
	line, err := parseAuditLine(text)
	if err != nil {
		c.problem("not an entry")
		return
	}
	if c.report.Entries == 0 {
		c.begin(line)
	}
	switch {
	case line.Sequence > c.head.Sequence+1:
		c.problem("entries %d to %d are missing before it", c.head.Sequence+1, line.Sequence-1)
	case line.Sequence <= c.head.Sequence:
		c.problem("entry %d follows on entry %d", line.Sequence, c.head.Sequence)
	case line.Previous != c.head.Hash:
		c.problem("entry %d does not follow on the line before, which is not the one that was written", line.Sequence)
	}
	c.report.Entries++
	c.head = headAt(line.Sequence, text)
	if c.head.Sequence == c.known.Sequence && c.head != c.known {
		c.problem("entry %d is not the one that was written", line.Sequence)
	}
}

// begin takes up the chain where the first file that is there does. Those before
// it may have been moved into an archive.
func (c *auditCheck) begin(line *auditLine) {
	c.report.First = line.Sequence
	if line.Sequence > 1 {
		c.head = auditHead{line.Sequence - 1, line.Previous}
	}
}

func (c *auditCheck) conclude() {
	c.report.Last, c.report.Hash = c.head.Sequence, c.head.Hash
	if c.head.Sequence < c.known.Sequence {
		c.name = auditFile
		c.problem("entries %d to %d are missing at the end", c.head.Sequence+1, c.known.Sequence)
	}
}

func (c *auditCheck) problem(format string, args ...any) {
	if len(c.report.Problems) < maxAuditProblem {
		c.report.Problems = append(c.report.Problems, AuditProblem{c.name, c.line, fmt.Sprintf(format, args...)})
	}
}

func (c *auditCheck) result() *AuditReport {
	if c.report.Problems == nil {
		c.report.Problems = []AuditProblem{}
	}
	return &c.report
}

// Err is an error that wraps ErrAudit if there are problems, and names the
// first.
func (r *AuditReport) Err() error {
	if len(r.Problems) == 0 {
		return nil
	}
	p := r.Problems[0]
	return fmt.Errorf("%w: %s line %d: %s", ErrAudit, p.File, p.Line, p.Message)
}

// auditHeadNote is the name of the note that says how far the log goes.
const auditHeadNote = "head"

// knownAudit asks the store for an entry that the log must hold. It is not the
// last, unless the key manager has been stopped.
func (h Home) knownAudit(ctx context.Context) (auditHead, error) {
	s, running, err := h.access(ctx, forReading)
	if err != nil {
		return beginning, err
	}
	if running != nil {
		return running.Audit, nil
	}
	head, err := s.auditHead()
	return head, errors.Join(err, s.close())
}

func (s *store) auditHead() (auditHead, error) {
	head := beginning
	err := s.view(func(t *tx) error { return t.getNote(auditBucket, auditHeadNote, &head) })
	return head, err
}

func (s *store) setAuditHead(head auditHead) error {
	return s.update(func(t *tx) error { return t.putNote(auditBucket, auditHeadNote, head) })
}
