package kek

import (
	"context"
	"fmt"

	"golang.org/x/time/rate"
)

// newLimiter limits how many operations are begun in a second; 0 means any number.
func newLimiter(perSecond int) *rate.Limiter {
	if perSecond == 0 {
		return rate.NewLimiter(rate.Inf, 0)
	}
	return rate.NewLimiter(rate.Limit(perSecond), 1)
}

// pace waits until one more operation may begin. It comes before servers are asked: one
// that is not asked yet is not to be taken for silent.
func (c *Cluster) pace(ctx context.Context) error {
	err := c.limiter.Wait(ctx)
	if ctx.Err() != nil {
		return c.explain(ctx)
	}
	if err != nil {
		return fmt.Errorf("alias %q: %w: maxRate: %w", c.alias, ErrUnavailable, &transportError{err})
	}
	return nil
}
