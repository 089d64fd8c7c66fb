package agent

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/vmcrypt/vmcrypt/kek"
)

// Keys are the KEKs that workflows need which run at once. A KEK is fetched for the
// first of them, and wiped with the last. The zero value is ready to use.
type Keys struct {
	mu   sync.Mutex
	keys map[kekRef]*sharedKey
}

// sharedKey is a KEK for a number of workflows.
type sharedKey struct {
	users int // those that run, or wait for their turn: guarded by Keys.mu

	turn     chan struct{} // holds an element while somebody fetches; guards what follows
	key      *kek.Key      // nil until it was fetched
	failure  error         // of the last fetch that failed
	failures atomic.Uint32
}

// await counts one more workflow that needs a key. It may have to wait before it
// gets it; meanwhile the key is not wiped.
func (k *Keys) await(ref kekRef) *sharedKey {
	k.mu.Lock()
	defer k.mu.Unlock()
	s, ok := k.keys[ref]
	if !ok {
		if k.keys == nil {
			k.keys = make(map[kekRef]*sharedKey)
		}
		s = &sharedKey{turn: make(chan struct{}, 1)}
		k.keys[ref] = s
	}
	s.users++
	return s
}

// release is for a workflow that was counted, and needs the key no more.
func (k *Keys) release(ref kekRef) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.keys[ref]
	if s.users--; s.users > 0 {
		return
	}
	delete(k.keys, ref)
	if s.key != nil {
		s.key.Destroy()
	}
}

// get gives the key, which stays the Keys' own. A failure is that of all who wait for
// this fetch, unless it is of the fetching one's own context.
func (s *sharedKey) get(ctx context.Context, fetch func() (*kek.Key, error)) (*kek.Key, error) {
	before := s.failures.Load()
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	switch {
	case s.key != nil:
		return s.key, nil
	case s.failures.Load() != before:
		return nil, s.failure
	}
	key, err := fetch()
	switch {
	case err == nil:
		s.key = key
	case ctx.Err() == nil:
		s.failure = err
		s.failures.Add(1)
	}
	return key, err
}
