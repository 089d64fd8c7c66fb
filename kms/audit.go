package kms

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gemalto/kmip-go/kmip14"
	"golang.org/x/sys/unix"

	"github.com/vmcrypt/vmcrypt/internal/durable"
)

const (
	auditFile = "audit.log"
	// auditFull is the size, in bytes, from which on a file gets its final name
	// and a new one is begun.
	auditFull = 64 << 20
	// auditTail bounds what one write can leave half done, in bytes: the
	// requests in flight, with all their operations, make far less.
	auditTail = 4 << 20
	// maxAuditText bounds, in bytes, what a client can put into a field.
	maxAuditText = 128
)

// auditEntry is what the audit log tells about one operation. Nothing in it is
// secret: names and attributes of objects stay out.
type auditEntry struct {
	Time      time.Time
	Client    string // identity of the client
	Address   string // where it came from; filled in by the server
	Operation string
	Object    string // Unique Identifier, or "" where there is none
	Result    string // "Success" or the result status
	Reason    string // result reason of a failure

	Correlation correlation // of the client's log and this one
}

// auditLine is an entry as it stands in the log, one line of JSON. Names and
// order of the fields belong to the format.
type auditLine struct {
	Sequence  uint64 `json:"sequence"` // counts from 1, across files
	Previous  string `json:"previous"` // SHA-256 of the line before, with its line feed
	Time      string `json:"time"`     // RFC 3339, UTC
	Client    string `json:"client"`
	Address   string `json:"address"`
	Operation string `json:"operation"`
	Object    string `json:"object,omitempty"`
	Result    string `json:"result"`
	Reason    string `json:"reason,omitempty"`

	ClientCorrelation string `json:"clientCorrelation,omitempty"`
	ServerCorrelation string `json:"serverCorrelation,omitempty"`
}

// auditHead is a place in the log: that after an entry.
type auditHead struct {
	Sequence uint64 `json:"sequence"`
	Hash     string `json:"hash"` // SHA-256 of the entry's line, in hexadecimal
}

// beginning is the place before the first entry.
var beginning = auditHead{Hash: strings.Repeat("0", 2*sha256.Size)}

func headAt(sequence uint64, line []byte) auditHead {
	sum := sha256.Sum256(line)
	return auditHead{sequence, hex.EncodeToString(sum[:])}
}

// auditLog appends to the log. One process at a time has it, as it has the
// store.
type auditLog struct {
	dir  string
	full int64 // auditFull, but for tests

	mu   sync.Mutex
	next *auditGroup // that entries can still join

	writing  sync.Mutex // guards what follows
	file     *os.File
	size     int64
	head     auditHead
	unsynced bool
	due      *time.Timer // of a sync; nil if there is none
	broken   error       // why nothing can be written any more
}

// auditGroup is a number of entries that are written at once.
type auditGroup struct {
	entries []auditEntry
	done    chan struct{}
	err     error
}

// onlyRead are the operations whose entries can get to the disk after the
// answer: a key is read far more often than the disk can sync. What was refused
// before there was an operation has changed nothing either.
var onlyRead = map[string]bool{
	kmip14.OperationDiscoverVersions.String(): true,
	kmip14.OperationQuery.String():            true,
	kmip14.OperationLocate.String():           true,
	kmip14.OperationCheck.String():            true,
	kmip14.OperationGet.String():              true,
	kmip14.OperationGetAttributes.String():    true,
	kmip14.OperationGetAttributeList.String(): true,

	connectionOperation: true,
	messageOperation:    true,
}

// auditDelay is when they are there at the latest.
const auditDelay = 100 * time.Millisecond

// append writes entries. When it returns they are on disk or, if all are of
// operations that only read, safe from the end of this process, and on disk
// soon. Those that are appended while a write is under way share the next one.
func (l *auditLog) append(entries []auditEntry) error {
	g, first := l.join(entries)
	if first {
		l.flush(g)
	}
	<-g.done
	return g.err
}

// join adds entries to the group that is written next; the first to join has to
// write it.
func (l *auditLog) join(entries []auditEntry) (g *auditGroup, first bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if first = l.next == nil; first {
		l.next = &auditGroup{done: make(chan struct{})}
	}
	l.next.entries = append(l.next.entries, entries...)
	return l.next, first
}

func (l *auditLog) flush(g *auditGroup) {
	defer close(g.done)
	l.writing.Lock()
	defer l.writing.Unlock()
	l.mu.Lock()
	l.next = nil
	l.mu.Unlock()
	g.err = l.write(g.entries)
}

func (l *auditLog) write(entries []auditEntry) error {
	if l.broken != nil {
		return l.broken
	}
	if err := l.rotate(); err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	text, head, err := l.head.encode(entries)
	if err != nil {
		return err
	}
	if _, err := l.file.WriteAt(text, l.size); err != nil {
		// What is there of it must not stay in front of the next line.
		l.broken = l.file.Truncate(l.size)
		return fmt.Errorf("audit log: %w", err)
	}
	l.size += int64(len(text))
	l.head = head
	l.unsynced = true
	if slices.ContainsFunc(entries, func(e auditEntry) bool { return !onlyRead[e.Operation] }) {
		return l.sync()
	}
	if l.due == nil {
		l.due = time.AfterFunc(auditDelay, l.syncDue)
	}
	return nil
}

// sync waits until all that was written is on disk. Who calls it holds
// l.writing.
func (l *auditLog) sync() error {
	if !l.unsynced || l.broken != nil {
		return l.broken
	}
	if err := unix.Fdatasync(int(l.file.Fd())); err != nil {
		l.broken = fmt.Errorf("audit log: %w", err) // what was written may be lost without another error
		return l.broken
	}
	l.unsynced = false
	return nil
}

func (l *auditLog) syncDue() {
	l.writing.Lock()
	defer l.writing.Unlock()
	l.due = nil
	if err := l.sync(); err != nil && !errors.Is(err, errAuditClosed) {
		slog.Error("key manager refuses all operations from now on", "error", err)
	}
}

// encode gives the lines of entries that follow on head, and the new head.
func (head auditHead) encode(entries []auditEntry) ([]byte, auditHead, error) {
	var text []byte
	for _, e := range entries {
		line, err := json.Marshal(head.line(e))
		if err != nil {
			return nil, head, err
		}
		line = append(line, '\n')
		text = append(text, line...)
		head = headAt(head.Sequence+1, line)
	}
	return text, head, nil
}

func (head auditHead) line(e auditEntry) *auditLine {
	return &auditLine{
		Sequence:  head.Sequence + 1,
		Previous:  head.Hash,
		Time:      e.Time.UTC().Format(time.RFC3339Nano),
		Client:    clip(e.Client),
		Address:   clip(e.Address),
		Operation: clip(e.Operation),
		Object:    clip(e.Object),
		Result:    clip(e.Result),
		Reason:    clip(e.Reason),

		ClientCorrelation: clip(e.Correlation.client),
		ServerCorrelation: clip(e.Correlation.server),
	}
}

func clip(s string) string { return s[:min(len(s), maxAuditText)] }

// rotate begins a new file if this one is full.
func (l *auditLog) rotate() error {
	if l.size < l.full {
		return nil
	}
	if err := l.sync(); err != nil {
		return err
	}
	f, err := l.succeed()
	if err != nil {
		return err
	}
	l.file.Close()
	l.file, l.size = f, 0
	return nil
}

// succeed puts the file aside and makes an empty one in its place.
func (l *auditLog) succeed() (*os.File, error) {
	path := filepath.Join(l.dir, auditFile)
	if err := os.Rename(path, filepath.Join(l.dir, auditName(l.head.Sequence))); err != nil {
		return nil, err
	}
	return createAudit(path)
}

// auditName is the name of a file that ends with that entry. Names are in the
// order of the entries.
func auditName(last uint64) string { return fmt.Sprintf("audit-%020d.log", last) }

// createAudit opens the file at path, which it makes if necessary, for one
// process.
func createAudit(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fmt.Errorf("%s: %w", path, ErrBusy)
	}
	if err == nil {
		err = durable.SyncDir(filepath.Dir(path))
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// openAudit opens the log of a home for appending, after what is there. known
// is the last entry that the store knows of: if the log ends before it, the
// gap in the numbers will show that for ever.
func (h Home) openAudit(known auditHead) (*auditLog, error) {
	f, err := createAudit(h.path(auditFile))
	if err != nil {
		return nil, err
	}
	l := &auditLog{dir: h.Dir, full: auditFull, file: f}
	if err := l.resume(known); err != nil {
		f.Close()
		return nil, err
	}
	return l, nil
}

// resume finds the end of the log.
func (l *auditLog) resume(known auditHead) (err error) {
	if l.head, l.size, err = l.end(l.file); err != nil {
		return err
	}
	if l.size == 0 {
		if l.head, err = l.endOfFormer(); err != nil {
			return err
		}
	}
	switch {
	case l.head.Sequence >= known.Sequence:
	case l.size == 0 && l.head == beginning:
		slog.Warn("audit log: it begins anew, as it has to in a home that was restored", "after entry", known.Sequence)
		l.head = known
	default:
		slog.Error("audit log: entries are missing at its end", "last", l.head.Sequence, "expected", known.Sequence)
		l.head.Sequence = known.Sequence
		if l.size == 0 {
			l.head = known
		}
	}
	return nil
}

// endOfFormer gives the end of the last file that was put aside.
func (l *auditLog) endOfFormer() (auditHead, error) {
	names, err := formerAudits(l.dir)
	if err != nil || len(names) == 0 {
		return beginning, err
	}
	f, err := os.Open(names[len(names)-1])
	if err != nil {
		return beginning, err
	}
	defer f.Close()
	head, _, err := l.end(f)
	return head, err
}

func formerAudits(dir string) ([]string, error) {
	names, err := fs.Glob(os.DirFS(dir), "audit-????????????????????.log")
	for i := range names {
		names[i] = filepath.Join(dir, names[i])
	}
	slices.Sort(names)
	return names, err
}

// end reads the last entry of a file. What an interrupted write has left behind
// it is put aside.
func (l *auditLog) end(f *os.File) (auditHead, int64, error) {
	tail, start, err := readTail(f)
	if err != nil {
		return beginning, 0, err
	}
	whole := wholeLines(tail)
	if torn := tail[len(whole):]; len(torn) > 0 {
		if err := l.putAside(f, torn, start+int64(len(whole))); err != nil {
			return beginning, 0, err
		}
	}
	if len(whole) == 0 && start == 0 {
		return beginning, 0, nil
	}
	last := whole[bytes.LastIndexByte(whole[:max(len(whole)-1, 0)], '\n')+1:]
	line, err := parseAuditLine(last)
	if err != nil {
		return beginning, 0, fmt.Errorf("%s: %w: its last line is no entry; move the file away to begin another", f.Name(), ErrDamaged)
	}
	return headAt(line.Sequence, last), start + int64(len(whole)), nil
}

func readTail(f *os.File) (tail []byte, start int64, err error) {
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	start = max(0, info.Size()-auditTail)
	tail = make([]byte, info.Size()-start)
	if _, err := f.ReadAt(tail, start); err != nil {
		return nil, 0, err
	}
	return tail, start, nil
}

// wholeLines gives the part of tail before what an interrupted write left: a
// line without end, or a block that was never written and what follows it.
func wholeLines(tail []byte) []byte {
	if i := bytes.IndexByte(tail, 0); i >= 0 {
		tail = tail[:i]
	}
	return tail[:bytes.LastIndexByte(tail, '\n')+1]
}

// putAside moves the end of the file, from at on, into a file of its own.
func (l *auditLog) putAside(f *os.File, torn []byte, at int64) error {
	path := filepath.Join(l.dir, fmt.Sprintf("audit-torn-%d", time.Now().UnixNano()))
	slog.Warn("audit log: a write was interrupted", "file", f.Name(), "bytes", len(torn), "moved to", path)
	if err := durable.WriteFile(path, torn, 0o600); err != nil {
		return err
	}
	if err := f.Truncate(at); err != nil {
		return err
	}
	return f.Sync()
}

func parseAuditLine(text []byte) (*auditLine, error) {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	line := &auditLine{}
	if err := dec.Decode(line); err != nil {
		return nil, err
	}
	if dec.InputOffset() != int64(len(text)-1) || line.Sequence == 0 {
		return nil, errors.New("no entry")
	}
	return line, nil
}

// at gives the last entry that was written.
func (l *auditLog) at() auditHead {
	l.writing.Lock()
	defer l.writing.Unlock()
	return l.head
}

// settle gives the last entry when it is on disk.
func (l *auditLog) settle() (auditHead, error) {
	l.writing.Lock()
	defer l.writing.Unlock()
	return l.head, l.sync()
}

var errAuditClosed = errors.New("audit log: closed")

func (l *auditLog) close() error {
	l.writing.Lock()
	defer l.writing.Unlock()
	err := l.sync()
	l.broken = errAuditClosed
	return errors.Join(err, l.file.Close())
}
