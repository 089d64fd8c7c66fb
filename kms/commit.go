package kms

import (
	"errors"
	"fmt"
	"sync"

	"go.etcd.io/bbolt"
)

// A commit costs two fsyncs, however much it holds. So updates that come while
// another is being committed wait, and then share the next commit: one of those
// who wait takes the turn and works for all. Who comes alone waits for nobody.

// errUnchanged rolls a transaction back in which nothing was changed.
var errUnchanged = errors.New("nothing to commit")

// update is a function that waits to be run, and where to tell its result.
type update struct {
	fn   func(*tx) error
	done chan error // of capacity 1
}

// committer lets updates share commits.
type committer struct {
	turn    chan struct{} // of capacity 1: full while somebody commits
	mu      sync.Mutex
	waiting []*update
	// failed is why a commit failed, guarded by turn. From then on it is unknown
	// what of the file is on disk, so nothing more is acknowledged.
	failed error
}

func (c *committer) add(u *update) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting = append(c.waiting, u)
}

func (c *committer) take() []*update {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := c.waiting
	c.waiting = nil
	return all
}

// update runs fn once and makes what it changed durable before it returns, or
// nothing of it if fn fails, whose error it then returns. Functions of other
// callers may run before or after fn in the same transaction; one that fails
// does not fail the others.
//
// Once a commit has failed, the store can still be read but no longer changed.
func (s *store) update(fn func(*tx) error) error {
	u := &update{fn, make(chan error, 1)}
	s.committer.add(u)
	select {
	case err := <-u.done:
		return err
	case s.committer.turn <- struct{}{}:
	}
	defer func() { <-s.committer.turn }()
	select {
	case err := <-u.done: // whoever had the turn before has done it
		return err
	default:
	}
	s.commit(s.committer.take())
	return <-u.done
}

// commit runs updates in one transaction and tells each its result. The caller
// has the turn.
func (s *store) commit(updates []*update) {
	results := make([]error, len(updates))
	err := s.committer.failed
	if err == nil {
		err = s.transact(updates, results)
	}
	for i, u := range updates {
		if results[i] == nil {
			results[i] = err
		}
		u.done <- results[i]
	}
}

// transact fails if the updates without a result of their own are not durable.
func (s *store) transact(updates []*update, results []error) error {
	committing := false
	var t *tx
	err := guard(func() error {
		return s.db.Update(func(b *bbolt.Tx) error {
			t = &tx{bolt: b, sealer: s.sealer, owners: &s.owners}
			err := runAll(t, updates, results)
			committing = err == nil
			return err
		})
	})
	switch {
	case errors.Is(err, errUnchanged):
		return nil
	case err != nil && committing:
		err = fmt.Errorf("%s: a change could not be written, and none will be until the key manager is restarted: %w", s.path, err)
		s.committer.failed = err
	case err == nil:
		t.noteOwners()
		s.noteLives(t.changes)
	}
	return err
}

// runAll fails where the transaction can't be gone on with.
func runAll(t *tx, updates []*update, results []error) error {
	for i, u := range updates {
		results[i] = t.attempt(u.fn)
		if p := (*panicked)(nil); errors.As(results[i], &p) {
			return results[i]
		}
	}
	if len(t.changes) == 0 {
		return errUnchanged
	}
	return nil
}
