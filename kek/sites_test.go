package kek

import (
	"context"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/vmcrypt/vmcrypt/internal/faultproxy"
	"github.com/vmcrypt/vmcrypt/internal/netns"
	"github.com/vmcrypt/vmcrypt/internal/testtool"
	"github.com/vmcrypt/vmcrypt/kms"
)

// TestTwoSites: a host asks the key managers of its own site, and sends no packet to the
// other one while they live. It is so whether the other can be reached or is cut off.
func TestTwoSites(t *testing.T) {
	a, b := netns.New(t), netns.New(t)
	link := netns.Connect(t, a, b, "10.77.0.1/24", "10.77.0.2/24")
	home := newHome(t)
	id := makeKey(t, home)
	atA := serveAt(t, a, home, "10.77.0.1:0")
	own, stop := serveUntil(t, b, faultproxy.CopyHome(t, home), "127.0.0.1:0")
	gone := "127.0.0.1:1"
	c := openSite(t, b, home, gone, own, atA)
	for _, cut := range []bool{false, true} {
		if cut {
			link.Cut()
		}
		checkFetch(t, c, id)
		if sent := b.Sent(); sent != 0 {
			t.Errorf("cut %v: %d packets were sent to the other site", cut, sent)
		}
	}
	link.Mend()
	stop()
	checkFetch(t, c, id)
	if b.Sent() == 0 {
		t.Error("the key came from the other site without a packet")
	}
}

// TestOwnSiteIsAskedFirst: who asks all key managers, asks those of another site when those
// of the own one have answered.
func TestOwnSiteIsAskedFirst(t *testing.T) {
	withReplicas(t, "", func(r replicas) {
		id := r.Replicas.Create(0)
		c := r.Cluster
		c.servers[0].Site = "elsewhere"
		far := r.Addresses()[0]
		r.Proxies[1].Set(faultproxy.Delay(time.Second))
		ask := map[string]func() int{
			"Status":          func() int { return len(c.Status(r.t.Context())) },
			"check":           func() int { return len(c.check(r.t.Context(), id, nil)) },
			"StatusElsewhere": func() int { return len(c.StatusHere(r.t.Context())) + len(c.StatusElsewhere(r.t.Context())) },
		}
		for name, do := range ask {
			r.Journal.Clear()
			if n := do(); n != 3 {
				r.t.Errorf("%s: %d answers", name, n)
			}
			events := r.Journal.Events()
			first := slices.IndexFunc(events, func(e faultproxy.Event) bool { return e.Server == far })
			last := len(events) - 1
			for events[last].Server == far {
				last--
			}
			if first < 0 || first < last || events[first].At.Sub(events[0].At) < time.Second {
				r.t.Errorf("%s: asked were %+v", name, events)
			}
		}
		r.Journal.Clear()
		if got := c.StatusHere(r.t.Context()); len(got) != 2 || got[1].Address != r.Addresses()[2] || slices.Contains(r.asked(), 0) {
			r.t.Errorf("%+v", got)
		}
	})
}

// TestHostIsGone: a connection that was kept does not make a host that is gone pass for a key
// manager that is slow.
func TestHostIsGone(t *testing.T) {
	testtool.Long(t)
	a, b := netns.New(t), netns.New(t)
	link := netns.Connect(t, a, b, "10.78.0.1/24", "10.78.0.2/24")
	home := newHome(t)
	id := makeKey(t, home)
	config := configOf(home)
	config.ConnectTimeout = time.Second
	config.Servers = []Server{{Address: serveAt(t, a, home, "10.78.0.1:0"), ServerName: "localhost"}}
	c := openConfig(t, config, func(ctx context.Context, address string) (conn net.Conn, err error) {
		b.Do(func() { conn, err = tcp(config.ConnectTimeout)(ctx, address) })
		return conn, err
	})
	checkFetch(t, c, id)
	link.Cut()
	begun := time.Now()
	_, err := c.Get(t.Context(), id)
	expect(t, err, ErrUnavailable)
	if took := time.Since(begun); took > defaultTimeout/2 {
		t.Errorf("it took %v", took)
	}
}

// openSite opens a cluster for a host at site b, all of whose servers but the last are
// there.
func openSite(t *testing.T, n *netns.Namespace, home kms.Home, addresses ...string) *Cluster {
	t.Helper()
	config := configOf(home)
	text := "servers:\n"
	for i, address := range addresses {
		site := "b"
		if i == len(addresses)-1 {
			site = "a"
		}
		text += fmt.Sprintf("  - {address: %q, site: %s, serverName: localhost}\n", address, site)
	}
	if err := yaml.Unmarshal([]byte(text), &config); err != nil {
		t.Fatal(err)
	}
	return openConfig(t, config, n.Dial)
}

func newHome(t *testing.T) kms.Home {
	t.Helper()
	dir := t.TempDir()
	home := kms.Home{Config: dir + "/config.yaml", Dir: dir + "/kms"}
	if err := home.Init([]byte("# made by a test\n")); err != nil {
		t.Fatal(err)
	}
	return home
}

func configOf(home kms.Home) Config {
	dir := home.ConfigDir()
	return Config{ClientCert: dir + "/client.pem", ClientKey: dir + "/client.key", CA: dir + "/ca.pem"}
}

// openConfig opens a cluster that keeps connections until t ends.
func openConfig(t *testing.T, config Config, dial DialFunc) *Cluster {
	t.Helper()
	c, err := Open("test", config, dial)
	if err != nil {
		t.Fatal(err)
	}
	c.keep()
	t.Cleanup(c.release)
	return c
}

// makeKey makes a key at a key manager that does not serve.
func makeKey(t *testing.T, home kms.Home) (id string) {
	t.Helper()
	config := configOf(home)
	config.Servers = []Server{{Address: "127.0.0.1:5696"}}
	c, err := Open("local", config, home.Dial)
	if err != nil {
		t.Fatal(err)
	}
	key, err := c.Create(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	key.Destroy()
	return key.ID
}

func checkFetch(t *testing.T, c *Cluster, id string) {
	t.Helper()
	key, err := c.Get(t.Context(), id)
	if err != nil {
		t.Error(err)
	}
	key.Destroy()
}

func serveAt(t *testing.T, n *netns.Namespace, home kms.Home, address string) string {
	t.Helper()
	address, _ = serveUntil(t, n, home, address)
	return address
}

// serveUntil runs a key manager in a namespace until stop is called, or the test ends.
func serveUntil(t *testing.T, n *netns.Namespace, home kms.Home, address string) (_ string, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan string, 1), make(chan error, 1)
	go n.Do(func() {
		ended <- home.Serve(ctx, address, func(a net.Addr) { ready <- a.String() })
	})
	stopped := false
	stop = func() {
		if cancel(); !stopped {
			stopped = true
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(stop)
	select {
	case address = <-ready:
	case err := <-ended:
		ended <- nil
		t.Fatal(err)
	}
	return address, stop
}
