package kek

import (
	"context"
	"errors"
	"time"
)

// Exchange is something that was asked of a key manager. Nothing in it is secret.
type Exchange struct {
	Alias  string
	Server string // the key manager's address
	// Operation is KMIP's name of it, as in "Get", or "connect": to connect, to prove
	// who each side is and to agree on a version.
	Operation string
	// Result is one of the Result values.
	Result string
	Took   time.Duration
}

// The results of an Exchange.
const (
	ResultOK          = "ok"
	ResultUnreachable = string(StateUnreachable)
	ResultUntrusted   = string(StateUntrusted)
	ResultDenied      = string(StateDenied)
	ResultNotKMIP     = string(StateNotKMIP)
	ResultNotFound    = "not-found"
	ResultDestroyed   = "destroyed"
	ResultRefused     = "refused" // for another reason
	ResultCanceled    = "canceled"
)

// Observe has each exchange with the cluster's key managers told to observer, which may
// be called at the same time by several goroutines.
func (c *Cluster) Observe(observer func(Exchange)) { c.observe.Store(&observer) }

// watch tells how an exchange ended that began at some time.
func (c *Cluster) watch(ctx context.Context, address, operation string, begun time.Time, err *error) {
	observe := c.observe.Load()
	if observe == nil {
		return
	}
	(*observe)(Exchange{
		Alias: c.alias, Server: address, Operation: operation,
		Result: c.result(ctx, address, *err), Took: time.Since(begun),
	})
}

func (c *Cluster) result(ctx context.Context, address string, err error) string {
	switch {
	case err == nil:
		return ResultOK
	case errors.Is(ctx.Err(), context.Canceled):
		return ResultCanceled
	case errors.Is(err, ErrNotFound):
		return ResultNotFound
	case errors.Is(err, ErrDestroyed):
		return ResultDestroyed
	}
	f := c.diagnose(address, err)
	if f.answered && !errors.Is(f, ErrDenied) {
		return ResultRefused
	}
	return string(f.state)
}
