package kek

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vmcrypt/vmcrypt/internal/faultproxy"
	"github.com/vmcrypt/vmcrypt/internal/testtool"
)

const (
	unlocks = 1000 // after a host was started
	atOnce  = 16   // of them
)

// TestStorm: when the first key manager dies in the middle of a thousand unlocks, none
// is lost. It says how long they took: when it hangs, nearly all should take no longer
// than hedgeAfter.
func TestStorm(t *testing.T) {
	testtool.Long(t)
	calm := storm(t, faultproxy.None)
	t.Logf("all is well: %v", calm)
	for _, f := range []faultproxy.Fault{faultproxy.Refuse, faultproxy.Reset, faultproxy.Hang} {
		got := storm(t, f)
		t.Logf("%s: %v; the median is %v more", f, got, got.median-calm.median)
	}
}

// times are how long unlocks took.
type times struct{ median, most, longest time.Duration } // most: all but 1 %

func (t times) String() string {
	return fmt.Sprintf("median %v, 99 %% within %v, all within %v", t.median, t.most, t.longest)
}

// storm fetches a key again and again. Half-way the first replica fails.
func storm(t *testing.T, f faultproxy.Fault) times {
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
	slices.Sort(took)
	return times{took[unlocks/2], took[unlocks*99/100], took[unlocks-1]}
}
