package page

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/vmcrypt/vmcrypt/agent/api"
)

const (
	freshTime  = 3 * time.Second  // that an overview is good for, at least
	restFactor = 4                // datastores are left alone for so many times as long as it took to read them
	loadTime   = 2 * time.Minute  // that an overview may take
	staleWait  = 4 * time.Second  // before an old overview is shown
	firstWait  = 15 * time.Second // before it is said that there is none yet
)

// errLoading is the error while there is no overview yet.
var errLoading = errors.New("the agent is still looking through the datastores")

// snapshot is an overview of some moment. With an error, it is the last there was, or nil.
type snapshot struct {
	overview *api.Overview
	at       time.Time
	err      error
}

// cache keeps an overview for all who look at it: one is expensive, as the datastores are
// read for it.
type cache struct {
	load  Overview
	fresh time.Duration

	mu      sync.Mutex
	last    snapshot
	until   time.Time     // that last is good
	loading chan struct{} // closed when the load under way ends; nil if there is none
}

func newCache(load Overview) *cache {
	return &cache{load: load, fresh: freshTime, last: snapshot{err: errLoading}}
}

// get gives an overview that is fresh or, if that takes too long, the last one.
func (c *cache) get(ctx context.Context) snapshot {
	loading, patience := c.refresh(ctx)
	if loading != nil {
		timer := time.NewTimer(patience)
		defer timer.Stop()
		select {
		case <-loading:
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}

// refresh sees to it that an overview is loaded unless there is a fresh one. It says for
// how long to wait for it.
func (c *cache) refresh(ctx context.Context) (<-chan struct{}, time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Now().Before(c.until) {
		return nil, 0
	}
	if c.loading == nil {
		c.loading = make(chan struct{})
		go c.reload(context.WithoutCancel(ctx)) // others wait for it, too
	}
	if c.last.overview == nil {
		return c.loading, firstWait
	}
	return c.loading, staleWait
}

func (c *cache) reload(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, loadTime)
	defer cancel()
	begun := time.Now()
	overview, err := c.load(ctx)
	ended := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last.err = err
	if err == nil {
		c.last = snapshot{overview: overview, at: ended}
	}
	c.until = ended.Add(max(c.fresh, restFactor*ended.Sub(begun)))
	close(c.loading)
	c.loading = nil
}
