package blockcrypt

import (
	"slices"
	"sync"
)

// claims lets several users of a disk work side by side where their ranges are
// apart or both only read, and one after the other where they are not. Those who
// wait are served in the order in which they came, so nobody waits for ever.
type claims struct {
	mu    sync.Mutex
	ended sync.Cond
	queue []*claim // held and waiting, oldest first
}

// claim is the right to use the bytes from start up to end.
type claim struct {
	start, end int64
	exclusive  bool
}

func newClaims() *claims {
	c := new(claims)
	c.ended.L = &c.mu
	return c
}

// begin waits for the right to use a range. Whoever holds one must not ask for
// another.
func (c *claims) begin(start, end int64, exclusive bool) *claim {
	own := &claim{start, end, exclusive}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.queue = append(c.queue, own)
	for c.blocked(own) {
		c.ended.Wait()
	}
	return own
}

// end gives the right back.
func (c *claims) end(own *claim) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.Index(c.queue, own)
	c.queue = slices.Delete(c.queue, i, i+1)
	c.ended.Broadcast()
}

// blocked reports whether an older claim conflicts with own.
func (c *claims) blocked(own *claim) bool {
	for _, other := range c.queue {
		if other == own {
			return false
		}
		if other.conflicts(own) {
			return true
		}
	}
	return false
}

func (c *claim) conflicts(o *claim) bool {
	return (c.exclusive || o.exclusive) && c.start < o.end && o.start < c.end
}

// try is begin for those who only read and won't wait: nil if they would have to.
func (c *claims) try(start, end int64) *claim {
	own := &claim{start, end, false}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.blocked(own) {
		return nil
	}
	c.queue = append(c.queue, own)
	return own
}
