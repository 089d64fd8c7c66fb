package daemon

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/vmcrypt/vmcrypt/agent/api"
	"github.com/vmcrypt/vmcrypt/kek"
)

// Alias is a cluster of key managers.
type Alias struct {
	Name    string
	Servers []string // their addresses, in the order in which they are tried
}

// healthPause is between two times that key managers are asked how they are.
const healthPause = time.Minute

// The states of a key manager besides those of package kek.
const (
	stateUnknown       = "unknown"       // not asked yet
	stateMisconfigured = "misconfigured" // the own certificate, its key or the authorities can't be read
)

// health is how the key managers were when they were last asked.
type health struct {
	again chan struct{} // tells keepAsking not to wait

	mu      sync.Mutex
	servers []api.KeyManager     // in the order of the configuration
	tried   map[string]time.Time // when the key managers of an alias were last tried with a key
}

func newHealth(aliases []Alias) *health {
	h := &health{again: make(chan struct{}, 1), tried: map[string]time.Time{}}
	for _, a := range aliases {
		for _, address := range a.Servers {
			h.servers = append(h.servers, api.KeyManager{Alias: a.Name, Address: address, State: stateUnknown})
		}
	}
	return h
}

// all gives a copy.
func (h *health) all() []api.KeyManager {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.servers)
}

// keepAsking asks all key managers how they are until the agent ends.
func (d *daemon) keepAsking() {
	for {
		var asking sync.WaitGroup
		for _, a := range d.Aliases {
			asking.Go(func() {
				if asked := d.askAlias(d.ctx, a); d.ctx.Err() == nil { // else nobody waited for answers
					d.health.set(a.Name, asked)
				}
			})
		}
		asking.Wait()
		select {
		case <-time.After(healthPause):
		case <-d.health.again:
		case <-d.ctx.Done():
			return
		}
	}
}

// askAlias asks the key managers of an alias, with the certificates as they are now.
func (d *daemon) askAlias(ctx context.Context, a Alias) (all []api.KeyManager) {
	now := time.Now().UTC()
	cluster, err := d.Host.Cluster(a.Name)
	if err != nil {
		for _, address := range a.Servers {
			all = append(all, api.KeyManager{Alias: a.Name, Address: address, State: stateMisconfigured, Checked: &now, Problem: err.Error()})
		}
		return all
	}
	expires := cluster.Expires()
	for _, s := range cluster.Status(ctx) {
		k := keyManager(a.Name, s)
		k.Checked, k.ClientExpires = &now, &expires
		all = append(all, k)
	}
	d.health.recall(a.Name, all)
	if slices.ContainsFunc(all, isOK) && d.health.isDue(a.Name, now) {
		if try(ctx, cluster, all) {
			d.health.noteTried(a.Name, now)
		}
		d.usedKeys()
	}
	return all
}

// canaryPause is between two times that key managers are tried with a key: that one
// answers does not prove that keys can be had.
const canaryPause = 5 * time.Minute

// isDue tells whether the key managers of an alias are to be tried.
func (h *health) isDue(alias string, now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return now.Sub(h.tried[alias]) >= canaryPause
}

func (h *health) noteTried(alias string, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tried[alias] = now
}

// recall notes what came of it when the key managers of an alias were last tried.
func (h *health) recall(alias string, all []api.KeyManager) {
	h.mu.Lock()
	defer h.mu.Unlock()
	i := 0
	for _, was := range h.servers {
		if was.Alias == alias && i < len(all) {
			all[i].Canary, all[i].CanaryProblem = was.Canary, was.CanaryProblem
			i++
		}
	}
}

// try notes how each key manager gives a key. Without one to try, or if none answers,
// nothing is known of that: it is false.
func try(ctx context.Context, cluster *kek.Cluster, all []api.KeyManager) bool {
	for i := range all {
		all[i].Canary, all[i].CanaryProblem = "", ""
	}
	id, checks, err := cluster.Canary(ctx)
	if err != nil {
		return false
	}
	for i, k := range checks {
		all[i].Canary = string(k.Result)
		if k.Detail != "" {
			all[i].CanaryProblem = "key " + id + ": " + k.Detail
		}
	}
	return true
}

func keyManager(alias string, s kek.ServerStatus) api.KeyManager {
	k := api.KeyManager{
		Alias: alias, Address: s.Address, State: string(s.State), Version: s.Version,
		TLS: s.TLS, Vendor: s.Vendor, LatencyMs: float64(s.Latency.Microseconds()) / 1000,
	}
	if s.Err != nil {
		k.Problem = s.Err.Error()
	}
	if !s.Expires.IsZero() {
		k.Expires = &s.Expires
	}
	return k
}

// set notes how the key managers of an alias are, and logs what is new. What a server
// showed once stays known while it can't be asked.
func (h *health) set(alias string, asked []api.KeyManager) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, now := range asked {
		i := slices.IndexFunc(h.servers, func(k api.KeyManager) bool { return k.Alias == alias && k.Address == now.Address })
		if i < 0 {
			continue
		}
		was := h.servers[i]
		if now.Expires == nil {
			now.Expires = was.Expires
		}
		h.servers[i] = now
		if was.State != now.State {
			logHealth(was, now)
		}
		if was.Canary != now.Canary && hasFailed(now) {
			slog.Warn("a key manager does not give a key that it should", "alias", now.Alias, "address", now.Address,
				"result", now.Canary, "error", errors.New(now.CanaryProblem))
		}
		logExpiry(was, now)
	}
}

func logHealth(was, now api.KeyManager) {
	log := slog.With("alias", now.Alias, "address", now.Address)
	switch {
	case now.State != string(kek.StateOK):
		log.Warn("a key manager can't be used", "state", now.State, "error", errors.New(now.Problem))
	case was.State != stateUnknown:
		log.Info("a key manager can be used again")
	}
}

func isOK(k api.KeyManager) bool { return k.State == string(kek.StateOK) }

// hasFailed tells whether a key manager that answers does not give the key that it was
// tried with.
func hasFailed(k api.KeyManager) bool {
	return isOK(k) && k.Canary != "" && k.Canary != string(kek.KeyOK) && k.Canary != string(kek.KeyUnreachable)
}
