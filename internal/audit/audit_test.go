package audit

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.NewTextHandler(io.Discard, nil)))
	if dir := os.Getenv(killEnv); dir != "" {
		fmt.Fprintln(os.Stderr, appendForEver(dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// note is an entry as a user of the package has it.
type note struct {
	Who    string `json:"who"`
	Object string `json:"object,omitempty"`
}

func noted(i int) note { return note{"c", fmt.Sprint(i)} }

func open(t *testing.T, dir string, known Head) *Log {
	t.Helper()
	l, err := Open(dir, known)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() }) // most have closed it
	return l
}

func (l *Log) must(t *testing.T, durable bool, entries ...any) {
	t.Helper()
	if err := l.Append(durable, entries...); err != nil {
		t.Fatal(err)
	}
}

// appendNotes opens a log, notes n things one by one, and closes it.
func appendNotes(t *testing.T, dir string, known Head, n int) Head {
	t.Helper()
	l := open(t, dir, known)
	for i := range n {
		l.must(t, i%2 == 0, noted(i))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return l.Head()
}

func verify(t *testing.T, dir string, known Head) *Report {
	t.Helper()
	r, err := Verify(t.Context(), dir, known)
	if err != nil {
		t.Fatal(err)
	}
	if (r.Err() != nil) != (len(r.Problems) > 0) || r.Err() != nil && !errors.Is(r.Err(), ErrChanged) {
		t.Errorf("error is %v", r.Err())
	}
	return r
}

func wantWhole(t *testing.T, dir string, known Head, first, last uint64) {
	t.Helper()
	r := verify(t, dir, known)
	if r.First != first || r.Last != last || r.Entries != last-first+1 || len(r.Problems) != 0 {
		t.Errorf("%+v, want entries %d to %d", r, first, last)
	}
}

func current(dir string) string { return filepath.Join(dir, fileName) }

func text(t *testing.T, dir string) string {
	t.Helper()
	b, err := os.ReadFile(current(dir))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func replace(t *testing.T, dir, text string) {
	t.Helper()
	if err := os.WriteFile(current(dir), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestGoesOn(t *testing.T) {
	dir := t.TempDir()
	head := appendNotes(t, dir, Head{}, 3)
	wantWhole(t, dir, head, 1, 3)
	head = appendNotes(t, dir, head, 2)
	wantWhole(t, dir, head, 1, 5)
	wantWhole(t, dir, Head{}, 1, 5)
	if info, err := os.Stat(current(dir)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v, want mode 0600", info, err)
	}
	if r := verify(t, dir, head); r.Hash != head.Hash || head.Sequence != 5 {
		t.Errorf("%+v, the log says %+v", r, head)
	}
}

// TestFormat: other programs read these bytes; they never change.
func TestFormat(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Head{})
	l.must(t, true, noted(1), struct{}{}, map[string]string{"<": "\n"})
	want := `{"sequence":1,"previous":"0000000000000000000000000000000000000000000000000000000000000000","who":"c","object":"1"}
{"sequence":2,"previous":"7c116fa852dc30c3ac28df788bacba2f92cf9897c82bd80137e5a60e7e4431a8"}
{"sequence":3,"previous":"1a0fc2755278d5940dada5e2cb46ae96636d859da8d138ba573df17d35bc5b4f","\u003c":"\n"}
`
	if got := text(t, dir); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if r := verify(t, dir, Head{}); r.Err() != nil {
		t.Error(r.Err())
	}
}

// TestTogether: who appends at the same time shares writes, and every entry is
// there once, with those it came with.
func TestTogether(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Head{})
	var wg sync.WaitGroup
	const writers, each = 16, 20
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				if err := l.Append(i%3 == 0, noted(w*1000+i), noted(w*1000+500+i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	wantWhole(t, dir, l.Head(), 1, 2*writers*each)
	lines := strings.Split(text(t, dir), "\n")
	at := map[string]int{}
	for i, line := range lines {
		_, object, _ := strings.Cut(line, `"object":"`)
		at[object] = i
	}
	for w := range writers {
		for i := range each {
			if at[fmt.Sprintf("%d\"}", w*1000+500+i)]-at[fmt.Sprintf("%d\"}", w*1000+i)] != 1 {
				t.Fatalf("entry %d of writer %d has not its other one behind it", i, w)
			}
		}
	}
	if len(at) != 2*writers*each+1 { // with the end
		t.Errorf("%d different entries", len(at))
	}
}

// TestGroups: those that come while a write is under way are one group, as far as
// it may be; it is durable if one of them is.
func TestGroups(t *testing.T) {
	l := &Log{}
	large := &group{size: maxUnsynced - 100}
	join := func(g *group, want *group, wantFirst bool) {
		t.Helper()
		if got, first := l.join(g); got != want || first != wantFirst {
			t.Errorf("joined %p, first %v, want %p, %v", got, first, want, wantFirst)
		}
	}
	join(large, large, true)
	join(&group{size: 60, entries: [][]byte{nil}}, large, false)
	if large.durable || len(large.entries) != 1 {
		t.Errorf("%+v", large)
	}
	join(&group{size: 40, durable: true}, large, false)
	if !large.durable {
		t.Error("a durable entry in a group that is not")
	}
	next := &group{size: 1}
	join(next, next, true)
}

// TestSoonDurable: what has to be on disk is there when Append returns, the rest
// soon after.
func TestSoonDurable(t *testing.T) {
	l := open(t, t.TempDir(), Head{})
	unsynced := func() bool {
		l.writing.Lock()
		defer l.writing.Unlock()
		return l.unsynced > 0
	}
	if l.must(t, true, noted(1)); unsynced() {
		t.Error("a durable entry is not on disk")
	}
	l.must(t, false, noted(2))
	for end := time.Now().Add(10 * time.Second); unsynced(); time.Sleep(syncDelay / 10) {
		if time.Now().After(end) {
			t.Fatal("still not on disk")
		}
	}
	l.must(t, false, noted(3))
	if head, err := l.Sync(); err != nil || unsynced() || head.Sequence != 3 {
		t.Errorf("%+v %v", head, err)
	}
}

// TestUnsyncedIsBounded: the end of the log can be found whatever was lost.
func TestUnsyncedIsBounded(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Head{})
	l.must(t, true, noted(1))
	big := note{Who: strings.Repeat("x", MaxEntry-100)}
	for range 2 * maxUnsynced / MaxEntry {
		l.must(t, false, big)
		if l.writing.Lock(); l.unsynced > maxUnsynced {
			t.Fatalf("%d bytes are unsynced", l.unsynced)
		}
		l.writing.Unlock()
	}
	size := int64(len(text(t, dir)))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	// The largest group, lost but for the length of the file.
	if err := os.Truncate(current(dir), size+maxUnsynced); err != nil {
		t.Fatal(err)
	}
	head := l.Head()
	l = open(t, dir, head)
	if l.Head() != head || l.size != size {
		t.Errorf("%+v at %d, want %+v at %d", l.Head(), l.size, head, size)
	}
}

// TestEntries: what is no entry is refused, and alone.
func TestEntries(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Head{})
	long := func(n int) map[string]string { return map[string]string{"x": strings.Repeat("x", n-len(`{"x":""}`))} }
	l.must(t, true, long(MaxEntry))
	many := make([]any, maxUnsynced/100)
	for i := range many {
		many[i] = noted(i)
	}
	for _, bad := range [][]any{{long(MaxEntry + 1)}, {noted(1), "text"}, {[]int{1}}, {nil}, {(*note)(nil)}, {make(chan int)}, many} {
		if err := l.Append(true, bad...); err == nil {
			t.Errorf("%T was accepted", bad[len(bad)-1])
		}
	}
	l.must(t, true, noted(1))
	wantWhole(t, dir, l.Head(), 1, 2)
}

// TestOfOne: one at a time writes.
func TestOfOne(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Head{})
	if _, err := Open(dir, Head{}); !errors.Is(err, ErrBusy) {
		t.Errorf("error is %v", err)
	}
	l.full = 1
	for i := range 3 {
		l.must(t, true, noted(i))
		if _, err := Open(dir, Head{}); !errors.Is(err, ErrBusy) {
			t.Errorf("after a rotation: error is %v", err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	wantWhole(t, dir, appendNotes(t, dir, Head{}, 1), 1, 4)
}

// TestLockOfFormer: who opens the file just before it is put aside, and waits
// until its lock is free, does not get it.
func TestLockOfFormer(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Head{})
	l.must(t, true, noted(1))
	f, err := os.OpenFile(current(dir), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l.full = 1
	l.must(t, true, noted(2))
	if err := lock(f); !errors.Is(err, ErrBusy) {
		t.Errorf("error is %v", err)
	}
}

// limit sets a limit of this process until undo is called.
func limit(t *testing.T, resource int, n uint64) (undo func()) {
	t.Helper()
	var old unix.Rlimit
	if err := unix.Getrlimit(resource, &old); err != nil {
		t.Fatal(err)
	}
	set := func(l unix.Rlimit) {
		if err := unix.Setrlimit(resource, &l); err != nil {
			t.Fatal(err)
		}
	}
	set(unix.Rlimit{Cur: n, Max: old.Max})
	return func() { set(old) }
}

// TestNoRoom: an entry that fits only in part is taken back, and the log goes on
// when there is room again.
func TestNoRoom(t *testing.T) {
	signal.Ignore(unix.SIGXFSZ)
	defer signal.Reset(unix.SIGXFSZ)
	dir := t.TempDir()
	l := open(t, dir, Head{})
	l.must(t, true, noted(1))
	before := text(t, dir)
	undo := limit(t, unix.RLIMIT_FSIZE, uint64(l.size)+50)
	err := l.Append(true, noted(2))
	undo()
	if !errors.Is(err, unix.EFBIG) || text(t, dir) != before {
		t.Fatalf("%v, left\n%s", err, text(t, dir))
	}
	l.must(t, true, noted(2))
	wantWhole(t, dir, l.Head(), 1, 2)
}

// TestRotationFails: the file was put aside, and another could not be made.
func TestRotationFails(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Head{})
	l.must(t, true, noted(1))
	l.full = 1
	undo := limit(t, unix.RLIMIT_NOFILE, 0)
	err := l.Append(true, noted(2))
	undo()
	if !errors.Is(err, unix.EMFILE) {
		t.Fatal(err)
	}
	if err := l.Append(true, noted(2)); !errors.Is(err, unix.EMFILE) {
		t.Errorf("error is %v", err)
	}
	head := l.Head()
	_ = l.Close()
	wantWhole(t, dir, head, 1, 1)
	wantWhole(t, dir, appendNotes(t, dir, head, 1), 1, 2)
}

// TestFails: when an entry could not be written, the log ends before it.
func TestFails(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Head{})
	l.must(t, true, noted(1))
	l.file.Close()
	for range 2 {
		if err := l.Append(true, noted(2)); err == nil {
			t.Error("an entry was noted in a file that is closed")
		}
	}
	_ = l.Close()
	wantWhole(t, dir, Head{}, 1, 1)
}

func TestClosed(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Head{})
	l.must(t, false, noted(1))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Append(false, noted(2)); !errors.Is(err, errClosed) {
		t.Errorf("error is %v", err)
	}
	wantWhole(t, dir, l.Head(), 1, 1)
}
