package kek

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/gemalto/kmip-go/kmip14"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// ErrCanary means that no key manager of a cluster gives a key that it should.
var ErrCanary = errors.New("no key manager gives the key that it is tried with")

// fewKeys is of how many keys Canary takes one: some can be expired, or be revoked meanwhile.
const fewKeys = 16

// Canary tries the key managers of the cluster with an active key that one of them has for
// this client: that they answer does not prove that keys can be had. If one lacks a key that
// others have, it is that one, so that a replica that lags is found. Those that Status has
// just found to be gone are not asked. ErrNotFound if there is no key to try. Where none so
// much as tells of its keys, checks say why of each.
func (c *Cluster) Canary(ctx context.Context, found ...ServerStatus) (id string, checks []KeyCheck, err error) {
	lists, faults := c.activeKeys(ctx, goneOf(found))
	if len(lists) == 0 {
		for _, f := range faults {
			checks = append(checks, failed(f))
		}
		return "", checks, c.explain(ctx, faults...)
	}
	gone := map[int]*fault{}
	for i, f := range faults {
		if f != nil && f.isGone() {
			gone[i] = f
		}
	}
	candidates := unlike(lists)
	for _, id := range candidates[:min(len(candidates), fewKeys)] {
		if checks := c.check(ctx, id, gone); !isInactive(checks) {
			return id, checks, ctx.Err()
		}
	}
	return "", nil, fmt.Errorf("alias %q: %w that is active", c.alias, ErrNotFound)
}

// goneOf gives the faults of the servers, by address, that are gone.
func goneOf(found []ServerStatus) map[string]*fault {
	gone := map[string]*fault{}
	for _, s := range found {
		if l, ok := errors.AsType[*loneFault](s.Err); ok && l.isGone() {
			gone[s.Address] = l.fault
		}
	}
	return gone
}

// activeKeys gives the IDs of the active keys at each key manager that tells them, and of
// the others, by their places, why they do not. Those that are known to be gone are asked
// for nothing.
func (c *Cluster) activeKeys(ctx context.Context, known map[string]*fault) (lists [][]string, faults []*fault) {
	ids, faults := make([][]string, len(c.servers)), make([]*fault, len(c.servers))
	c.ownFirst(func(i int) {
		if faults[i] = known[c.servers[i].Address]; faults[i] != nil {
			return
		}
		var err error
		if ids[i], err = c.activeKeysAt(ctx, c.servers[i]); err != nil {
			faults[i] = c.diagnose(c.servers[i].Address, err)
		}
	})
	for i, f := range faults {
		if f == nil {
			lists = append(lists, ids[i])
		}
	}
	return lists, faults
}

// activeKeysAt gives none of a key manager that does not let anybody look for keys.
func (c *Cluster) activeKeysAt(ctx context.Context, s *server) ([]string, error) {
	if err := c.pace(ctx); err != nil {
		return nil, err
	}
	active := kmipwire.Attribute{AttributeName: kmipwire.AttrState, AttributeValue: kmip14.StateActive}
	return work(ctx, s, func(ctx context.Context, conn *session) ([]string, error) {
		ids, err := conn.locateAll(ctx, append(kekAttributes(), active))
		if r, refused := errors.AsType[*refusal](err); refused && r.reason == kmip14.ResultReasonOperationNotSupported {
			return nil, nil
		}
		return ids, err
	})
}

// unlike gives the IDs of all lists, those first that are not in all of them.
func unlike(lists [][]string) []string {
	in := map[string]int{}
	var all []string
	for _, id := range slices.Concat(lists...) {
		if in[id]++; in[id] == 1 {
			all = append(all, id)
		}
	}
	slices.SortStableFunc(all, func(a, b string) int { return min(in[a], len(lists)) - min(in[b], len(lists)) })
	return all
}

// isInactive tells whether a key is out of use: more key managers say so than give it. It is
// these that have not heard of it yet, not the others that fail.
func isInactive(checks []KeyCheck) bool {
	inactive := 0
	for _, k := range checks {
		switch k.Result {
		case KeyInactive:
			inactive++
		case KeyOK:
			inactive--
		case KeyMissing, KeyUnreachable:
		default:
			return false
		}
	}
	return inactive > 0
}
