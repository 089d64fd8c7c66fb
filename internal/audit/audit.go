// Package audit keeps an audit log that shows whether it was changed.
//
// A log is a folder with audit.log, to which lines of JSON are appended, and its
// former files, which were full. Each line is an object that begins with the
// members sequence, which counts from 1 across files, and previous, the SHA-256
// of the line before with its line feed, in hexadecimal; those of the entry
// follow. So each line proves all before it, and the hash of the last one, noted
// where the writer of the folder does not get at it, proves the whole log. Without
// such a note, whoever can write the folder can make another log that is
// consistent in itself, or cut entries off the end: [Verify] sees what was
// changed, removed or added anywhere else.
//
// [Open] goes on with a log, [Log.Append] adds entries. Those who append at the
// same time share a write and a sync. What a power failure left half written is
// put aside when the log is opened again; the entries in it were never
// acknowledged.
package audit

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// The errors that callers tell apart.
var (
	// ErrBusy: another process, or another Log of this one, has the log.
	ErrBusy = errors.New("the audit log is in use")
	// ErrDamaged: the end of the log is not what a Log writes, not even one that
	// was interrupted.
	ErrDamaged = errors.New("the audit log is damaged")
	// ErrChanged: the log is not as it was written.
	ErrChanged = errors.New("the audit log was changed")
)

const (
	// MaxEntry bounds an entry as JSON, in bytes.
	MaxEntry = maxLine - 256
	// maxLine bounds a line, in bytes: an entry and what stands before it.
	maxLine = 256 << 10
	// maxUnsynced bounds what an interruption can leave half written, in bytes.
	maxUnsynced = 4 << 20
	// fullSize is the size, in bytes, from which on a file gets its final name and
	// a new one is begun.
	fullSize = 64 << 20
	// syncDelay is when entries that need not be durable are on disk at the latest.
	syncDelay = 100 * time.Millisecond
)

// Head is a place in a log: that after an entry. The zero Head is the place
// before the first.
type Head struct {
	Sequence uint64 `json:"sequence"`
	Hash     string `json:"hash"` // SHA-256 of the entry's line, in hexadecimal
}

var noHash = strings.Repeat("0", 2*sha256.Size)

// previous is what the entry after this place says of the one before.
func (h Head) previous() string { return cmp.Or(h.Hash, noHash) }

func headAt(sequence uint64, line []byte) Head {
	sum := sha256.Sum256(line)
	return Head{sequence, hex.EncodeToString(sum[:])}
}

// line gives the line of an entry, a JSON object, that follows, and the place
// after it.
func (h Head) line(object []byte) ([]byte, Head) {
	line := fmt.Appendf(nil, `{"sequence":%d,"previous":"%s"`, h.Sequence+1, h.previous())
	if string(object) != "{}" {
		line = append(line, ',')
	}
	line = append(append(line, object[1:]...), '\n')
	return line, headAt(h.Sequence+1, line)
}

// Log appends to a log. Its methods can be called at the same time. After an
// error that leaves open what is on disk it takes no entry any more: what is
// there counts, and opening the log again finds out.
type Log struct {
	dir  string
	full int64 // fullSize, but for tests

	mu   sync.Mutex
	next *group // that entries can still join

	writing  sync.Mutex // guards what follows
	file     *os.File
	size     int64
	head     Head
	unsynced int         // bytes
	due      *time.Timer // of a sync; nil if there is none
	broken   error       // why nothing can be written any more
}

// group is a number of entries that are written at once.
type group struct {
	entries [][]byte // JSON objects
	size    int      // of their lines, in bytes, at most
	durable bool
	done    chan struct{}
	err     error
}

// Append adds entries, one after the other, and returns when they are on disk. If
// none of those that share the write is durable, they are then only safe from the
// end of this process, and on disk within 100 ms. An entry is anything that
// encoding/json makes an object of, of at most MaxEntry bytes and without members
// named sequence or previous. After an error none of the entries counts, though
// what could not be synced may be there.
func (l *Log) Append(durable bool, entries ...any) error {
	own, err := newGroup(durable, entries)
	if err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	g, first := l.join(own)
	if first {
		l.flush(g)
	}
	<-g.done
	return g.err
}

func newGroup(durable bool, entries []any) (*group, error) {
	g := &group{durable: durable, done: make(chan struct{})}
	for _, e := range entries {
		object, err := marshal(e)
		if err != nil {
			return nil, err
		}
		g.entries = append(g.entries, object)
		g.size += len(object) + maxLine - MaxEntry
	}
	if g.size > maxUnsynced {
		return nil, fmt.Errorf("%d entries are too much at once", len(entries))
	}
	return g, nil
}

func marshal(entry any) ([]byte, error) {
	object, err := json.Marshal(entry)
	switch {
	case err != nil:
		return nil, err
	case object[0] != '{':
		return nil, fmt.Errorf("%T makes no JSON object", entry)
	case len(object) > MaxEntry:
		return nil, fmt.Errorf("an entry of %d bytes is too long", len(object))
	}
	return object, nil
}

// join adds a group's entries to the one that is written next, and tells whether
// the caller has to write that: the first to join it does.
func (l *Log) join(own *group) (g *group, first bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	g = l.next
	if g == nil || g.size+own.size > maxUnsynced {
		l.next = own
		return own, true
	}
	g.entries = append(g.entries, own.entries...)
	g.size += own.size
	g.durable = g.durable || own.durable
	return g, false
}

func (l *Log) flush(g *group) {
	defer close(g.done)
	l.writing.Lock()
	defer l.writing.Unlock()
	l.mu.Lock()
	if l.next == g {
		l.next = nil
	}
	l.mu.Unlock()
	if err := l.write(g); err != nil {
		g.err = fmt.Errorf("audit log: %w", err)
	}
}

// write appends a group. Who calls it, and what follows, holds l.writing.
func (l *Log) write(g *group) error {
	if err := l.makeRoom(g.size); err != nil {
		return err
	}
	text, head := l.head.lines(g.entries)
	if _, err := l.file.WriteAt(text, l.size); err != nil {
		// What is there of it must not stay in front of the next line.
		l.broken = l.file.Truncate(l.size)
		return err
	}
	l.size += int64(len(text))
	l.unsynced += len(text)
	l.head = head
	if g.durable {
		return l.sync()
	}
	if l.due == nil {
		l.due = time.AfterFunc(syncDelay, l.syncDue)
	}
	return nil
}

// lines gives the lines of entries that follow, and the place after them.
func (h Head) lines(entries [][]byte) (text []byte, after Head) {
	for _, e := range entries {
		var line []byte
		line, h = h.line(e)
		text = append(text, line...)
	}
	return text, h
}

// makeRoom begins a new file if this one is full, and sees to it that no more
// than maxUnsynced bytes are unsynced when so many more are.
func (l *Log) makeRoom(more int) error {
	if l.broken != nil {
		return l.broken
	}
	full := l.size >= l.full
	if full || l.unsynced+more > maxUnsynced {
		if err := l.sync(); err != nil {
			return err
		}
	}
	if full {
		return l.rotate()
	}
	return nil
}

// sync waits until all that was written is on disk.
func (l *Log) sync() error {
	if l.unsynced == 0 || l.broken != nil {
		return l.broken
	}
	if err := unix.Fdatasync(int(l.file.Fd())); err != nil {
		// What was written may be lost without another error.
		l.broken = os.NewSyscallError("fdatasync", err)
		return l.broken
	}
	l.unsynced = 0
	return nil
}

func (l *Log) syncDue() {
	l.writing.Lock()
	defer l.writing.Unlock()
	l.due = nil
	if err := l.sync(); err != nil && !errors.Is(err, errClosed) {
		slog.Error("audit log: nothing can be written any more", "dir", l.dir, "error", err)
	}
}

// Head gives the last entry that was written.
func (l *Log) Head() Head {
	l.writing.Lock()
	defer l.writing.Unlock()
	return l.head
}

// Sync gives the last entry when it is on disk.
func (l *Log) Sync() (Head, error) {
	l.writing.Lock()
	defer l.writing.Unlock()
	return l.head, l.sync()
}

var errClosed = errors.New("closed")

// Close ends the log when all is on disk. Entries that come later are refused.
func (l *Log) Close() error {
	l.writing.Lock()
	defer l.writing.Unlock()
	err := l.sync()
	l.broken = errClosed
	return errors.Join(err, l.file.Close())
}
