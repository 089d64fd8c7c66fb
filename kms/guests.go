package kms

import (
	"context"
	"net"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"
)

// limits bound what the clients of a server can occupy. Where connections are
// concerned, a new one is not turned away: the one that has been idle for
// longest goes, of whoever has most. So nobody can keep others out, and nobody
// is locked out by connections that died without a word.
type limits struct {
	handshakes int // connections that have not proved yet who they are
	// grace is what each of those has before it can be put out. While all are
	// younger, nobody is let in: it is time, and not speed, that a flood of them
	// competes for.
	grace       time.Duration
	connections int // of all clients
	perAddress  int // generous: many hosts may be behind one address
	perClient   int

	requests          int // being answered
	requestsPerClient int

	// Bytes of long messages in all; short ones are bounded by the connections.
	messageBytes          int64
	messageBytesPerClient int64
}

var serverLimits = limits{
	handshakes:  1024,
	grace:       time.Second,
	connections: 1024,
	perAddress:  512,
	perClient:   256,

	requests:          64,
	requestsPerClient: 16,

	messageBytes:          16 << 20,
	messageBytesPerClient: 4 << 20,
}

// otherFiles is how many files the process needs beside connections.
const otherFiles = 64

// fitting lowers the limits to what the process may open, 16 connections at
// the least.
func (l limits) fitting() limits {
	var r unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &r) != nil || r.Cur > 1<<20 {
		return l
	}
	free := max(int(r.Cur)-otherFiles, 20)
	l.handshakes = min(l.handshakes, free/5)
	l.connections = min(l.connections, free-l.handshakes)
	return l
}

// guests are the connections of a server.
type guests struct {
	limits
	answering chan struct{}       // full when there are too many requests
	bytes     *semaphore.Weighted // of long messages

	mu     sync.Mutex
	all    map[*guest]bool
	shares map[string]*share // by client
}

// share is what one client occupies.
type share struct {
	answering chan struct{}
	bytes     *semaphore.Weighted
}

// guest is a connection.
type guest struct {
	conn    net.Conn
	address string
	share   *share // nil until the handshake is done

	// The following are guarded by guests.mu.
	greeted bool // it has begun a TLS handshake
	client  string
	active  time.Time // when it last did something
	busy    bool      // being answered
}

func newGuests(l limits) *guests {
	return &guests{
		limits:    l,
		answering: make(chan struct{}, l.requests),
		bytes:     semaphore.NewWeighted(l.messageBytes),
		all:       map[*guest]bool{},
		shares:    map[string]*share{},
	}
}

// enter lets a connection in that has yet to prove who it is. It waits while
// there is no room, and fails when ctx ends.
func (g *guests) enter(ctx context.Context, conn net.Conn) *guest {
	n := &guest{conn: conn, address: addressOf(conn)}
	for !g.tryEnter(n) {
		select {
		case <-time.After(g.grace / 25):
		case <-ctx.Done():
			return nil
		}
	}
	return n
}

func (g *guests) tryEnter(n *guest) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	stale := func(o *guest) bool { return unknown(o) && time.Since(o.active) > g.grace }
	mute := func(o *guest) bool { return stale(o) && !o.greeted }
	if g.count(unknown) >= g.handshakes && !g.evict(mute, (*guest).host) && !g.evict(stale, (*guest).host) {
		return false
	}
	n.active = time.Now()
	g.all[n] = true
	return true
}

// addressOf is where a connection comes from, without the port.
func addressOf(conn net.Conn) string {
	host, _, err := net.SplitHostPort(conn.RemoteAddr().String())
	if err != nil {
		return "local"
	}
	return host
}

func unknown(n *guest) bool    { return n.client == "" }
func known(n *guest) bool      { return n.client != "" }
func (n *guest) host() string  { return n.address }
func (n *guest) owner() string { return n.client }

// greet notes that a connection speaks TLS: it is not put out before those that
// don't.
func (g *guests) greet(n *guest) {
	g.mu.Lock()
	defer g.mu.Unlock()
	n.greeted, n.active = true, time.Now()
}

// identify notes whose connection it is. It fails if there is no room for it.
func (g *guests) identify(n *guest, client string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	own := func(o *guest) bool { return o.client == client }
	near := func(o *guest) bool { return known(o) && o.address == n.address }
	ok := g.all[n] &&
		g.makeRoom(g.perClient, own) && g.makeRoom(g.perAddress, near) && g.makeRoom(g.connections, known)
	if !ok {
		return false
	}
	if g.shares[client] == nil {
		g.shares[client] = &share{
			answering: make(chan struct{}, g.requestsPerClient),
			bytes:     semaphore.NewWeighted(g.messageBytesPerClient),
		}
	}
	n.client, n.share, n.active = client, g.shares[client], time.Now()
	return true
}

// makeRoom sees to it that fewer than limit connections are in a set. It fails
// if all are being answered.
func (g *guests) makeRoom(limit int, in func(*guest) bool) bool {
	return g.count(in) < limit || g.evict(in, (*guest).owner)
}

func (g *guests) count(in func(*guest) bool) int {
	n := 0
	for o := range g.all {
		if in(o) {
			n++
		}
	}
	return n
}

// evict closes a connection of a set, of the largest group in it: the one that
// has been idle for longest.
func (g *guests) evict(in func(*guest) bool, group func(*guest) string) bool {
	sizes := map[string]int{}
	for o := range g.all {
		if in(o) && !o.busy {
			sizes[group(o)]++
		}
	}
	var victim *guest
	for o := range g.all {
		if !in(o) || o.busy {
			continue
		}
		if victim == nil || sizes[group(o)] > sizes[group(victim)] ||
			sizes[group(o)] == sizes[group(victim)] && o.active.Before(victim.active) {
			victim = o
		}
	}
	if victim != nil {
		g.remove(victim)
	}
	return victim != nil
}

// relieve frees a file, if a connection can be spared.
func (g *guests) relieve() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.evict(known, (*guest).owner) || g.evict(unknown, (*guest).host)
}

// remove closes a connection, below TLS: its handler finds out.
func (g *guests) remove(n *guest) {
	delete(g.all, n)
	n.conn.Close()
}

// leave forgets a connection.
func (g *guests) leave(n *guest) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.remove(n)
}

// expel closes all connections of a client, whatever they are doing.
func (g *guests) expel(client string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for n := range g.all {
		if n.client == client {
			g.remove(n)
		}
	}
}

// begin waits until a request can be answered; end must follow. It fails when
// ctx ends or the connection has gone meanwhile.
func (g *guests) begin(ctx context.Context, n *guest) bool {
	if !acquire(ctx, n.share.answering) {
		return false
	}
	if !acquire(ctx, g.answering) {
		<-n.share.answering
		return false
	}
	g.mu.Lock()
	n.busy, n.active = true, time.Now()
	there := g.all[n]
	g.mu.Unlock()
	if !there {
		g.end(n)
	}
	return there
}

func acquire(ctx context.Context, slots chan struct{}) bool {
	select {
	case slots <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (g *guests) end(n *guest) {
	g.mu.Lock()
	n.busy, n.active = false, time.Now()
	g.mu.Unlock()
	<-g.answering
	<-n.share.answering
}

// reserve waits until there is memory for a long message; release must follow.
func (g *guests) reserve(ctx context.Context, n *guest, bytes int) error {
	if err := n.share.bytes.Acquire(ctx, int64(bytes)); err != nil {
		return err
	}
	err := g.bytes.Acquire(ctx, int64(bytes))
	if err != nil {
		n.share.bytes.Release(int64(bytes))
	}
	return err
}

func (g *guests) release(n *guest, bytes int) {
	n.share.bytes.Release(int64(bytes))
	g.bytes.Release(int64(bytes))
}
