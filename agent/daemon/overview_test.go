package daemon

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmcrypt/vmcrypt/agent"
	"github.com/vmcrypt/vmcrypt/agent/api"
	"github.com/vmcrypt/vmcrypt/kek"
)

func TestWarnings(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	in := func(days float64) *time.Time {
		then := now.Add(time.Duration(days * float64(day)))
		return &then
	}
	tests := map[string]struct {
		servers []api.KeyManager
		vms     []api.VM
		want    []string // severity, and words of the text
	}{
		"nothing": {},
		"well": {
			servers: []api.KeyManager{{Alias: "a", State: "ok", Expires: in(61), ClientExpires: in(61)}, {Alias: "b", State: "unknown"}},
			vms:     []api.VM{{State: api.Locked}, {State: api.Unlocked}},
		},
		"one of two": {
			servers: []api.KeyManager{{Alias: "a", State: "ok"}, {Alias: "a", State: "unreachable", Problem: "no route"}},
			want:    []string{"warning unreachable: no route"},
		},
		"both of two, and one of another": {
			servers: []api.KeyManager{{Alias: "b", State: "ok"}, {Alias: "a", State: "denied"}, {Alias: "a", State: "unreachable"}},
			want:    []string{"critical no key manager of a is left: denied", "critical no key manager of a is left: unreachable"},
		},
		"one that gives no keys": {
			servers: []api.KeyManager{
				{Alias: "a", State: "ok", Canary: "ok"}, {Alias: "a", State: "ok", Canary: "missing", CanaryProblem: "key 7: gone"},
				{Alias: "b", State: "ok", Canary: "denied", CanaryProblem: "key 8: no"}, {Alias: "c", State: "ok", Canary: "unreachable"},
			},
			want: []string{
				"critical no key manager of b is left: it does not give a key that it should: denied: key 8: no",
				"warning it does not give a key that it should: missing: key 7: gone",
			},
		},
		"certificates": {
			servers: []api.KeyManager{{Alias: "a", State: "ok", Expires: in(29.5), ClientExpires: in(-1)}},
			want: []string{
				"critical the certificate by which this host is known to it expired on 2029-12-31",
				"warning the key manager's certificate expires on 2030-01-30, in 29 days",
			},
		},
		"VMs": {
			vms: []api.VM{
				{State: api.Locked, Problem: "broken"},
				{State: api.Restarting, Problem: "no key manager answered"},
				{State: api.Locked, Problem: "disk scsi0:0 is encrypting", Disks: []api.Disk{{Conversion: &api.Conversion{Running: true}}}},
			},
			want: []string{"critical restarting: no key manager answered", "warning can't be unlocked: broken"},
		},
	}
	for name, test := range tests {
		got := warnings(&api.Overview{KeyManagers: test.servers, VMs: test.vms}, nil, now)
		same := slices.EqualFunc(got, test.want, func(w api.Warning, want string) bool {
			return strings.HasPrefix(w.Severity+" "+w.Text, want)
		})
		if !same {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// TestUnreadDatastores: of what is not listed, the overview says that it is not.
func TestUnreadDatastores(t *testing.T) {
	d := newTestDaemon(t)
	gone := filepath.Join(d.Datastores[0], "gone")
	deep := filepath.Join(d.Datastores[0], "deep")
	d.Datastores = []string{deep, gone}
	broken(t, filepath.Join(deep, strings.Repeat("x/", 17), "vm.vmx"))
	for range 2 {
		o, err := d.overview(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if w := o.Warnings; len(w) != 2 || w[0].Severity != api.Critical || w[0].Subject != gone || !strings.Contains(w[0].Text, "no such file") ||
			w[1].Severity != api.Notice || w[1].Subject != deep || !strings.Contains(w[1].Text, "deep") {
			t.Errorf("%+v", w)
		}
	}
	if err := errors.Join(os.Mkdir(gone, 0o700), os.RemoveAll(filepath.Join(deep, "x"))); err != nil {
		t.Fatal(err)
	}
	if o, err := d.overview(t.Context()); err != nil || len(o.Warnings) > 0 {
		t.Errorf("when all can be read again: %+v, %v", o, err)
	}
}

// TestHealth: what a key manager showed stays known while it does not answer.
func TestHealth(t *testing.T) {
	h := newHealth([]Alias{{"a", []string{"one:1", "two:2"}}, {"b", []string{"one:1"}}})
	ends := time.Now()
	h.set("a", []api.KeyManager{{Alias: "a", Address: "two:2", State: "ok", Expires: &ends}, {Alias: "a", Address: "three:3"}})
	h.set("a", []api.KeyManager{{Alias: "a", Address: "two:2", State: "unreachable"}})
	want := []api.KeyManager{
		{Alias: "a", Address: "one:1", State: "unknown"},
		{Alias: "a", Address: "two:2", State: "unreachable", Expires: &ends},
		{Alias: "b", Address: "one:1", State: "unknown"},
	}
	if got := h.all(); !slices.Equal(got, want) {
		t.Errorf("known is %+v", got)
	}
}

// TestHealthRemembersCanaries: key managers are tried with a key less often than they are
// asked how they are.
func TestHealthRemembersCanaries(t *testing.T) {
	h := newHealth([]Alias{{"b", []string{"one:1"}}, {"a", []string{"one:1", "two:2"}}})
	now := time.Now()
	for i, want := range []bool{true, false, false, true} {
		if h.isDue("a", now.Add(time.Duration(i)*2*time.Minute)) != want {
			t.Errorf("after %d min: it is not %v that they are tried", 2*i, want)
		}
		if i == 0 {
			h.noteTried("a", now)
		}
	}
	if !h.isDue("b", now) {
		t.Error("those of another alias are not tried")
	}
	h.setCanaries("a", "7", []kek.KeyCheck{{Address: "one:1", Result: kek.KeyOK}, {Address: "two:2", Result: kek.KeyMissing, Detail: "gone"}})
	h.set("a", []api.KeyManager{{Alias: "a", Address: "one:1", State: "ok"}, {Alias: "a", Address: "two:2", State: "ok"}})
	if k := h.all(); k[0].Canary != "" || k[1].Canary != "ok" || k[2].Canary != "missing" || k[2].CanaryProblem != "key 7: gone" {
		t.Errorf("%+v", k)
	}
	h.setCanaries("a", "", nil)
	if k := h.all(); k[1].Canary != "" || k[2].Canary != "" || k[2].CanaryProblem != "" {
		t.Errorf("with no key to try: %+v", k)
	}
}

// TestHealthAtTheEnd: a key manager whose answer the agent did not wait for is not said
// to be out of order.
func TestHealthAtTheEnd(t *testing.T) {
	d := newTestDaemon(t)
	ctx, stop := context.WithCancel(d.ctx)
	d.ctx, d.Aliases = ctx, []Alias{{"a", []string{"one:1"}}}
	d.health = newHealth(d.Aliases)
	d.Host = &agent.Host{Cluster: func(string) (*kek.Cluster, error) {
		stop()
		return nil, context.Cause(ctx)
	}}
	d.keepAsking()
	if k := d.health.all()[0]; k.State != stateUnknown {
		t.Errorf("it is %+v", k)
	}
}
