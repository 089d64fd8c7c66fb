package kms

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/gemalto/kmip-go/kmip14"
	"github.com/google/uuid"
	"golang.org/x/sys/unix"
)

// openHome gives the store of a home, open for writing until the test ends.
func openHome(t testing.TB, h Home) *store {
	t.Helper()
	s, err := h.open(forWriting, storeWait)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.close() })
	return s
}

func newObject(owner string, names ...string) *object {
	o := &object{id: uuid.New(), material: []byte("0123456789abcdef")}
	o.Type, o.Algorithm, o.Length, o.UsageMask, o.State = 2, 3, 128, 12, 1
	o.Owner = owner
	for _, n := range names {
		o.Names = append(o.Names, name{n, 1})
	}
	return o
}

// hold keeps the committer's turn until release is called, so that updates
// pile up.
func hold(s *store) (release func()) {
	s.committer.turn <- struct{}{}
	return func() { <-s.committer.turn }
}

// pile starts updates that wait, in their order, and returns their results.
func pile(s *store, fns ...func(*tx) error) (wait func() []error) {
	release := hold(s)
	results := make([]error, len(fns))
	var wg sync.WaitGroup
	for i, fn := range fns {
		wg.Go(func() { results[i] = s.update(fn) })
		for s.committer.len() != i+1 { //nolint:revive // not long
		}
	}
	return func() []error {
		release()
		wg.Wait()
		return results
	}
}

func (c *committer) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.waiting)
}

func wantObjects(t *testing.T, s *store, want int) {
	t.Helper()
	c, err := s.count()
	if err != nil {
		t.Fatal(err)
	}
	if c.Objects != want || int(c.Sequence) != want {
		t.Errorf("%+v, want %d objects", c, want)
	}
}

// TestUpdatesShareACommit: all that wait at a time are written at once, each
// function runs once, and each caller gets its own error.
func TestUpdatesShareACommit(t *testing.T) {
	t.Parallel()
	s := openHome(t, newHome(t))
	failed := errors.New("mine")
	runs := make([]int, 20)
	var fns []func(*tx) error
	for i := range runs {
		fns = append(fns, func(t *tx) error {
			runs[i]++
			if err := t.add(newObject("me", fmt.Sprint(i))); err != nil {
				return err
			}
			if i%5 == 3 {
				return failed
			}
			return nil
		})
	}
	txid := lastTx(t, s)
	for i, err := range pile(s, fns...)() {
		if (i%5 == 3) != errors.Is(err, failed) || i%5 != 3 && err != nil {
			t.Errorf("update %d: %v", i, err)
		}
		if runs[i] != 1 {
			t.Errorf("update %d ran %d times", i, runs[i])
		}
	}
	if n := lastTx(t, s) - txid; n != 1 {
		t.Errorf("%d commits for %d updates", n, len(fns))
	}
	wantObjects(t, s, 16)
}

// lastTx is the number of the last transaction that was committed.
func lastTx(t *testing.T, s *store) (id int) {
	t.Helper()
	if err := s.view(func(t *tx) error { id = t.bolt.ID(); return nil }); err != nil {
		t.Fatal(err)
	}
	return id
}

// TestFailedUpdateLeavesNothing: names, records, notes and the sequence are as
// if it had not run, for those that follow in the same transaction as well.
func TestFailedUpdateLeavesNothing(t *testing.T) {
	t.Parallel()
	s := openHome(t, newHome(t))
	first, second := newObject("me", "a", "b"), newObject("me", "c")
	if err := s.update(func(t *tx) error { return t.add(first) }); err != nil {
		t.Fatal(err)
	}
	results := pile(s,
		func(t *tx) error {
			o, err := t.get(first.id)
			if err != nil {
				return err
			}
			o.Names = []name{{"c", 1}, {"a", 1}}
			return errors.Join(t.put(o), t.putNote(clientsBucket, "n", 1), t.add(newObject("me", "d")), errors.New("after all"))
		},
		func(t *tx) error { return t.add(second) },
		func(t *tx) error { return t.add(newObject("me", "b")) },
	)()
	if results[0] == nil || results[1] != nil || !errors.Is(results[2], errNameTaken) {
		t.Errorf("results %v", results)
	}
	wantObjects(t, s, 2)
	if err := s.view(func(x *tx) error {
		for name, want := range map[string]*object{"a": first, "b": first, "c": second} {
			if id, err := x.find("me", name1(name)); err != nil || id != want.id {
				t.Errorf("name %s leads to %s, %v", name, id, err)
			}
		}
		note := 0
		if err := x.getNote(clientsBucket, "n", &note); err != nil || note != 0 {
			t.Errorf("note %d, %v", note, err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func name1(value string) name { return name{value, 1} }

// TestPanicFailsTheCommit: nobody knows what a panic left behind.
func TestPanicFailsTheCommit(t *testing.T) {
	t.Parallel()
	s := openHome(t, newHome(t))
	results := pile(s,
		func(t *tx) error { return t.add(newObject("me")) },
		func(*tx) error { panic("a bug") },
		func(t *tx) error { return t.add(newObject("me")) },
	)()
	for i, err := range results {
		if !errors.Is(err, ErrDamaged) {
			t.Errorf("update %d: %v", i, err)
		}
	}
	wantObjects(t, s, 0)
	if err := s.update(func(t *tx) error { return t.add(newObject("me")) }); err != nil {
		t.Fatal(err)
	}
	wantObjects(t, s, 1)
}

func TestUpdateThatChangesNothing(t *testing.T) {
	t.Parallel()
	s := openHome(t, newHome(t))
	txid := lastTx(t, s)
	if err := s.update(func(*tx) error { return nil }); err != nil {
		t.Error(err)
	}
	if n := lastTx(t, s) - txid; n != 0 {
		t.Errorf("%d commits of nothing", n)
	}
}

func TestNamesBelongToOwners(t *testing.T) {
	t.Parallel()
	s := openHome(t, newHome(t))
	// Encoded without lengths, these two owners and names would be the same.
	for _, o := range []*object{newObject("me", "key"), newObject("you", "key"), newObject("m", "e\x00\x00\x00\x01key")} {
		if err := s.update(func(t *tx) error { return t.add(o) }); err != nil {
			t.Error(err)
		}
	}
	if err := s.update(func(t *tx) error { return t.add(newObject("you", "other", "key")) }); !errors.Is(err, errNameTaken) {
		t.Errorf("error is %v", err)
	}
	wantObjects(t, s, 3)
}

// TestFailedWrite: once the disk has refused a commit nothing more is
// acknowledged, until the store is opened anew.
func TestFailedWrite(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	s, err := h.open(forWriting, storeWait)
	if err != nil {
		t.Fatal(err)
	}
	add := func(t *tx) error { return t.add(newObject("me")) }
	if err := s.update(add); err != nil {
		t.Fatal(err)
	}
	restore := fillDisk(t, h.path(storeFile))
	if err := s.update(add); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("error is %v", err)
	}
	restore()
	if err := s.update(add); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "restarted") {
		t.Errorf("after a failed commit: %v", err)
	}
	if err := h.rotate(s, nil); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("rotation after a failed commit: %v", err)
	}
	wantObjects(t, s, 1)
	s.close()
	s = openHome(t, h)
	if err := s.update(add); err != nil {
		t.Error(err)
	}
	wantObjects(t, s, 2)
	s.close()
}

// fillDisk has every write to a file that is open fail, until restore is called.
func fillDisk(t *testing.T, path string) (restore func()) {
	t.Helper()
	fd := descriptorOf(t, path)
	saved, err := unix.Dup(fd)
	if err != nil {
		t.Fatal(err)
	}
	full, err := unix.Open("/dev/full", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(full)
	if err := unix.Dup3(full, fd, unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := errors.Join(unix.Dup3(saved, fd, unix.O_CLOEXEC), unix.Close(saved)); err != nil {
			t.Fatal(err)
		}
	}
}

func descriptorOf(t *testing.T, path string) (fd int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if target, _ := os.Readlink(filepath.Join("/proc/self/fd", e.Name())); target == path {
			_, err := fmt.Sscan(e.Name(), &fd)
			if err == nil {
				return fd
			}
		}
	}
	t.Fatalf("%s is not open", path)
	return 0
}

// BenchmarkCreate makes keys over as many connections, each durable before it
// is acknowledged.
func BenchmarkCreate(b *testing.B) {
	for _, clients := range []int{1, 32} {
		b.Run(fmt.Sprintf("%d-clients", clients), func(b *testing.B) { benchmarkCreate(b, clients) })
	}
}

func benchmarkCreate(b *testing.B, clients int) {
	h := homeIn(filepath.Join(b.TempDir(), "home"))
	if err := h.Init(nil); err != nil {
		b.Fatal(err)
	}
	serve(b, h)
	all := make([]*client, clients)
	for i := range all {
		all[i] = dial(b, h)
	}
	var left sync.WaitGroup
	work := make(chan struct{})
	b.ResetTimer()
	for _, c := range all {
		left.Go(func() {
			for range work {
				if item := c.send(kmip14.OperationCreate, createRequest()); item.ResultStatus != kmip14.ResultStatusSuccess {
					b.Error(item.ResultMessage)
				}
			}
		})
	}
	for range b.N {
		work <- struct{}{}
	}
	close(work)
	left.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "creates/s")
}
