package kek

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gemalto/kmip-go/kmip14"
	"go.yaml.in/yaml/v3"

	"github.com/vmcrypt/vmcrypt/internal/faultproxy"
)

// replicas are three key managers, and a cluster that is configured to use them in
// their order.
type replicas struct {
	*faultproxy.Replicas
	*Cluster
	t *testing.T
}

// withReplicas runs a test on replicas by a clock of its own: silence takes no time,
// and what a test measures is exact. More is YAML that the configuration has besides.
func withReplicas(t *testing.T, more string, test func(r replicas)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := faultproxy.NewReplicasInMemory(t, 3)
		test(replicas{r, openReplicas(t, r, more), t})
	})
}

func openReplicas(t *testing.T, r *faultproxy.Replicas, more string) *Cluster {
	t.Helper()
	config := Config{ClientCert: r.ClientCert, ClientKey: r.ClientKey, CA: r.CA}
	for _, address := range r.Addresses() {
		config.Servers = append(config.Servers, Server{Address: address})
	}
	if err := yaml.Unmarshal([]byte(more), &config); err != nil {
		t.Fatal(err)
	}
	return openConfig(t, config, r.Dial)
}

// faultOutcome is how a call of the cluster ended.
type faultOutcome struct {
	key  string // its ID, if there is one
	err  error
	took time.Duration
}

func (r replicas) timed(call func() (*Key, error)) faultOutcome {
	r.t.Helper()
	r.Journal.Clear()
	begun := time.Now()
	key, err := call()
	o := faultOutcome{err: err, took: time.Since(begun)}
	if (key == nil) != (err != nil) {
		r.t.Errorf("key %v, error %v", key, err)
	}
	if key != nil {
		o.key = key.ID
		if key.Usable() != nil {
			r.t.Errorf("the key is %s", key.State)
		}
		key.Destroy()
	}
	return o
}

func (r replicas) get(id string) faultOutcome {
	r.t.Helper()
	return r.timed(func() (*Key, error) { return r.Cluster.Get(r.t.Context(), id) })
}

func (r replicas) create() faultOutcome {
	r.t.Helper()
	return r.timed(func() (*Key, error) { return r.Cluster.Create(r.t.Context()) })
}

// fail has the replica at position fail, and those before it gone.
func (r replicas) fail(position int, f faultproxy.Fault, op kmip14.Operation) {
	for i := range position {
		r.Proxies[i].Set(faultproxy.Refuse)
	}
	if f == faultproxy.Refuse || f == faultproxy.Vanish {
		r.Proxies[position].Set(f)
		return
	}
	r.Proxies[position].Set(f, op)
}

// asked are the replicas that were asked for operations, by number and each once, in
// the order in which they first were.
func (r replicas) asked(operations ...string) []int {
	var asked []int
	for _, e := range r.Journal.Of(operations...) {
		if i := slices.Index(r.Addresses(), e.Server); !slices.Contains(asked, i) {
			asked = append(asked, i)
		}
	}
	return asked
}

// checkAsked checks which replicas were asked first.
func (r replicas) checkAsked(want []int, operations ...string) {
	r.t.Helper()
	if got := r.asked(operations...); !slices.Equal(got, want) {
		r.t.Errorf("replicas %v were asked, want %v: %+v", got, want, r.Journal.Events())
	}
}

// checkNamesAll checks that an error names each replica, with a reason.
func (r replicas) checkNamesAll(err error) {
	r.t.Helper()
	for _, address := range r.Addresses() {
		if _, reason, named := strings.Cut(fmt.Sprint(err), address+": "); !named || reason == "" {
			r.t.Errorf("the error has no reason of %s: %v", address, err)
		}
	}
}

// upTo is 0, 1 … last.
func upTo(last int) []int {
	var all []int
	for i := range last + 1 {
		all = append(all, i)
	}
	return all
}

// A way to fail: how long a client of one server takes to see it, and whether what it
// asked for is done all the same.
type way struct {
	fault faultproxy.Fault
	takes time.Duration
	done  bool
}

// limit is how long a server may be, by default.
const limit = 60 * time.Second

var ways = []way{
	{fault: faultproxy.Refuse},
	{fault: faultproxy.Vanish, takes: 10 * time.Second},
	{fault: faultproxy.Reset},
	{fault: faultproxy.Die},
	{fault: faultproxy.Hang, takes: limit},
	{fault: faultproxy.Garble, done: true},
	{fault: faultproxy.Lose, done: true},
	{fault: faultproxy.Swallow, takes: limit, done: true},
}

// eachWay runs a test for each way to fail and each position of the server that does.
func eachWay(t *testing.T, more string, positions []int, test func(r replicas, w way, position int)) {
	for _, w := range ways {
		for _, position := range positions {
			t.Run(fmt.Sprintf("%s at %d", w.fault, position), func(t *testing.T) {
				t.Parallel()
				withReplicas(t, more, func(r replicas) { test(r, w, position) })
			})
		}
	}
}

// TestGetUnderFaults: the next server is asked when one has failed, and after the time
// limit when it is silent.
func TestGetUnderFaults(t *testing.T) {
	eachWay(t, "hedgeAfter: 0", upTo(2), func(r replicas, w way, position int) {
		id := r.Replicas.Create(0)
		r.fail(position, w.fault, kmip14.OperationGet)
		o := r.get(id)
		if o.took != w.takes {
			r.t.Errorf("it took %v, want %v", o.took, w.takes)
		}
		r.checkAsked(upTo(min(position+1, 2)), "connect")
		if position < 2 {
			if o.err != nil || o.key != id {
				r.t.Errorf("key %q, %v", o.key, o.err)
			}
			return
		}
		expect(r.t, o.err, ErrUnavailable)
		r.checkNamesAll(o.err)
	})
}

// TestGetIsHedged: the next server is asked while one is silent, without giving that
// one up.
func TestGetIsHedged(t *testing.T) {
	for name, test := range map[string]struct {
		fault faultproxy.Fault
		takes time.Duration
		asked []int
	}{
		"a little late": {faultproxy.Delay(1900 * time.Millisecond), 1900 * time.Millisecond, upTo(0)},
		"late":          {faultproxy.Delay(5 * time.Second), 2 * time.Second, upTo(1)},
		"silent":        {faultproxy.Hang, 2 * time.Second, upTo(1)},
	} {
		t.Run(name, func(t *testing.T) {
			withReplicas(t, "", func(r replicas) {
				id := r.Replicas.Create(0)
				r.Proxies[0].Set(test.fault, kmip14.OperationGet)
				if o := r.get(id); o.err != nil || o.key != id || o.took != test.takes {
					r.t.Errorf("key %q after %v, %v", o.key, o.took, o.err)
				}
				r.checkAsked(test.asked, "Get")
			})
		})
	}
	t.Run("the first answers after all", func(t *testing.T) {
		withReplicas(t, "", func(r replicas) {
			id := r.Replicas.Create(0)
			r.Proxies[0].Set(faultproxy.Delay(5*time.Second), kmip14.OperationGet)
			r.Proxies[1].Set(faultproxy.Hang, kmip14.OperationGet)
			r.Proxies[2].Set(faultproxy.Hang, kmip14.OperationGet)
			if o := r.get(id); o.err != nil || o.key != id || o.took != 5*time.Second {
				r.t.Errorf("key %q after %v, %v", o.key, o.took, o.err)
			}
			r.checkAsked(upTo(2), "Get")
		})
	})
}

// checkMade checks that one key was made, and that it is the one that came back.
func (r replicas) checkMade(o faultOutcome) {
	r.t.Helper()
	if o.err != nil {
		r.t.Errorf("no key: %v", o.err)
	}
	if keys := r.Keys(2); !slices.Equal(keys, []string{o.key}) {
		r.t.Errorf("the keys are %v, and %q came back: %+v", keys, o.key, r.Journal.Of())
	}
}

// names are those of the keys that were asked for by Create, or looked for by Locate.
func (r replicas) names(operation string) []string {
	var names []string
	for _, e := range r.Journal.Of(operation) {
		names = append(names, e.Subject)
	}
	return names
}

// TestCreateUnderFaults: after an answer that did not come the key is looked for before
// another is made, under another name.
func TestCreateUnderFaults(t *testing.T) {
	eachWay(t, "", upTo(2), func(r replicas, w way, position int) {
		r.fail(position, w.fault, kmip14.OperationCreate)
		o := r.create()
		if o.took != w.takes {
			r.t.Errorf("it took %v, want %v", o.took, w.takes)
		}
		if position == 2 && o.err != nil {
			expect(r.t, o.err, ErrUnavailable)
			r.checkNamesAll(o.err)
			if keys := r.Keys(2); len(keys) > 1 {
				r.t.Errorf("keys %v were made", keys)
			}
			return
		}
		r.checkMade(o)
		r.checkCreates(w, position)
	})
}

// checkCreates checks by which names a key was made and looked for.
func (r replicas) checkCreates(w way, position int) {
	r.t.Helper()
	created, located := r.names("Create"), r.names("Locate")
	unasked := w.fault == faultproxy.Refuse || w.fault == faultproxy.Vanish
	want := 2
	if w.done || unasked {
		want = 1
	}
	if len(created) != want || (want == 2 && created[0] == created[1]) {
		r.t.Errorf("Create was asked for %q, want %d names", created, want)
	}
	if !unasked && (len(located) == 0 || located[0] != created[0]) {
		r.t.Errorf("%q was not looked for: %q", created[0], located)
	}
	if asked := r.asked("Create", "Locate"); !unasked && position < 2 && !slices.Equal(asked[:2], []int{position, position + 1}) {
		r.t.Errorf("replicas %v were asked, want %d and %d first", asked, position, position+1)
	}
}

// TestActivateUnderFaults: a key that was made is activated at the next server, or found
// to be active.
func TestActivateUnderFaults(t *testing.T) {
	eachWay(t, "", upTo(1), func(r replicas, w way, position int) {
		if w.fault == faultproxy.Refuse || w.fault == faultproxy.Vanish {
			r.t.Skip("this server made the key")
		}
		r.fail(position, w.fault, kmip14.OperationActivate)
		o := r.create()
		if o.took != w.takes {
			r.t.Errorf("it took %v, want %v", o.took, w.takes)
		}
		r.checkMade(o)
		if state := r.State(2, cmp.Or(o.key, r.Keys(2)[0])); state != kmip14.StateActive {
			r.t.Errorf("the key is %s", state)
		}
	})
}

// TestLocateUnderFaults: another server is asked whether a key was made. While none can
// tell, the key is used by nobody: if another is made, then under another name.
func TestLocateUnderFaults(t *testing.T) {
	eachWay(t, "", []int{1, 2}, func(r replicas, w way, position int) {
		r.Proxies[0].Set(faultproxy.Lose, kmip14.OperationCreate)
		r.Proxies[0].Set(faultproxy.Reset, kmip14.OperationLocate)
		if position == 2 {
			r.Proxies[1].Set(faultproxy.Refuse)
		}
		connects := w.fault != faultproxy.Refuse && w.fault != faultproxy.Vanish
		if connects {
			r.Proxies[position].Set(w.fault, kmip14.OperationLocate)
		} else {
			r.Proxies[position].Set(w.fault)
		}
		o := r.create()
		switch {
		case position == 1:
			r.checkMade(o)
			if len(r.names("Create")) != 1 {
				r.t.Errorf("Create was asked for %q", r.names("Create"))
			}
		case o.err != nil:
			expect(r.t, o.err, ErrUnavailable)
			r.checkNamesAll(o.err)
		case !connects:
			r.t.Error("a key came from nowhere")
		default:
			r.checkOrphan(o)
		}
	})
}

// checkOrphan checks that of the two keys that were made the second came back.
func (r replicas) checkOrphan(o faultOutcome) {
	r.t.Helper()
	names := r.names("Create")
	if len(names) != 2 || names[0] == names[1] || r.Name(0, o.key) != names[1] {
		r.t.Errorf("%q came back of %q", r.Name(0, o.key), names)
	}
}

// TestAllSilent: the error comes after each server had its time, and names all.
func TestAllSilent(t *testing.T) {
	for hedge, takes := range map[string]time.Duration{"0s": 3 * limit, "2s": limit + 4*time.Second, "1ns": limit + 2} {
		t.Run(hedge, func(t *testing.T) {
			withReplicas(t, "hedgeAfter: "+hedge, func(r replicas) {
				for _, p := range r.Proxies {
					p.Set(faultproxy.Hang)
				}
				o := r.get("some key")
				expect(r.t, o.err, ErrUnavailable)
				r.checkNamesAll(o.err)
				r.checkAsked(upTo(2), "connect")
				if o.took != takes {
					r.t.Errorf("it took %v, want %v", o.took, takes)
				}
			})
		})
	}
}

// TestReplicaLags: "not found" is the last word only when all say it.
func TestReplicaLags(t *testing.T) {
	withReplicas(t, "", func(r replicas) {
		r.Lag(0)
		id := r.Replicas.Create(1)
		if o := r.get(id); o.err != nil || o.key != id || o.took != 0 {
			r.t.Errorf("key %q after %v, %v", o.key, o.took, o.err)
		}
		r.checkAsked(upTo(1), "Get")
		o := r.get("no such key")
		expect(r.t, o.err, ErrNotFound)
		r.checkNamesAll(o.err)
		r.checkAsked(upTo(2), "Get")
	})
}

// TestCanaryFindsAReplicaThatLags: of all keys, the one is tried that not all have.
func TestCanaryFindsAReplicaThatLags(t *testing.T) {
	withReplicas(t, "", func(r replicas) {
		for range 3 {
			r.Replicas.Create(0)
		}
		r.Lag(2)
		late := r.Replicas.Create(1)
		id, checks, err := r.Canary(r.t.Context())
		if err != nil {
			r.t.Fatal(err)
		}
		if want := []KeyResult{KeyOK, KeyOK, KeyMissing}; id != late || !slices.Equal(results(checks), want) {
			r.t.Errorf("key %q is %v, want %q to be %v", id, checks, late, want)
		}
		r.Replicas.Revoke(0, late)
		id, checks, err = r.Canary(r.t.Context())
		if want := []KeyResult{KeyOK, KeyOK, KeyOK}; id == late || err != nil || !slices.Equal(results(checks), want) {
			r.t.Errorf("key %q is %v: %v", id, checks, err)
		}
	})
}

// TestCanaryTakesStatusesWord: a key manager that Status waited for in vain is not waited
// for once more.
func TestCanaryTakesStatusesWord(t *testing.T) {
	withReplicas(t, "", func(r replicas) {
		r.Replicas.Create(0)
		r.Proxies[1].Set(faultproxy.Hang)
		found := r.Status(r.t.Context())
		begun := time.Now()
		_, checks, err := r.Canary(r.t.Context(), found...)
		if want := []KeyResult{KeyOK, KeyUnreachable, KeyOK}; err != nil || !slices.Equal(results(checks), want) {
			r.t.Errorf("%v: %v", checks, err)
		}
		if took := time.Since(begun); took >= limit {
			r.t.Errorf("it took %v", took)
		}
		for _, p := range r.Proxies {
			p.Set(faultproxy.Hang)
		}
		found, begun = r.Status(r.t.Context()), time.Now()
		_, _, err = r.Canary(r.t.Context(), found...)
		if took := time.Since(begun); !errors.Is(err, ErrUnavailable) || took >= limit {
			r.t.Errorf("with none left it took %v: %v", took, err)
		}
	})
}

// TestCanaryHeedsARevocation: that one replica has not heard of it yet is no failure of those
// that have.
func TestCanaryHeedsARevocation(t *testing.T) {
	withReplicas(t, "", func(r replicas) {
		revoked := r.Replicas.Create(0)
		r.Lag(2)
		r.Replicas.Revoke(0, revoked)
		late := r.Replicas.Create(0)
		id, checks, err := r.Canary(r.t.Context())
		if want := []KeyResult{KeyOK, KeyOK, KeyMissing}; id != late || err != nil || !slices.Equal(results(checks), want) {
			r.t.Errorf("key %q is %v, want %q to be %v: %v", id, checks, late, want, err)
		}
	})
}

// TestLostAtAReplicaThatLags: a key that cannot be found is made again, under another
// name, and what was made first is never used.
func TestLostAtAReplicaThatLags(t *testing.T) {
	withReplicas(t, "", func(r replicas) {
		r.Lag(0)
		r.Proxies[0].Set(faultproxy.Lose, kmip14.OperationCreate)
		r.Proxies[0].Set(faultproxy.Reset, kmip14.OperationLocate)
		o := r.create()
		if o.err != nil {
			r.t.Fatal(o.err)
		}
		orphans := r.Keys(0)
		if keys := r.Keys(1); !slices.Equal(keys, []string{o.key}) || len(orphans) != 1 || orphans[0] == o.key {
			r.t.Errorf("%q came back; keys %v, at the replica that lags %v", o.key, keys, orphans)
		}
		if names := r.names("Create"); len(names) != 2 || names[0] == names[1] {
			r.t.Errorf("Create was asked for %q", names)
		}
	})
}

// TestRefusalsAreToldApart: what all servers say is what the error is.
func TestRefusalsAreToldApart(t *testing.T) {
	withReplicas(t, "", func(r replicas) {
		id := r.Replicas.Create(0)
		for f, want := range map[faultproxy.Fault]error{faultproxy.Deny: ErrDenied, faultproxy.Missing: ErrNotFound} {
			for _, p := range r.Proxies {
				p.Set(f, kmip14.OperationGet)
			}
			expect(r.t, r.get(id).err, want)
		}
		for _, p := range r.Proxies {
			p.Set(faultproxy.None)
		}
		r.Replicas.Revoke(0, id)
		r.Replicas.Destroy(0, id)
		expect(r.t, r.get(id).err, ErrDestroyed)
	})
}

// TestFailedServersRest: who has failed is asked last, for a time that grows, and first
// again when it is back.
func TestFailedServersRest(t *testing.T) {
	withReplicas(t, "", func(r replicas) {
		id := r.Replicas.Create(0)
		r.Proxies[0].Set(faultproxy.Refuse)
		r.checkGet(id, 0)
		r.checkAsked([]int{0, 1}, "connect")
		r.Proxies[0].Set(faultproxy.Hang)
		r.checkGet(id, 0)
		r.checkAsked([]int{1}, "Get")
		r.Proxies[0].Set(faultproxy.None)
		time.Sleep(10 * time.Minute)
		r.checkGet(id, 0)
		r.checkAsked([]int{0}, "Get")
	})
}

// TestRestsGrow: a server that can be connected to and gives no key rests for longer each
// time, though whoever looks after it finds it well.
func TestRestsGrow(t *testing.T) {
	withReplicas(t, "", func(r replicas) {
		id := r.Replicas.Create(0)
		r.Proxies[0].Set(faultproxy.Hang, kmip14.OperationGet)
		for rest := firstRest; rest < maxRest; rest *= 2 {
			r.checkGet(id, 2*time.Second)
			time.Sleep(rest - time.Millisecond)
			r.checkGet(id, 0)
			time.Sleep(2 * time.Millisecond)
		}
	})
}

// TestStatusIsHeeded: a server that was found to be gone is asked last.
func TestStatusIsHeeded(t *testing.T) {
	withReplicas(t, "", func(r replicas) {
		id := r.Replicas.Create(0)
		r.Proxies[0].Set(faultproxy.Hang)
		r.Cluster.Status(r.t.Context())
		r.checkGet(id, 0)
		r.checkAsked([]int{1}, "connect")
	})
}

// TestSlowServerIsBack: one who looks after a server gives it as long as those do who need a
// key.
func TestSlowServerIsBack(t *testing.T) {
	withReplicas(t, "timeout: 5s", func(r replicas) {
		id := r.Replicas.Create(0)
		r.Proxies[0].Set(faultproxy.Refuse)
		r.checkGet(id, 0)
		r.Proxies[0].Set(faultproxy.Delay(4 * time.Second))
		time.Sleep(10 * time.Minute)
		if !r.Cluster.servers[0].restsSince().IsZero() {
			r.t.Error("it is asked last, though it answers in time")
		}
	})
}

// TestRestEndsWithoutConnections: a cluster that is closed can be used, and has nobody look
// after its servers.
func TestRestEndsWithoutConnections(t *testing.T) {
	withReplicas(t, "", func(r replicas) {
		r.Proxies[0].Set(faultproxy.Refuse)
		r.checkGet(r.Replicas.Create(0), 0)
		r.Cluster.release()
		time.Sleep(maxRest)
		if !r.Cluster.servers[0].restsSince().IsZero() {
			r.t.Error("it is asked last for ever")
		}
	})
}

func (r replicas) checkGet(id string, takes time.Duration) {
	r.t.Helper()
	if o := r.get(id); o.err != nil || o.key != id || o.took != takes {
		r.t.Errorf("key %q after %v, want %v: %v", o.key, o.took, takes, o.err)
	}
}

// TestOtherSitesComeLast: the servers of another site are asked when each of the own has failed or
// timed out, and not before.
func TestOtherSitesComeLast(t *testing.T) {
	for name, test := range map[string]struct {
		fault faultproxy.Fault
		takes time.Duration
	}{"gone": {faultproxy.Refuse, 0}, "silent": {faultproxy.Hang, limit + 2*time.Second}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := faultproxy.NewReplicasInMemory(t, 6)
				id := r.Create(0)
				c := openReplicas(t, r, sitesYAML(r.Addresses()))
				for _, p := range r.Proxies[3:5] {
					p.Set(test.fault)
				}
				all := replicas{r, c, t}
				all.checkGet(id, min(test.takes, 4*time.Second))
				all.checkAsked([]int{3, 4, 5}, "connect")
				r.Proxies[5].Set(test.fault)
				fresh := replicas{r, openReplicas(t, r, sitesYAML(r.Addresses())), t}
				took := test.takes
				if took > 0 {
					took += 2 * time.Second // the third was asked that much later
				}
				fresh.checkGet(id, took)
				fresh.checkAsked([]int{3, 4, 5, 0}, "connect")
			})
		})
	}
}

// sitesYAML is the configuration of a host at the site of the last three servers.
func sitesYAML(addresses []string) string {
	text := "servers:\n"
	for i, a := range append(slices.Clone(addresses[3:]), addresses[:3]...) {
		text += fmt.Sprintf("  - {address: %q, site: %q}\n", a, string(rune('b'-i/3)))
	}
	return text
}

// TestRevokeUnderFaults: a key is revoked once, by a server that answers, and one that is
// silent has its time once.
func TestRevokeUnderFaults(t *testing.T) {
	eachWay(t, "", upTo(1), func(r replicas, w way, position int) {
		id := r.Replicas.Create(0)
		r.fail(position, w.fault, kmip14.OperationRevoke)
		begun := time.Now()
		if err := r.Cluster.Revoke(r.t.Context(), id, false); err != nil {
			r.t.Error(err)
		}
		if took := time.Since(begun); took != w.takes {
			r.t.Errorf("it took %v, want %v", took, w.takes)
		}
		if state := r.State(2, id); state != kmip14.StateDeactivated {
			r.t.Errorf("the key is %s", state)
		}
	})
}

// TestQueueOfASilentServer: those who wait for a connection to it give up as they would on
// it, and not one after the other.
func TestQueueOfASilentServer(t *testing.T) {
	withReplicas(t, "{hedgeAfter: 0s, maxConnections: 1}", func(r replicas) {
		id := r.Replicas.Create(0)
		r.Proxies[0].Set(faultproxy.Hang)
		begun := time.Now()
		r.getByTen(id)
		if took := time.Since(begun); took > 2*limit {
			r.t.Errorf("it took %v", took)
		}
	})
}

// TestQueueOfASlowServer: those who wait do so for as long as others are answered.
func TestQueueOfASlowServer(t *testing.T) {
	withReplicas(t, "{hedgeAfter: 0s, maxConnections: 1}", func(r replicas) {
		id := r.Replicas.Create(0)
		r.Proxies[0].Set(faultproxy.Delay(limit/2), kmip14.OperationGet)
		r.getByTen(id)
		r.checkAsked(upTo(0), "connect", "Get")
	})
}

// getByTen fetches a key ten times at once.
func (r replicas) getByTen(id string) {
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			key, err := r.Cluster.Get(r.t.Context(), id)
			if err != nil {
				r.t.Error(err)
			}
			key.Destroy()
		})
	}
	all.Wait()
}
