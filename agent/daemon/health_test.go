package daemon

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gemalto/kmip-go/kmip14"

	"github.com/vmcrypt/vmcrypt/agent"
	"github.com/vmcrypt/vmcrypt/internal/faultproxy"
	"github.com/vmcrypt/vmcrypt/kek"
)

// askingSites runs an agent's questions to key managers by a clock of its own, after
// prepare: r's first two are of the own site, the others are not. They have a key.
func askingSites(t *testing.T, prepare func(*faultproxy.Replicas), test func(t *testing.T, r *faultproxy.Replicas, h *health)) {
	synctest.Test(t, func(t *testing.T) {
		r := faultproxy.NewReplicasInMemory(t, 4)
		r.Create(0)
		prepare(r)
		config := kek.Config{ClientCert: r.ClientCert, ClientKey: r.ClientKey, CA: r.CA}
		for i, address := range r.Addresses() {
			config.Servers = append(config.Servers, kek.Server{Address: address, Site: []string{"here", "there"}[i/2]})
		}
		cluster, err := kek.Open("a", config, r.Dial)
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		aliases := []Alias{{"a", r.Addresses()}}
		d := &daemon{
			Config: Config{Aliases: aliases, Host: &agent.Host{Cluster: func(string) (*kek.Cluster, error) { return cluster, nil }}},
			ctx:    ctx, health: newHealth(aliases), unlocked: make(chan struct{}, 1),
		}
		asked := make(chan struct{})
		go func() {
			defer close(asked)
			d.keepAsking()
		}()
		test(t, r, d.health)
		stop()
		<-asked
	})
}

func states(h *health) (all []string) {
	for _, k := range h.all() {
		all = append(all, k.State)
	}
	return all
}

func canaries(h *health) (all []string) {
	for _, k := range h.all() {
		all = append(all, k.Canary)
	}
	return all
}

func wantAll(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// TestHealthAsksOwnSiteFirst: nothing is sent to another site before the key managers of
// the own one have answered, and one that is silent does not keep the own one's state from
// being known, now or a minute later.
func TestHealthAsksOwnSiteFirst(t *testing.T) {
	silent := func(r *faultproxy.Replicas) {
		r.Proxies[1].Set(faultproxy.Delay(time.Second))
		r.Proxies[2].Set(faultproxy.Vanish)
		r.Proxies[3].Set(faultproxy.Hang) // for a minute, until it has failed
	}
	askingSites(t, silent, func(t *testing.T, r *faultproxy.Replicas, h *health) {
		time.Sleep(500 * time.Millisecond)
		if servers := r.Journal.Servers(); len(servers) != 2 || slices.Contains(servers, r.Addresses()[2]) || slices.Contains(servers, r.Addresses()[3]) {
			t.Errorf("asked are %q", servers)
		}
		time.Sleep(30 * time.Second)
		wantAll(t, "the other site is silent", states(h), "ok", "ok", "unknown", "unknown")
		if servers := r.Journal.Servers(); len(servers) != 4 {
			t.Errorf("asked are %q", servers)
		}
		before := h.all()[0].Checked
		time.Sleep(healthPause + 10*time.Second)
		if again := h.all()[0].Checked; !again.After(*before) {
			t.Errorf("the own site was asked at %v, and not again after %v", before, again)
		}
		wantAll(t, "it was silent to the end", states(h), "ok", "ok", "unreachable", "unreachable")
		wantAll(t, "a key that they are asked for", canaries(h), "", "", "", "")
		time.Sleep(healthPause)
		wantAll(t, "a key", canaries(h), "ok", "ok", "unreachable", "unreachable")
		r.Proxies[2].Set(faultproxy.None)
		r.Proxies[3].Set(faultproxy.None)
		time.Sleep(8 * healthPause)
		wantAll(t, "all are well", states(h), "ok", "ok", "ok", "ok")
		wantAll(t, "a key of all", canaries(h), "ok", "ok", "ok", "ok")
	})
}

// TestHealthWithoutOwnSite: that none of the own site answers, keeps those of others from
// nothing.
func TestHealthWithoutOwnSite(t *testing.T) {
	gone := func(r *faultproxy.Replicas) {
		r.Proxies[0].Set(faultproxy.Refuse)
		r.Proxies[1].Set(faultproxy.Refuse)
		r.Proxies[3].Set(faultproxy.Deny, kmip14.OperationGet)
	}
	askingSites(t, gone, func(t *testing.T, _ *faultproxy.Replicas, h *health) {
		time.Sleep(30 * time.Second)
		wantAll(t, "states", states(h), "unreachable", "unreachable", "ok", "ok")
		wantAll(t, "a key", canaries(h), "unreachable", "unreachable", "ok", "denied")
	})
}
