package agent

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/vmcrypt/vmcrypt/kek"
)

// Keys are the KEKs that workflows need which run at once. A KEK is fetched for the
// first of them, and wiped with the last. Where it can't be fetched, those who waited
// meanwhile don't try again. The zero value is ready to use.
type Keys struct {
	mu      sync.Mutex
	keys    map[kekRef]*sharedKey
	outages map[string]failedFetch // by alias: the last time that no key manager answered
}

// sharedKey is a KEK for a number of workflows.
type sharedKey struct {
	users int // those that run, or wait for their turn: guarded by Keys.mu

	turn    chan struct{} // holds an element while somebody fetches; guards what follows
	key     *kek.Key      // nil until it was fetched
	failure failedFetch   // the last
}

type failedFetch struct {
	err error
	at  time.Time
}

// since gives the error of a fetch that failed after a time.
func (f failedFetch) since(t time.Time) error {
	if f.at.After(t) {
		return f.err
	}
	return nil
}

// awaited is a key that a workflow needs, and since when.
type awaited struct {
	*sharedKey
	keys  *Keys
	ref   kekRef
	since time.Time
}

// await counts one more workflow that needs a key. It may have to wait before it
// gets it; meanwhile the key is not wiped.
func (k *Keys) await(ref kekRef) *awaited {
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
	return &awaited{s, k, ref, time.Now()}
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

// get gives the key, which stays the Keys' own.
func (a *awaited) get(ctx context.Context, fetch func() (*kek.Key, error)) (*kek.Key, error) {
	select {
	case a.turn <- struct{}{}:
		defer func() { <-a.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if a.key != nil {
		return a.key, nil
	}
	if err := a.failed(); err != nil {
		return nil, err
	}
	key, err := fetch()
	if err != nil && ctx.Err() == nil { // else it is nobody else's failure
		a.fails(err)
	}
	a.key = key
	return key, err
}

// failed gives the error of a fetch that failed while this workflow waited: of the same
// key, or of any key of an alias whose key managers don't answer.
func (a *awaited) failed() error {
	if err := a.failure.since(a.since); err != nil {
		return err
	}
	a.keys.mu.Lock()
	defer a.keys.mu.Unlock()
	return a.keys.outages[a.ref.alias].since(a.since)
}

func (a *awaited) fails(err error) {
	a.failure = failedFetch{err, time.Now()}
	if !errors.Is(err, kek.ErrUnavailable) {
		return
	}
	a.keys.mu.Lock()
	defer a.keys.mu.Unlock()
	if a.keys.outages == nil {
		a.keys.outages = make(map[string]failedFetch)
	}
	a.keys.outages[a.ref.alias] = a.failure
}
