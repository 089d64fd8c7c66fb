// Package faultproxy stands between tests and a key manager, and fails on
// demand: it refuses, hangs, resets, delays, garbles, or loses an answer after
// what was asked for has been done. Replicas are several of them before one key
// manager that ships with vmcrypt, or before older copies of its store.
//
//	r := faultproxy.NewReplicas(t, 3)
//	cluster, err := kek.Open("test", kek.Config{ /* r.Addresses(), r.ClientCert … */ }, nil)
//	r.Proxies[0].Set(faultproxy.Lose, kmip14.OperationCreate)
//	...
//	r.Journal.Servers() // which of them were asked, in what order
//
// A proxy ends TLS with the key manager's own certificate, and asks the key
// manager as the client that this proxy's clients are.
//
// NewReplicasInMemory has no socket between client and proxy, so that it works in
// a bubble of testing/synctest: there a minute of silence takes no time, and what
// is measured is exact.
package faultproxy

import (
	"context"
	"crypto/tls"
	"net"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gemalto/kmip-go/kmip14"
)

// Fault is a way to fail.
type Fault struct {
	kind  string
	delay time.Duration
}

// The faults. Those in the first group are of the connection and can't be of one
// operation alone.
var (
	// Refuse accepts no connection, as when nothing listens, and cuts those that
	// are open.
	Refuse = Fault{kind: "refuse"}
	// Vanish neither accepts nor refuses, as when packets are dropped. It is for
	// proxies in memory.
	Vanish = Fault{kind: "vanish"}

	// None has the key manager answer.
	None = Fault{}
	// Hang accepts connections and requests, does nothing and says nothing.
	Hang = Fault{kind: "hang"}
	// Reset ends the connection in place of carrying out what was asked for.
	Reset = Fault{kind: "reset"}
	// Die is Reset, and Refuse from then on.
	Die = Fault{kind: "die"}
	// Garble has a request carried out and answers with noise.
	Garble = Fault{kind: "garble"}
	// Lose has a request carried out and ends the connection without an answer.
	Lose = Fault{kind: "lose"}
	// Swallow has a request carried out and says nothing, for ever.
	Swallow = Fault{kind: "swallow"}
	// Deny answers that the client lacks permission, Missing that there is no such
	// object; neither does anything.
	Deny    = Fault{kind: "deny"}
	Missing = Fault{kind: "missing"}
	// Alter changes a bit of each key that is fetched.
	Alter = Fault{kind: "alter"}
)

// Delay has each request carried out after d, and each connection accepted so
// late.
func Delay(d time.Duration) Fault { return Fault{kind: "delay", delay: d} }

// String gives the fault's name, as "refuse"; None's is "".
func (f Fault) String() string { return f.kind }

// Proxy is a key manager that fails on demand.
type Proxy struct {
	Address string // host:port; of a proxy in memory only a name

	t        testing.TB
	journal  *Journal
	upstream *upstream
	config   *tls.Config
	memory   bool

	mu       sync.Mutex
	always   Fault
	faults   map[kmip14.Operation]Fault
	listener net.Listener
	open     map[net.Conn]bool
	most     int // connections that were open at once
	running  sync.WaitGroup
}

// Set has the proxy fail from now on: with ops in these operations alone, which
// may have been set to something else before; without, in all, and when somebody
// connects, and what was set before is forgotten. A connection that hangs does so
// until its client gives it up.
func (p *Proxy) Set(f Fault, ops ...kmip14.Operation) {
	p.t.Helper()
	if f == Vanish && !p.memory {
		p.t.Fatal("only a proxy in memory can vanish")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(ops) > 0 {
		p.setOperations(f, ops)
		return
	}
	p.always = f
	clear(p.faults)
	p.settle()
}

func (p *Proxy) setOperations(f Fault, ops []kmip14.Operation) {
	p.t.Helper()
	if f == Refuse || f == Vanish {
		p.t.Fatalf("%s is of connections, not of operations", f)
	}
	for _, op := range ops {
		p.faults[op] = f
	}
}

// settle makes the listener and the open connections what the proxy's fault wants
// them to be.
func (p *Proxy) settle() {
	switch {
	case p.always == Refuse:
		if p.listener != nil {
			p.listener.Close()
			p.listener = nil
		}
		for conn := range p.open {
			conn.Close()
		}
	case p.listener == nil && !p.memory:
		p.listen()
	}
}

// Connections tells how many connections are open now, and how many were at once
// at most.
func (p *Proxy) Connections() (now, most int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.open), p.most
}

// Event is something that a proxy was asked.
type Event struct {
	At     time.Time
	Server string // the proxy's address
	// Operation is KMIP's name of it, as "GetAttributes", or "connect".
	Operation string
	Subject   string // the Unique Identifier or Name that it is about, where it has one
	Version   string // of KMIP, as "1.4"; of a connection ""
	Fault     string // what the proxy did to it: the fault's name, or ""
}

// Journal is what one proxy or several were asked, in order.
type Journal struct {
	mu     sync.Mutex
	events []Event
}

func (j *Journal) add(e Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	e.At = time.Now()
	j.events = append(j.events, e)
}

// Events gives all there is.
func (j *Journal) Events() []Event {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.events)
}

// Clear forgets what was asked until now.
func (j *Journal) Clear() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.events = nil
}

// Of gives the events of some operations, those that are not about connecting or
// versions if none is named.
func (j *Journal) Of(operations ...string) []Event {
	return slices.DeleteFunc(j.Events(), func(e Event) bool {
		if len(operations) == 0 {
			return e.Operation == "connect" || e.Operation == "DiscoverVersions" || e.Operation == "Query"
		}
		return !slices.Contains(operations, e.Operation)
	})
}

// Servers gives the addresses that were asked, each once, in the order in which
// they first were. Connections count as well.
func (j *Journal) Servers() []string {
	var servers []string
	for _, e := range j.Events() {
		if !slices.Contains(servers, e.Server) {
			servers = append(servers, e.Server)
		}
	}
	return servers
}

// Dial connects to the proxy: it is a kek.DialFunc for those in memory.
func (p *Proxy) Dial(ctx context.Context) (net.Conn, error) {
	if !p.memory {
		return new(net.Dialer).DialContext(ctx, "tcp", p.Address)
	}
	switch p.fault(nil) {
	case Refuse:
		p.note("connect", Refuse)
		return nil, dialError(syscall.ECONNREFUSED)
	case Vanish:
		p.note("connect", Vanish)
		<-ctx.Done()
		return nil, dialError(ctx.Err())
	}
	client, server := pipe()
	p.serve(server)
	return client, nil
}

func dialError(err error) error {
	return &net.OpError{Op: "dial", Net: "tcp", Err: err}
}

func (p *Proxy) note(operation string, f Fault) {
	p.journal.add(Event{Server: p.Address, Operation: operation, Fault: f.kind})
}

// fault is what is to go wrong with operations, or without any with a connection.
func (p *Proxy) fault(ops []kmip14.Operation) Fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, op := range ops {
		if f, ok := p.faults[op]; ok {
			return f
		}
	}
	return p.always
}
