package kek

import (
	"context"
	"errors"
	"os"
	"slices"
	"time"
)

// order gives the servers in the order in which they are asked: those of the own site,
// and then, if none of these can help, those of one other site after the other. Of each,
// those that failed a short time ago come last. While all of the own site have, a site that
// has answered since then goes before it.
func (c *Cluster) order() (sites [][]*server) {
	own, outage := c.inSite(c.site)
	var later [][]*server
	for _, name := range c.otherSites() {
		site, _ := c.inSite(name)
		if !outage.IsZero() && answersSince(site, outage) {
			sites = append(sites, site)
		} else {
			later = append(later, site)
		}
	}
	if len(own) > 0 {
		sites = append(sites, own)
	}
	return append(sites, later...)
}

func (c *Cluster) otherSites() (names []string) {
	for _, s := range c.servers {
		if s.Site != c.site && !slices.Contains(names, s.Site) {
			names = append(names, s.Site)
		}
	}
	return names
}

// inSite gives the servers of a site, and since when all of them have failed; else the
// time is zero.
func (c *Cluster) inSite(site string) (servers []*server, outage time.Time) {
	var resting []*server
	for _, s := range c.servers {
		if s.Site != site {
			continue
		}
		if since := s.restsSince(); since.IsZero() {
			servers = append(servers, s)
		} else {
			resting, outage = append(resting, s), later(outage, since)
		}
	}
	if len(servers) > 0 {
		outage = time.Time{}
	}
	return append(servers, resting...), outage
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// answersSince tells whether one of the servers, which does not rest, has answered since a
// time.
func answersSince(servers []*server, t time.Time) bool {
	return slices.ContainsFunc(servers, func(s *server) bool {
		return s.restsSince().IsZero() && s.answeredAfter(t)
	})
}

// outcome is what a server made of work.
type outcome[T any] struct {
	server *server
	value  T
	err    error
}

// race is work that changes nothing at servers, done by the first that can: one after the
// other where they fail, and beside each other where they are silent.
type race[T any] struct {
	cluster  *Cluster
	work     func(context.Context, *session) (T, error)
	drop     func(T) // wipes what came too late
	outcomes chan outcome[T]
	pending  map[*server]time.Time // who is at it, and since when
	faults   []*fault
	final    bool // the last fault is
}

// ask has work done by the cluster.
func ask[T any](ctx context.Context, c *Cluster, work func(context.Context, *session) (T, error), drop func(T)) (T, error) {
	running, cancel := context.WithCancel(ctx)
	defer cancel()
	var none T
	if err := c.pace(ctx); err != nil {
		return none, err
	}
	r := &race[T]{cluster: c, work: work, drop: drop, outcomes: make(chan outcome[T]), pending: map[*server]time.Time{}}
	for _, site := range c.order() {
		value, ok := r.askSite(running, site)
		if ok {
			return value, nil
		}
		if r.final || ctx.Err() != nil {
			break
		}
	}
	return none, c.explain(ctx, r.faults...)
}

// askSite asks the servers of a site: the next one when another has failed, and while
// those that were asked are silent.
func (r *race[T]) askSite(ctx context.Context, left []*server) (value T, ok bool) {
	defer r.abandon()
	left = r.begin(ctx, left)
	silence := time.NewTimer(r.cluster.hedgeAfter)
	defer silence.Stop()
	for len(r.pending) > 0 {
		select {
		case o := <-r.outcomes:
			delete(r.pending, o.server)
			if o.err == nil {
				r.noteSilent()
				return o.value, true
			}
			f := r.cluster.diagnose(o.server.Address, o.err)
			r.faults = append(r.faults, f)
			if r.final = isFinal(o.err); r.final || ctx.Err() != nil {
				return value, false
			}
			left = r.begin(ctx, left)
		case <-silence.C:
			left = r.begin(ctx, left)
		case <-ctx.Done():
			r.noteSilent()
			return value, false
		}
		if len(left) > 0 {
			silence.Reset(r.cluster.hedgeAfter)
		}
	}
	return value, false
}

// isFinal tells whether no other server can know better: a key that is destroyed is to be
// used no more, though a replica may not know of it yet.
func isFinal(err error) bool { return errors.Is(err, ErrDestroyed) }

// begin has the next server do the work, and gives those that are left.
func (r *race[T]) begin(ctx context.Context, left []*server) []*server {
	if len(left) == 0 {
		return nil
	}
	s := left[0]
	r.pending[s] = time.Now()
	go func() {
		value, err := work(ctx, s, r.work)
		r.outcomes <- outcome[T]{s, value, err}
	}()
	return left[1:]
}

// abandon leaves those alone that are still at work, whose context is about to end.
func (r *race[T]) abandon() {
	go func(pending int) {
		for range pending {
			if o := <-r.outcomes; o.err == nil {
				r.drop(o.value)
			}
		}
	}(len(r.pending))
	clear(r.pending)
}

// noteSilent has those asked last for a while that were silent until another could help,
// or the caller gave up: the next who needs a key does not wait for them. One that answers
// others is not silent; one that answered when it was connected to, and then no more, is.
func (r *race[T]) noteSilent() {
	for s, begun := range r.pending {
		if time.Since(begun) >= r.cluster.hedgeAfter && s.silentSince(begun) >= r.cluster.hedgeAfter/2 {
			s.rest()
		}
	}
}

// work has a server do something: once more, on a new connection, if one that was kept
// turns out to be closed.
func work[T any](ctx context.Context, s *server, do func(context.Context, *session) (T, error)) (value T, err error) {
	conn, kept, err := s.take(ctx)
	if err != nil {
		return value, err
	}
	value, err = do(ctx, conn)
	if kept && isClosed(err) && ctx.Err() == nil {
		conn.conn.Close()
		s.leave()
		if conn, err = s.takeNew(ctx); err != nil {
			return value, err
		}
		value, err = do(ctx, conn)
	}
	s.done(ctx, conn, err)
	return value, err
}

// isClosed tells whether a connection failed otherwise than by silence.
func isClosed(err error) bool {
	t, ok := errors.AsType[*transportError](err)
	return ok && !errors.Is(t, os.ErrDeadlineExceeded)
}

// isAnswer tells whether a server has answered in KMIP, so that it can be asked more on
// the same connection.
func isAnswer(err error) bool {
	_, refused := errors.AsType[*refusal](err)
	return err == nil || refused || errors.Is(err, ErrNotFound) || errors.Is(err, ErrDestroyed) || errors.Is(err, ErrUnsuitable) || errors.Is(err, ErrInactive)
}
