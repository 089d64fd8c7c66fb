package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmcrypt/vmcrypt/internal/durable"
)

const fileName = "audit.log" // that is appended to

var formerPattern = "audit-" + strings.Repeat("[0-9]", 20) + ".log"

// formerName is the name of a file that ends with that entry. Names are in the
// order of the entries.
func formerName(last uint64) string { return fmt.Sprintf("audit-%020d.log", last) }

// formerFiles gives the paths of the files that were put aside, in order.
func formerFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, e := range entries {
		if ok, _ := filepath.Match(formerPattern, e.Name()); ok { // the pattern is a good one
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	return paths, nil
}

// Open goes on with the log in dir, or begins one: dir must be there. known is an
// entry that the log must have, by what its owner keeps elsewhere, or the zero
// Head: if the log ends before it, the gap in the numbers will show that for ever.
// It fails with ErrBusy or ErrDamaged.
func Open(dir string, known Head) (*Log, error) {
	f, err := openFile(dir)
	if err != nil {
		return nil, err
	}
	l := &Log{dir: dir, full: fullSize, file: f}
	if err := l.resume(known); err != nil {
		f.Close()
		return nil, err
	}
	return l, nil
}

// openFile opens the file that is appended to, which it makes if necessary, for
// one process.
func openFile(dir string) (*os.File, error) {
	f, err := openOrMake(filepath.Join(dir, fileName))
	if err != nil {
		return nil, err
	}
	if err = lock(f); err == nil {
		err = durable.SyncDir(dir)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// openOrMake makes the file for the owner of the folder, which root may not be.
func openOrMake(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	}
	if err != nil {
		return nil, err
	}
	if err := durable.GiveToOwner(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// lock locks the file, unless it is another's or, by now, a former one.
func lock(f *os.File) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
		return &os.PathError{Op: "lock", Path: f.Name(), Err: err}
	}
	if err == nil && named(f) {
		return nil
	}
	return fmt.Errorf("%s: %w", f.Name(), ErrBusy)
}

// named tells whether the file still has the name that it was opened by.
func named(f *os.File) bool {
	own, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(f.Name())
	return err == nil && os.SameFile(own, there)
}

// rotate puts the file, which is synced, aside and begins a new one. If that
// fails halfway the next one to open the log goes on from there: another try here
// could rename a new file over the former.
func (l *Log) rotate() error {
	former := filepath.Join(l.dir, formerName(l.head.Sequence))
	if err := os.Rename(l.file.Name(), former); err != nil {
		return err
	}
	f, err := openFile(l.dir)
	if err != nil {
		l.broken = err
		return err
	}
	l.file.Close()
	l.file, l.size = f, 0
	return nil
}

// resume finds the end of the log.
func (l *Log) resume(known Head) (err error) {
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
	case l.head == Head{}:
		slog.Warn("audit log: it begins anew, as it has to where its owner was restored from a backup",
			"dir", l.dir, "after entry", known.Sequence)
		l.head = known
	default:
		slog.Error("audit log: entries are missing at its end", "dir", l.dir, "last", l.head.Sequence, "expected", known.Sequence)
		l.skipTo(known)
	}
	return nil
}

// skipTo leaves a gap in the numbers. The chain goes on from the line that is
// there, if the file has one.
func (l *Log) skipTo(known Head) {
	l.head.Sequence = known.Sequence
	if l.size == 0 {
		l.head = known
	}
}

// endOfFormer gives the end of the last file that was put aside.
func (l *Log) endOfFormer() (Head, error) {
	paths, err := formerFiles(l.dir)
	if err != nil || len(paths) == 0 {
		return Head{}, err
	}
	f, err := os.Open(paths[len(paths)-1])
	if err != nil {
		return Head{}, err
	}
	defer f.Close()
	head, _, err := l.end(f)
	return head, err
}

// end reads the last entry of a file. What an interrupted write has left behind
// it is put aside.
func (l *Log) end(f *os.File) (Head, int64, error) {
	tail, start, err := readTail(f)
	if err != nil {
		return Head{}, 0, err
	}
	whole := wholeLines(tail)
	if torn := tail[len(whole):]; len(torn) > 0 {
		if err := l.putAside(f, torn, start+int64(len(whole))); err != nil {
			return Head{}, 0, err
		}
	}
	if len(whole) == 0 && start == 0 {
		return Head{}, 0, nil
	}
	last := whole[bytes.LastIndexByte(whole[:max(len(whole)-1, 0)], '\n')+1:]
	line, err := parseLine(last)
	if err != nil {
		return Head{}, 0, fmt.Errorf("%s: %w: its last line is no entry; move the file away to begin another", f.Name(), ErrDamaged)
	}
	return headAt(line.sequence, last), start + int64(len(whole)), nil
}

// readTail reads what an interrupted write may have left, and the line before it.
func readTail(f *os.File) (tail []byte, start int64, err error) {
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	start = max(0, info.Size()-maxUnsynced-maxLine)
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
func (l *Log) putAside(f *os.File, torn []byte, at int64) error {
	path := filepath.Join(l.dir, fmt.Sprintf("audit-torn-%d", time.Now().UnixNano()))
	slog.Warn("audit log: a write was interrupted", "file", f.Name(), "bytes", len(torn), "moved to", path)
	if err := durable.WriteForOwner(path, torn, 0o600); err != nil {
		return err
	}
	if err := f.Truncate(at); err != nil {
		return err
	}
	return f.Sync()
}

// line is what the log itself writes into a line.
type line struct {
	sequence uint64
	previous string
}

var errNoEntry = errors.New("no entry")

// parseLine reads a line with its line feed. It must be one JSON object that
// begins just as a Log writes it, so that there are no two ways to read it.
func parseLine(text []byte) (line, error) {
	rest, ok1 := bytes.CutPrefix(text, []byte(`{"sequence":`))
	digits, rest, ok2 := bytes.Cut(rest, []byte(`,"previous":"`))
	previous, _, ok3 := bytes.Cut(rest, []byte(`"`))
	sequence, err := strconv.ParseUint(string(digits), 10, 63)
	whole := bytes.HasSuffix(text, []byte("}\n")) && json.Valid(text)
	if !ok1 || !ok2 || !ok3 || err != nil || sequence == 0 || !whole {
		return line{}, errNoEntry
	}
	return line{sequence, string(previous)}, nil
}
