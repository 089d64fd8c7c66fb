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

	mu        sync.Mutex
	servers   []api.KeyManager     // in the order of the configuration
	tried     map[string]time.Time // when the key managers of an alias were last tried with a key
	elsewhere map[string]bool      // the aliases whose key managers of other sites are being asked
}

func newHealth(aliases []Alias) *health {
	h := &health{again: make(chan struct{}, 1), tried: map[string]time.Time{}, elsewhere: map[string]bool{}}
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

// keepAsking asks all key managers how they are until the agent ends: of each alias those
// of the own site, and when they have answered those of others. These are not waited for: a
// site that is cut off does not keep the own one from being asked again.
func (d *daemon) keepAsking() {
	var elsewhere sync.WaitGroup
	defer elsewhere.Wait()
	for {
		var here sync.WaitGroup
		for _, a := range d.Aliases {
			here.Go(func() {
				if cluster := d.askHere(a); cluster != nil {
					elsewhere.Go(func() { d.askElsewhere(a, cluster) })
				}
			})
		}
		here.Wait()
		select {
		case <-time.After(healthPause):
		case <-d.health.again:
		case <-d.ctx.Done():
			return
		}
	}
}

// askHere asks the key managers of an alias that are of the own site, with the certificates
// as they are now. It gives the cluster, or nil if that can't be opened.
func (d *daemon) askHere(a Alias) *kek.Cluster {
	cluster, err := d.Host.Cluster(a.Name)
	if err != nil {
		d.note(a.Name, misconfigured(a, err))
		d.health.setCanaries(a.Name, "", nil)
		return nil
	}
	d.noteStatus(a.Name, cluster, cluster.StatusHere)
	return cluster
}

// askElsewhere asks those of other sites, and tries all with a key if that is due. Where
// this takes longer than the pause, it is not begun anew.
func (d *daemon) askElsewhere(a Alias, cluster *kek.Cluster) {
	if !d.health.begin(a.Name) {
		return
	}
	defer d.health.end(a.Name)
	d.noteStatus(a.Name, cluster, cluster.StatusElsewhere)
	if now := time.Now(); d.health.answers(a.Name) && d.health.isDue(a.Name, now) {
		d.try(a.Name, cluster, now)
		d.usedKeys()
	}
}

func misconfigured(a Alias, err error) (all []api.KeyManager) {
	now := time.Now().UTC()
	for _, address := range a.Servers {
		all = append(all, api.KeyManager{Alias: a.Name, Address: address, State: stateMisconfigured, Checked: &now, Problem: err.Error()})
	}
	return all
}

// noteStatus asks key managers of an alias how they are.
func (d *daemon) noteStatus(alias string, cluster *kek.Cluster, ask func(context.Context) []kek.ServerStatus) {
	now, expires := time.Now().UTC(), cluster.Expires()
	var all []api.KeyManager
	for _, s := range ask(d.ctx) {
		k := keyManager(alias, s)
		k.Checked, k.ClientExpires = &now, &expires
		all = append(all, k)
	}
	d.note(alias, all)
}

// note notes how key managers of an alias are, unless the agent ends: then nobody waited
// for their answers.
func (d *daemon) note(alias string, asked []api.KeyManager) {
	if d.ctx.Err() == nil {
		d.health.set(alias, asked)
	}
}

// begin tells whether the key managers of an alias at other sites may be asked: nobody does
// so until end.
func (h *health) begin(alias string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.elsewhere[alias] {
		return false
	}
	h.elsewhere[alias] = true
	return true
}

func (h *health) end(alias string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.elsewhere, alias)
}

// answers tells whether a key manager of an alias does.
func (h *health) answers(alias string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.ContainsFunc(h.servers, func(k api.KeyManager) bool { return k.Alias == alias && isOK(k) })
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

// try notes how each key manager of an alias gives a key. Without one to try, or if none
// answers, nothing is known of that.
func (d *daemon) try(alias string, cluster *kek.Cluster, now time.Time) {
	id, checks, err := cluster.Canary(d.ctx)
	if d.ctx.Err() != nil {
		return
	}
	if err == nil {
		d.health.noteTried(alias, now)
	}
	d.health.setCanaries(alias, id, checks)
}

// setCanaries notes how the key managers of an alias gave a key, and logs what is new. Of
// those that are not in checks, nothing is known any more.
func (h *health) setCanaries(alias, id string, checks []kek.KeyCheck) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range h.servers {
		k := &h.servers[i]
		if k.Alias != alias {
			continue
		}
		was := k.Canary
		k.Canary, k.CanaryProblem = canaryOf(k.Address, id, checks)
		if k.Canary != was && hasFailed(*k) {
			slog.Warn("a key manager does not give a key that it should", "alias", alias, "address", k.Address,
				"result", k.Canary, "error", errors.New(k.CanaryProblem))
		}
	}
}

func canaryOf(address, id string, checks []kek.KeyCheck) (result, problem string) {
	i := slices.IndexFunc(checks, func(k kek.KeyCheck) bool { return k.Address == address })
	switch {
	case i < 0:
		return "", ""
	case checks[i].Detail != "":
		problem = "key " + id + ": " + checks[i].Detail
	}
	return string(checks[i].Result), problem
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

// set notes how key managers of an alias are, and logs what is new. What a server showed
// once stays known while it can't be asked, and how it gave a key until it is tried again.
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
		now.Canary, now.CanaryProblem = was.Canary, was.CanaryProblem
		h.servers[i] = now
		if was.State != now.State {
			logHealth(was, now)
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
