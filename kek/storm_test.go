package kek

import (
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vmcrypt/vmcrypt/internal/faultproxy"
	"github.com/vmcrypt/vmcrypt/internal/testtool"
)

const (
	unlocks = 1000 // after a host was started
	atOnce  = 8    // of them
)

// TestStorm: when the first key manager dies in the middle of a thousand unlocks, none
// is lost. It says how much longer they took from then on: when it hangs, nearly all
// should take no longer than hedgeAfter.
func TestStorm(t *testing.T) {
	testtool.Long(t)
	for _, f := range []faultproxy.Fault{faultproxy.Refuse, faultproxy.Hang} {
		took := storm(t, f)
		before, after, all := timesOf(took[:unlocks/2]), timesOf(took[unlocks/2:]), timesOf(took)
		t.Logf("%s: median %v before, %v more after; of all, 99 %% within %v, the last within %v",
			f, before.median, after.median-before.median, all.most, all.longest)
	}
}

// times are how long unlocks took.
type times struct{ median, most, longest time.Duration } // most: all but 1 %

func timesOf(took []time.Duration) times {
	took = slices.Sorted(slices.Values(took))
	n := len(took)
	return times{took[n/2], took[n*99/100], took[n-1]}
}

// storm fetches a key again and again, and tells how long that took each time. Half-way
// the first replica fails.
func storm(t *testing.T, f faultproxy.Fault) []time.Duration {
	t.Helper()
	r := faultproxy.NewReplicas(t, 3)
	id := r.Create(0)
	c := openReplicas(t, r, "")
	took := make([]time.Duration, unlocks)
	var wg sync.WaitGroup
	next := make(chan int)
	for range atOnce {
		wg.Go(func() {
			for i := range next {
				begun := time.Now()
				key, err := c.Get(t.Context(), id)
				if err != nil {
					t.Errorf("unlock %d: %v", i, err)
					continue
				}
				key.Destroy()
				took[i] = time.Since(begun)
			}
		})
	}
	for i := range unlocks {
		if i == unlocks/2 {
			r.Proxies[0].Set(f)
		}
		next <- i
	}
	close(next)
	wg.Wait()
	for i, p := range r.Proxies {
		if _, most := p.Connections(); most > 2*atOnce {
			t.Errorf("%s: replica %d had %d connections at once", f, i, most)
		}
	}
	return took
}
