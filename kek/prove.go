package kek

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"
)

var (
	// ErrUnproven means that fewer key managers give the key than have to, or that one gives
	// another, or has taken it out of use.
	ErrUnproven = errors.New("the key is not at all the key managers that should have it")
	// errDifferent: a key manager gives other bytes under the same Unique Identifier.
	errDifferent = errors.New("it gives another key under this ID: its replicas disagree, so nothing may be encrypted with it")
	// errNotYet: a key manager has the key, but not its activation, which may follow.
	errNotYet = errors.New("it is not active here yet")
)

// replicaPause is between two times that a replica is asked for a key that it lacks.
const replicaPause = 500 * time.Millisecond

// patience is how often a replica can lack a key before somebody is told who is waited for.
const patience = 5

// Prove has every server of the cluster give a key that is about to be relied on, and
// compares what they give. One that lacks it, or its activation, is asked again for as long
// as a replica may take, unless it does not matter any more; one that can't be reached does
// not count. The error wraps ErrUnproven, or ErrUnavailable if none can be.
func (c *Cluster) Prove(ctx context.Context, key *Key) error {
	waiting, cancel := context.WithTimeout(ctx, c.replicaWait)
	defer cancel()
	proofs := make([]error, len(c.servers))
	var good atomic.Int32
	together(len(c.servers), func(i int) {
		proofs[i] = c.servers[i].prove(ctx, waiting, key)
		if c.isDecided(c.servers[i], proofs[i], &good) {
			cancel()
		}
	})
	if ctx.Err() != nil {
		return fmt.Errorf("alias %q: %w", c.alias, context.Cause(ctx))
	}
	return c.judge(ctx, key.ID, proofs)
}

// isDecided tells whether, with what one server says, nobody needs to wait for others that
// are late: enough have the key, or it can't be used.
func (c *Cluster) isDecided(s *server, proof error, good *atomic.Int32) bool {
	switch {
	case proof == nil:
		return int(good.Add(1)) >= c.minReplicas && c.minReplicas > 0
	case forbids(proof):
		return true
	}
	return c.minReplicas == 0 && !c.diagnose(s.Address, proof).isGone()
}

// prove asks one server until it gives the key, or waiting ends.
func (s *server) prove(ctx, waiting context.Context, key *Key) error {
	for tries := 1; ; tries++ {
		err := s.compare(ctx, key)
		if !errors.Is(err, ErrNotFound) && !errors.Is(err, errNotYet) {
			return err
		}
		if tries == patience {
			slog.Warn("a key manager is waited for, since it does not have a KEK yet", "alias", s.cluster.alias, "address", s.Address, "kek", key.ID)
		}
		select {
		case <-time.After(replicaPause):
		case <-waiting.Done():
			return err
		}
	}
}

// compare fetches a key, and compares it with the one that is known.
func (s *server) compare(ctx context.Context, key *Key) error {
	has, err := s.fetch(ctx, key.ID)
	if err != nil {
		return err
	}
	defer has.Destroy()
	if !has.Material.Equal(key.Material) {
		return errDifferent
	}
	if has.State == PreActive {
		return fmt.Errorf("%w: %w", ErrInactive, errNotYet)
	}
	return has.Usable()
}

// judge tells whether enough servers gave the key. One that answers, but not as it should,
// counts as one that does not give it.
func (c *Cluster) judge(ctx context.Context, id string, proofs []error) error {
	good, gone := 0, 0
	var faults []*fault
	for i, err := range proofs {
		if err == nil {
			good++
			continue
		}
		f := c.diagnose(c.servers[i].Address, err)
		if f.isGone() {
			gone++
		}
		faults = append(faults, f)
	}
	if gone == len(proofs) {
		return c.explain(ctx, faults...)
	}
	enough := good > 0 && good+gone == len(proofs)
	if c.minReplicas > 0 {
		enough = good >= c.minReplicas
	}
	if enough && !slices.ContainsFunc(proofs, forbids) {
		if len(faults) > 0 {
			slog.Warn("a KEK is not known to be at all key managers: until it is, what is encrypted under it is lost with those that have it",
				"alias", c.alias, "kek", id, "has", fmt.Sprintf("%d of %d", good, len(proofs)), "error", errors.New(list(faults)))
		}
		return nil
	}
	return fmt.Errorf("alias %q: key %q: %w: %d of %d give it: %s", c.alias, id, ErrUnproven, good, len(proofs), list(faults))
}

// forbids tells whether what one server says is enough to encrypt nothing with a key, however
// many give it: that it is another one, or that it was taken out of use.
func forbids(err error) bool {
	return errors.Is(err, errDifferent) || errors.Is(err, ErrDestroyed) ||
		errors.Is(err, ErrInactive) && !errors.Is(err, errNotYet)
}
