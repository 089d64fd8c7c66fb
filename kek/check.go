package kek

import (
	"context"
	"errors"
	"fmt"
)

// KeyResult says how a key manager has a key.
type KeyResult string

// What Canary and Survey can find.
const (
	KeyOK          KeyResult = "ok"
	KeyMissing     KeyResult = "missing"     // it knows no such key, or has destroyed it
	KeyDenied      KeyResult = "denied"      // it does not give it
	KeyInactive    KeyResult = "inactive"    // it gives it, but for unwrapping only
	KeyDifferent   KeyResult = "different"   // it has something else under the same ID
	KeyUnreachable KeyResult = "unreachable" // it was not to be had in time, is not to be trusted, or speaks no KMIP
)

// KeyCheck is how one key manager has a key.
type KeyCheck struct {
	Address string
	Result  KeyResult
	Detail  string // what is wrong; empty if Result is KeyOK
}

// Different is the check of a key that turns out not to be the right one.
func (k KeyCheck) Different(detail string) KeyCheck {
	k.Result, k.Detail = KeyDifferent, detail
	return k
}

// check asks every key manager of the cluster for a key, but those that are gone: those of
// the own site all at once and then those of others. What they give is compared, in constant
// time: where they differ, most of them are right, or else the first. The result is in the
// order of the configuration.
func (c *Cluster) check(ctx context.Context, id string, gone map[int]*fault) []KeyCheck {
	checks, keys := make([]KeyCheck, len(c.servers)), make([]*Key, len(c.servers))
	c.ownFirst(func(i int) {
		if gone[i] != nil {
			checks[i] = failed(gone[i])
		} else {
			checks[i], keys[i], _ = c.inspect(ctx, i, id)
		}
	})
	right := prevalent(keys)
	for i, key := range keys {
		if key != nil && !key.Material.Equal(right.Material) {
			checks[i] = checks[i].Different("it has other bytes under this ID than the other key managers")
		}
	}
	for _, key := range keys {
		key.Destroy()
	}
	return checks
}

// prevalent is the key of which there are the most, the first of them if there is a tie.
func prevalent(keys []*Key) (right *Key) {
	most := 0
	for _, key := range keys {
		n := 0
		for _, other := range keys {
			if key != nil && other != nil && key.Material.Equal(other.Material) {
				n++
			}
		}
		if n > most {
			right, most = key, n
		}
	}
	return right
}

// Survey asks every key manager of the cluster for each of the keys, the key managers
// beside each other. See hears what each has, with its place in the configuration and
// the key if it gives it, which is wiped when see returns. See may be called by several
// goroutines at once. A key manager that can't be reached is not asked again.
func (c *Cluster) Survey(ctx context.Context, ids []string, see func(id string, server int, check KeyCheck, key *Key)) {
	together(len(c.servers), func(i int) {
		var check KeyCheck
		var key *Key
		gone := false
		for _, id := range ids {
			if !gone {
				check, key, gone = c.inspect(ctx, i, id)
			}
			see(id, i, check, key)
			key.Destroy()
		}
	})
}

// inspect asks one key manager for a key, and tells whether it is no use to ask it for
// others.
func (c *Cluster) inspect(ctx context.Context, server int, id string) (_ KeyCheck, _ *Key, gone bool) {
	check := KeyCheck{Address: c.servers[server].Address, Result: KeyOK}
	key, err := c.servers[server].fetch(ctx, id)
	if err != nil {
		f := c.diagnose(check.Address, err)
		return failed(f), nil, f.isGone()
	}
	if key.State != Active {
		check.Result, check.Detail = KeyInactive, fmt.Sprintf("the key is %s", key.State)
	}
	return check, key, false
}

// fetch fetches a key from this server alone.
func (s *server) fetch(ctx context.Context, id string) (*Key, error) {
	if err := checkID(id); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	if err := s.cluster.pace(ctx); err != nil {
		return nil, err
	}
	return work(ctx, s, func(ctx context.Context, conn *session) (*Key, error) { return conn.get(ctx, id) })
}

// isGone tells whether it is no use to ask the key manager for anything.
func (f *fault) isGone() bool { return f.state == StateUnreachable || f.state == StateUntrusted }

// failed is the check of a key that was not to be had.
func failed(f *fault) KeyCheck { return KeyCheck{f.address, keyResult(f), f.Error()} }

// keyResult tells what it means for a key that it was not to be had.
func keyResult(f *fault) KeyResult {
	switch {
	case errors.Is(f, ErrNotFound), errors.Is(f, ErrDestroyed):
		return KeyMissing
	case errors.Is(f, ErrUnsuitable):
		return KeyDifferent
	case f.answered:
		return KeyDenied
	}
	return KeyUnreachable
}
