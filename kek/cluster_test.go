package kek

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gemalto/kmip-go/kmip14"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// cluster starts fakes, and opens a cluster of them in this order.
func cluster(t *testing.T, fakes ...*fake) *Cluster {
	t.Helper()
	var addresses []string
	for _, f := range fakes {
		f.pki = fakes[0].pki
		startFake(t, f)
		addresses = append(addresses, f.address)
	}
	return open(t, fakes[0].pki, addresses...)
}

// asked tells whether a fake was asked for an operation.
func (f *fake) asked(op kmip14.Operation) bool {
	return slices.ContainsFunc(f.requests(), func(r string) bool { return strings.HasSuffix(r, " "+op.String()) })
}

func mustGet(t *testing.T, c *Cluster) {
	t.Helper()
	key, err := c.Get(t.Context(), "7")
	if err != nil {
		t.Fatal(err)
	}
	key.Destroy()
}

// closes has a fake close the connection in place of an answer.
func closes(op kmip14.Operation) func(kmip14.Operation, []byte) []byte {
	return func(o kmip14.Operation, msg []byte) []byte {
		if o == op {
			return nil
		}
		return msg
	}
}

// TestNextServer: whatever is wrong with the first server, the second one gives the key.
func TestNextServer(t *testing.T) {
	for name, first := range map[string]*fake{
		"lacks it":           {edit: fail(kmip14.OperationGet, kmip14.ResultReasonItemNotFound, "")},
		"denies it":          {edit: fail(kmip14.OperationGet, kmip14.ResultReasonPermissionDenied, "")},
		"denies all":         {edit: fail(kmip14.OperationDiscoverVersions, kmip14.ResultReasonPermissionDenied, "")},
		"fails":              {edit: fail(kmip14.OperationGet, kmip14.ResultReasonGeneralFailure, "")},
		"closes":             {raw: closes(kmip14.OperationGet)},
		"closes at once":     {raw: closes(kmip14.OperationDiscoverVersions)},
		"gives a wrong key":  {edit: given(func(r *kmipwire.GetResponse) { r.SymmetricKey.KeyBlock.CryptographicLength = 128 })},
		"closes at its turn": {raw: closes(kmip14.OperationGetAttributes)},
	} {
		second := &fake{}
		c := cluster(t, first, second)
		mustGet(t, c)
		if !second.asked(kmip14.OperationGet) {
			t.Errorf("%s: the second server was not asked", name)
		}
	}
	refused, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused.Close()
	f := &fake{}
	startFake(t, f)
	mustGet(t, open(t, f.pki, refused.Addr().String(), f.address))
}

// TestDestroyedIsFinal: a replica that does not know yet that a key was destroyed is not
// asked for it.
func TestDestroyedIsFinal(t *testing.T) {
	second := &fake{}
	c := cluster(t, &fake{edit: fail(kmip14.OperationGet, resultReasonObjectDestroyed, "")}, second)
	_, err := c.Get(t.Context(), "7")
	expect(t, err, ErrDestroyed)
	if second.asked(kmip14.OperationGet) {
		t.Error("another server was asked")
	}
}

// TestAllFail: the error names every server with its own reason, and is what weighs most.
func TestAllFail(t *testing.T) {
	lacks := func() *fake { return &fake{edit: fail(kmip14.OperationGet, kmip14.ResultReasonItemNotFound, "lacks")} }
	denies := func() *fake {
		return &fake{edit: fail(kmip14.OperationGet, kmip14.ResultReasonPermissionDenied, "denies")}
	}
	down := func() *fake { return &fake{raw: closes(kmip14.OperationDiscoverVersions)} }
	for name, test := range map[string]struct {
		fakes []*fake
		want  error
		words []string
	}{
		"down":             {[]*fake{down(), down()}, ErrUnavailable, []string{"closed", "closed"}},
		"down and lacking": {[]*fake{down(), lacks(), lacks()}, ErrNotFound, []string{"closed", "lacks", "lacks"}},
		"lacking, denying": {[]*fake{lacks(), denies(), down()}, ErrDenied, []string{"lacks", "denies", "closed"}},
	} {
		c := cluster(t, test.fakes...)
		_, err := c.Get(t.Context(), "7")
		expect(t, err, test.want)
		rest := err.Error()
		for i, word := range test.words {
			_, after, ok := strings.Cut(rest, test.fakes[i].address)
			if !ok || !strings.Contains(after, word) {
				t.Errorf("%s: server %d is not named with %q: %v", name, i, word, err)
			}
			rest = after
		}
	}
}

// TestSites: the servers of another site are asked when all of the own one have failed,
// and not before.
func TestSites(t *testing.T) {
	a, b, other := &fake{}, &fake{}, &fake{}
	c := cluster(t, a, other, b)
	c.servers[1].Site = "elsewhere"
	a.edit = fail(kmip14.OperationGet, kmip14.ResultReasonGeneralFailure, "")
	mustGet(t, c)
	if !b.asked(kmip14.OperationGet) || len(other.requests()) > 0 {
		t.Errorf("with one server of two left, the other site was asked %q", other.requests())
	}
	b.edit = a.edit
	mustGet(t, c)
	if !other.asked(kmip14.OperationGet) {
		t.Error("the other site was not asked")
	}
}

// silent is a fake that answers no Get before the test ends.
func silent(t *testing.T) *fake {
	return &fake{raw: func(op kmip14.Operation, b []byte) []byte {
		if op == kmip14.OperationGet {
			<-t.Context().Done()
		}
		return b
	}}
}

// TestHedge: while the first server is silent, the next one of the site is asked, too.
func TestHedge(t *testing.T) {
	first, second := silent(t), &fake{}
	c := cluster(t, first, second)
	c.hedgeAfter = 20 * time.Millisecond
	mustGet(t, c) // with a time limit of a minute
	if !first.asked(kmip14.OperationGet) || !second.asked(kmip14.OperationGet) {
		t.Error("they were not both asked")
	}
	n := len(first.requests())
	c.hedgeAfter = 10 * time.Second // a busy machine is no silent server
	mustGet(t, c)
	if len(first.requests()) > n {
		t.Error("who was silent a moment ago was asked first again")
	}
	c = cluster(t, silent(t), &fake{})
	c.hedgeAfter, c.timeouts.Idle = never, 200*time.Millisecond
	mustGet(t, c)
	c = cluster(t, silent(t), &fake{})
	c.servers[1].Site = "elsewhere"
	c.hedgeAfter, c.timeouts.Idle = 10*time.Millisecond, 200*time.Millisecond
	begun := time.Now()
	mustGet(t, c)
	if took := time.Since(begun); took < 200*time.Millisecond {
		t.Errorf("the other site was asked before the own one had failed: after %v", took)
	}
}

// TestRests: a server that has failed is asked last, until it answers again.
func TestRests(t *testing.T) {
	first, second := &fake{raw: closes(kmip14.OperationDiscoverVersions)}, &fake{}
	c := cluster(t, first, second)
	mustGet(t, c)
	n := len(first.requests())
	mustGet(t, c)
	if len(first.requests()) != n {
		t.Error("the server that had failed was asked first again")
	}
	first.mu.Lock()
	first.raw = nil
	first.mu.Unlock()
	for deadline := time.Now().Add(30 * time.Second); !c.servers[0].restsSince().IsZero() || len(first.requests()) == n; {
		if time.Now().After(deadline) {
			t.Fatal("nobody looked after the server that had failed")
		}
		time.Sleep(10 * time.Millisecond)
	}
	mustGet(t, c)
	if !first.asked(kmip14.OperationGet) {
		t.Error("the first server was not asked, though it is back")
	}
}

// TestConnectionsAreKept: until they are closed by either side.
func TestConnectionsAreKept(t *testing.T) {
	f := &fake{}
	c := startFake(t, f)
	for range 3 {
		mustGet(t, c)
	}
	if n := strings.Count(fmt.Sprint(f.requests()), "DiscoverVersions"); n != 1 || f.open.Load() != 1 {
		t.Errorf("%d connections were made, %d are open", n, f.open.Load())
	}
	f.hangUp()
	mustGet(t, c)
	c.release()
	for deadline := time.Now().Add(30 * time.Second); f.open.Load() > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d connections are still open", f.open.Load())
		}
	}
	mustGet(t, c) // it can be used, and keeps nothing
}

// TestOnceMore: of a server that closes its connections, not each one that was kept is tried:
// a host that is gone takes its time on every one.
func TestOnceMore(t *testing.T) {
	f := &fake{}
	c := startFake(t, f)
	var conns []*session
	for range cap(c.servers[0].places) {
		conn, err := c.servers[0].takeNew(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	for _, conn := range conns {
		c.servers[0].done(t.Context(), conn, nil)
	}
	f.mu.Lock()
	f.raw = closes(kmip14.OperationGet)
	f.mu.Unlock()
	_, err := c.Get(t.Context(), "7")
	expect(t, err, ErrUnavailable)
	if n := strings.Count(fmt.Sprint(f.requests()), "Get"); n != 2 {
		t.Errorf("it was asked %d times", n)
	}
}

// TestConnectionsAreBounded: many who ask at once share a few.
func TestConnectionsAreBounded(t *testing.T) {
	f := &fake{}
	c := startFake(t, f)
	done := make(chan error)
	for range 50 {
		go func() {
			key, err := c.Get(context.WithoutCancel(t.Context()), "7")
			key.Destroy()
			done <- err
		}()
	}
	for range 50 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if n := strings.Count(fmt.Sprint(f.requests()), "DiscoverVersions"); n > 4 {
		t.Errorf("%d connections were made", n)
	}
}

// TestCreateOnce: whatever becomes of the answer, no second key is made under one name, and
// one that was made is found.
func TestCreateOnce(t *testing.T) {
	for name, test := range map[string]struct {
		lose      kmip14.Operation
		replicate bool
		made      int // in all
	}{
		"the answer to Create is lost, and others have the key":   {kmip14.OperationCreate, true, 1},
		"the answer to Create is lost, and with it the key":       {kmip14.OperationCreate, false, 2},
		"the answer to Activate is lost, and others have the key": {kmip14.OperationActivate, true, 1},
		"the key is not given, and others have it":                {kmip14.OperationGet, true, 1},
	} {
		first, second := &fake{raw: closes(test.lose)}, &fake{}
		if test.replicate {
			second.replica = first
		}
		c := cluster(t, first, second)
		if !test.replicate { // the first one is gone
			first.raw = func(op kmip14.Operation, msg []byte) []byte {
				if op == kmip14.OperationCreate || op == kmip14.OperationLocate {
					return nil
				}
				return msg
			}
		}
		key, err := c.Create(t.Context())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		key.Destroy()
		made := slices.Concat(first.names, second.names)
		slices.Sort(made)
		if len(made) != test.made || len(slices.Compact(made)) != test.made {
			t.Errorf("%s: made were %q", name, made)
		}
	}
}

// TestCreateTakesNoOtherKey: what a server finds that heeds no names is not the key that
// was to be made.
func TestCreateTakesNoOtherKey(t *testing.T) {
	loses := func(op kmip14.Operation, msg []byte) []byte {
		if op == kmip14.OperationCreate || op == kmip14.OperationLocate {
			return nil
		}
		return msg
	}
	second := &fake{edit: item(kmip14.OperationLocate, func(i *kmipwire.ResponseBatchItem) {
		i.ResponsePayload = &kmipwire.LocateResponse{UniqueIdentifier: []string{"7"}}
	})}
	key, err := cluster(t, &fake{raw: loses}, second).Create(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	key.Destroy()
	if !second.asked(kmip14.OperationCreate) {
		t.Error("a key that was there is taken for a new one")
	}
}

// TestCreateElsewhere: one that can't be reached, or makes no keys, leaves it to the next.
func TestCreateElsewhere(t *testing.T) {
	for name, first := range map[string]*fake{
		"down":    {raw: closes(kmip14.OperationDiscoverVersions)},
		"refuses": {edit: fail(kmip14.OperationCreate, kmip14.ResultReasonOperationNotSupported, "")},
	} {
		second := &fake{}
		key, err := cluster(t, first, second).Create(t.Context())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		key.Destroy()
		if second.asked(kmip14.OperationLocate) || len(second.names) != 1 {
			t.Errorf("%s: the second was asked %q", name, second.requests())
		}
	}
}

// hangUp closes the fake's connections.
func (f *fake) hangUp() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.conns {
		c.Close()
	}
	f.conns = nil
}

// TestOtherSitesOneByOne: of the other sites, too, one is asked after the other, the servers
// of none beside those of another.
func TestOtherSitesOneByOne(t *testing.T) {
	c := cluster(t, &fake{}, &fake{}, &fake{}, &fake{})
	for i, site := range []string{"x", "own", "y", "x"} {
		c.servers[i].Site = site
	}
	c.site = "own"
	c.servers[0].rest()
	checkOrder(t, c, 1, -1, 3, 0, -1, 2, -1)
}

// TestSiteThatHasFailed: a site all of whose servers rest comes after another one that has
// answered since, and in its turn again as soon as one of its servers has.
func TestSiteThatHasFailed(t *testing.T) {
	c := cluster(t, &fake{}, &fake{}, &fake{}, &fake{})
	for i, site := range []string{"own", "own", "x", "y"} {
		c.servers[i].Site = site
	}
	c.site = "own"
	c.servers[3].noteAnswer()
	c.servers[0].rest()
	checkOrder(t, c, 1, 0, -1, 2, -1, 3, -1)
	c.servers[1].rest()
	checkOrder(t, c, 0, 1, -1, 2, -1, 3, -1)
	c.servers[3].noteAnswer()
	checkOrder(t, c, 3, -1, 0, 1, -1, 2, -1)
	c.servers[3].rest()
	checkOrder(t, c, 0, 1, -1, 2, -1, 3, -1)
	c.servers[3].noteSuccess()
	checkOrder(t, c, 3, -1, 0, 1, -1, 2, -1)
	c.servers[1].noteSuccess()
	checkOrder(t, c, 1, 0, -1, 2, -1, 3, -1)
}

// checkOrder compares the order in which servers are asked, with a -1 after each site.
func checkOrder(t *testing.T, c *Cluster, want ...int) {
	t.Helper()
	var got []int
	for _, site := range c.order() {
		for _, s := range site {
			got = append(got, slices.Index(c.servers, s))
		}
		got = append(got, -1)
	}
	if !slices.Equal(got, want) {
		t.Errorf("order %v, want %v", got, want)
	}
}

// TestProbe: a server that is being looked after is asked last until it turns out to be
// well, or refuses, which is an answer.
func TestProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		known := &certificates{client: tls.Certificate{Leaf: &x509.Certificate{NotAfter: time.Now().Add(time.Hour)}}}
		c := &Cluster{timeout: time.Minute, trust: &trust{read: known}}
		c.keep()
		defer c.release()
		dialed := make(chan error)
		c.dial = func(context.Context, string) (net.Conn, error) { return nil, <-dialed }
		s := &server{cluster: c, places: make(chan struct{}, 1)}
		s.rest()
		time.Sleep(2 * firstRest)
		if s.restsSince().IsZero() {
			t.Error("it is asked in its turn while nobody knows that it is well")
		}
		dialed <- syscall.ECONNREFUSED
		time.Sleep(firstRest)
		if s.restsSince().IsZero() {
			t.Error("it is asked in its turn after it has failed again")
		}
		dialed <- &net.OpError{Op: remoteAlert, Err: errors.New("tls: access denied")}
		synctest.Wait()
		if !s.restsSince().IsZero() {
			t.Error("it has answered, and is asked last")
		}
	})
}

// TestReaper: connections that nobody uses are closed.
func TestReaper(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &Cluster{trust: &trust{}}
		c.keep()
		defer c.release()
		s := &server{cluster: c, places: make(chan struct{}, 2)}
		var ends []net.Conn
		for range 2 {
			own, other := net.Pipe()
			ends = append(ends, other)
			s.keep(&session{conn: kmipwire.NewConn(own, kmipwire.DefaultTimeouts)})
			time.Sleep(idleTime / 2)
		}
		for i, end := range ends {
			time.Sleep(time.Second)
			if _, err := end.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("connection %d: %v", i, err)
			}
		}
		synctest.Wait()
		if len(s.idle) != 0 || s.reaper != nil {
			t.Errorf("%d connections are left, and a reaper: %v", len(s.idle), s.reaper != nil)
		}
	})
}

// TestMaxRate: no more operations are begun in a second than may be, whoever asks.
func TestMaxRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &Cluster{limiter: newLimiter(50)}
		begun := time.Now()
		var all sync.WaitGroup
		for range 101 {
			all.Go(func() {
				if err := c.pace(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if took := time.Since(begun); took != 2*time.Second {
			t.Errorf("101 operations took %v", took)
		}
		short, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		expect(t, c.pace(short), ErrUnavailable)
	})
}

// TestManyFailuresAreOne: how long a server rests does not grow with how many have just seen
// it fail.
func TestManyFailuresAreOne(t *testing.T) {
	c := cluster(t, &fake{})
	s := c.servers[0]
	for range 100 {
		s.rest()
	}
	if time.Until(s.resume) > firstRest || s.failed != 1 {
		t.Errorf("it failed %d times, and rests until %v", s.failed, s.resume)
	}
}

// TestNewConnectionsTakeThePlaceOfKeptOnes: the bound is for both together.
func TestNewConnectionsTakeThePlaceOfKeptOnes(t *testing.T) {
	f := &fake{}
	c := startFake(t, f)
	mustGet(t, c)
	conn, err := c.servers[0].takeNew(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if n := len(c.servers[0].idle); n > 0 {
		t.Errorf("%d are kept besides", n)
	}
	c.servers[0].done(t.Context(), conn, nil)
}

// TestChangeAtAReplicaThatLags: "not found" is not the last word of a change either.
func TestChangeAtAReplicaThatLags(t *testing.T) {
	late := &fake{edit: fail(kmip14.OperationGetAttributes, kmip14.ResultReasonItemNotFound, "")}
	err := cluster(t, late, &fake{}).Destroy(t.Context(), "7")
	expect(t, err, ErrInUse)
}

// TestOpenRefusesLimits: none can be less than nothing.
func TestOpenRefusesLimits(t *testing.T) {
	less := -time.Second
	for want, config := range map[string]Config{
		"timeout": {Timeout: less}, "connectTimeout": {ConnectTimeout: less}, "replicaWait": {ReplicaWait: less},
		"hedgeAfter": {HedgeAfter: (*Duration)(&less)}, "maxConnections": {MaxConnections: -1}, "maxRate": {MaxRate: -1}, "minReplicas": {MinReplicas: 2},
	} {
		config.Servers = []Server{{Address: "127.0.0.1:5696"}}
		if _, err := Open("test", config, nil); err == nil || !strings.Contains(err.Error(), want+": ") {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// TestCanaryWithoutLocate: a key manager that can't be asked what keys it has is not tried.
func TestCanaryWithoutLocate(t *testing.T) {
	c := cluster(t, &fake{edit: fail(kmip14.OperationLocate, kmip14.ResultReasonOperationNotSupported, "")})
	_, checks, err := c.Canary(t.Context())
	if expect(t, err, ErrNotFound); len(checks) > 0 {
		t.Errorf("%+v", checks)
	}
	c = cluster(t, &fake{edit: fail(kmip14.OperationLocate, kmip14.ResultReasonGeneralFailure, "no database")})
	_, checks, err = c.Canary(t.Context())
	if err == nil || len(checks) != 1 || checks[0].Result != KeyDenied || !strings.Contains(checks[0].Detail, "no database") {
		t.Errorf("%+v, %v", checks, err)
	}
}
