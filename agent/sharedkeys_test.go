package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vmcrypt/vmcrypt/internal/secret"
	"github.com/vmcrypt/vmcrypt/kek"
)

func testKEK(t *testing.T) *kek.Key {
	t.Helper()
	material, err := secret.Random(32)
	if err != nil {
		t.Fatal(err)
	}
	return &kek.Key{ID: "1", Material: material}
}

// refused is a fetch that must not be.
func refused(t *testing.T) func() (*kek.Key, error) {
	return func() (*kek.Key, error) {
		t.Error("the key is fetched once more")
		return nil, errors.New("fetched once more")
	}
}

// TestKeysAreFetchedOnce: by whoever comes first, for all who are there.
func TestKeysAreFetchedOnce(t *testing.T) {
	keys, ref := new(Keys), kekRef{"prod", "1"}
	key := testKEK(t)
	var fetched atomic.Int32
	var users sync.WaitGroup
	var all []*awaited
	for range 100 {
		all = append(all, keys.await(ref))
	}
	for _, a := range all {
		users.Go(func() {
			got, err := a.get(t.Context(), func() (*kek.Key, error) {
				fetched.Add(1)
				return key, nil
			})
			if err != nil || got != key || got.Material.Len() != 32 {
				t.Errorf("got %v, %v", got, err)
			}
			keys.release(ref)
		})
	}
	users.Wait()
	if n := fetched.Load(); n != 1 {
		t.Errorf("fetched %d times", n)
	}
	if key.Material.Len() != 0 || len(keys.keys) != 0 {
		t.Error("the key outlives its users")
	}
}

// TestKeysFail: who waited while a fetch failed does not fetch again, who comes later
// does.
func TestKeysFail(t *testing.T) {
	gone, down := errors.New("gone"), fmt.Errorf("down: %w", kek.ErrUnavailable)
	for _, c := range []struct {
		err   error
		ref   kekRef
		again bool // whether the other key is fetched
	}{
		{gone, kekRef{"prod", "1"}, false},
		{gone, kekRef{"prod", "2"}, true},
		{down, kekRef{"prod", "1"}, false},
		{down, kekRef{"prod", "2"}, false},
		{down, kekRef{"test", "1"}, true},
	} {
		keys := new(Keys)
		first, other := keys.await(kekRef{"prod", "1"}), keys.await(c.ref)
		if _, err := first.get(t.Context(), func() (*kek.Key, error) { return nil, c.err }); !errors.Is(err, c.err) {
			t.Errorf("the first hears of %v", err)
		}
		key := testKEK(t)
		if c.again {
			if got, err := other.get(t.Context(), func() (*kek.Key, error) { return key, nil }); got != key || err != nil {
				t.Errorf("%v of %v: got %v, %v", c.err, c.ref, got, err)
			}
			continue
		}
		if _, err := other.get(t.Context(), refused(t)); !errors.Is(err, c.err) {
			t.Errorf("%v of %v: the other hears of %v", c.err, c.ref, err)
		}
		later := keys.await(c.ref)
		if got, err := later.get(t.Context(), func() (*kek.Key, error) { return key, nil }); got != key || err != nil {
			t.Errorf("later: got %v, %v", got, err)
		}
	}
}

// TestKeysOfWhoGoesAway: that somebody gave up is nobody else's failure.
func TestKeysOfWhoGoesAway(t *testing.T) {
	keys, ref := new(Keys), kekRef{"prod", "1"}
	impatient, patient := keys.await(ref), keys.await(ref)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := impatient.get(ctx, func() (*kek.Key, error) {
		cancel()
		return nil, fmt.Errorf("%w: %w", kek.ErrUnavailable, ctx.Err())
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("who gave up hears of %v", err)
	}
	keys.release(ref)
	key := testKEK(t)
	if got, err := patient.get(t.Context(), func() (*kek.Key, error) { return key, nil }); got != key || err != nil {
		t.Errorf("got %v, %v", got, err)
	}

	busy, waiting := make(chan struct{}), keys.await(kekRef{"prod", "2"})
	waiting.turn <- struct{}{} // somebody fetches
	ctx, cancel = context.WithCancel(t.Context())
	go func() {
		defer close(busy)
		if _, err := waiting.get(ctx, refused(t)); !errors.Is(err, context.Canceled) {
			t.Errorf("who waits no more hears of %v", err)
		}
	}()
	cancel()
	<-busy
}
