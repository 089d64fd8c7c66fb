package kek

import (
	"context"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vmcrypt/vmcrypt/internal/faultproxy"
	"github.com/vmcrypt/vmcrypt/internal/testtool"
)

const (
	unlocks = 1000 // after a host was started
	atOnce  = 64   // of them: far more than connections
	// bound is for what hangs: nothing takes so much longer than it should.
	bound = 20 * time.Second
)

// TestStorm: when the first key manager dies in the middle of a thousand unlocks, or
// hangs, none is lost, none waits for it much longer than hedgeAfter, and connections stay
// few. It says how long they took.
func TestStorm(t *testing.T) {
	testtool.Long(t)
	for _, f := range []faultproxy.Fault{faultproxy.Refuse, faultproxy.Hang} {
		took := storm(t, f)
		before, after, all := timesOf(took[:unlocks/2]), timesOf(took[unlocks/2:]), timesOf(took)
		t.Logf("%s: median %v before, %v more after; of all, 99 %% within %v, the last within %v",
			f, before.median, after.median-before.median, all.most, all.longest)
		if all.longest > defaultHedgeAfter+bound {
			t.Errorf("%s: an unlock took %v", f, all.longest)
		}
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
	open := countConnections(c)
	took := make([]time.Duration, unlocks)
	var wg sync.WaitGroup
	next := make(chan int)
	for range atOnce {
		wg.Go(func() {
			for i := range next {
				begun := time.Now()
				key, err := c.Get(t.Context(), id)
				took[i] = time.Since(begun)
				if err != nil {
					t.Errorf("unlock %d: %v", i, err)
					continue
				}
				key.Destroy()
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
	for i, address := range r.Addresses() {
		if most := open.most(address); most > defaultMaxConnections || i < 2 && most == 0 {
			t.Errorf("%s: replica %d had %d connections at once", f, i, most)
		}
	}
	return took
}

// census counts the connections of a cluster, as its side sees them: the other learns of their end
// when somebody may have another one already.
type census struct {
	mu        sync.Mutex
	now, peak map[string]int // by address
}

// countConnections counts from now on.
func countConnections(c *Cluster) *census {
	all := &census{now: map[string]int{}, peak: map[string]int{}}
	dial := c.dial
	c.dial = func(ctx context.Context, address string) (net.Conn, error) {
		all.add(address, 1)
		conn, err := dial(ctx, address)
		if err != nil {
			all.add(address, -1)
			return nil, err
		}
		return &counted{Conn: conn, ends: sync.OnceFunc(func() { all.add(address, -1) })}, nil
	}
	return all
}

func (c *census) add(address string, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now[address] += n
	c.peak[address] = max(c.peak[address], c.now[address])
}

// most is how many there were at once.
func (c *census) most(address string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.peak[address]
}

// counted is a connection that tells its end.
type counted struct {
	net.Conn
	ends func()
}

func (c *counted) Close() error {
	c.ends()
	return c.Conn.Close()
}

// TestHedgeOfThoseWhoQueue: who waits for a connection to a server that hangs is helped by
// the next one as soon as who has it.
func TestHedgeOfThoseWhoQueue(t *testing.T) {
	withReplicas(t, "maxConnections: 2", func(r replicas) {
		const callers = 12
		id := r.Replicas.Create(0)
		r.Proxies[0].Set(faultproxy.Hang)
		took := make([]time.Duration, callers)
		var wg sync.WaitGroup
		for i := range callers {
			wg.Go(func() {
				begun := time.Now()
				key, err := r.Cluster.Get(r.t.Context(), id)
				took[i] = time.Since(begun)
				if err != nil {
					r.t.Error(err)
				}
				key.Destroy()
			})
		}
		wg.Wait()
		if slices.ContainsFunc(took, func(d time.Duration) bool { return d != defaultHedgeAfter }) {
			r.t.Errorf("they took %v", took)
		}
	})
}

// TestHangingServerIsAskedLast: until it has answered who looks after it. So those who need
// keys wait for it once, however long it hangs.
func TestHangingServerIsAskedLast(t *testing.T) {
	withReplicas(t, "", func(r replicas) {
		id := r.Replicas.Create(0)
		r.Proxies[0].Set(faultproxy.Hang)
		r.get(id)
		for begun := time.Now(); time.Since(begun) < 3*defaultTimeout; time.Sleep(5 * time.Second) {
			if o := r.get(id); o.err != nil || o.took != 0 {
				r.t.Fatalf("after %v it took %v, %v", time.Since(begun), o.took, o.err)
			}
		}
		r.Proxies[0].Set(faultproxy.None)
		time.Sleep(defaultTimeout + maxRest)
		synctest.Wait()
		r.get(id)
		if servers := r.Journal.Servers(); len(servers) != 1 || servers[0] != r.Addresses()[0] {
			r.t.Errorf("%v were asked, though the first is back", servers)
		}
	})
}
