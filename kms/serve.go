package kms

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/google/uuid"
)

// How long to wait for others to close the store, and how often to look.
const (
	storeWait = 10 * time.Second
	storePoll = 100 * time.Millisecond
)

// Serve runs the key manager on a TCP address until ctx ends, calling ready
// with the address it listens on. It fails with ErrBusy if another process
// serves this home, and otherwise waits for those that use the store in
// passing. Requests that have arrived when ctx ends are answered, and Serve
// returns nil.
func (h Home) Serve(ctx context.Context, address string, ready func(net.Addr)) (err error) {
	srv, err := h.openToServe(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, srv.close()) }()
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer l.Close()
	c, err := h.startControl(srv, l.Addr())
	if err != nil {
		return err
	}
	defer c.stop()
	// Whoever asks from now on waits for the store instead.
	defer context.AfterFunc(ctx, c.stop)()
	defer h.serveMetrics(ctx, srv)()
	var marking sync.WaitGroup
	defer marking.Wait()
	marking.Go(func() { srv.keepMarking(ctx) })
	ready(l.Addr())
	srv.serve(ctx, l)
	return nil
}

func (h Home) openToServe(ctx context.Context) (*server, error) {
	s, running, err := h.access(ctx, forWriting)
	if err != nil {
		return nil, err
	}
	if running != nil {
		return nil, fmt.Errorf("%s: %w: it is served at %s", h.Dir, ErrBusy, running.Address)
	}
	if h.Metrics != "" {
		s.lives.begin()
	}
	if err := s.inspect(); err != nil {
		return nil, errors.Join(err, s.close())
	}
	srv, err := h.newServer(s, serverTimeouts)
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return srv, nil
}

// inspect looks at everything in a store that is to be served, and remembers
// whose it is.
func (s *store) inspect() error {
	ids := map[string][]uuid.UUID{}
	_, err := s.countEach(func(o *object) {
		ids[o.Owner] = append(ids[o.Owner], o.id)
		s.lives.set(o.id, lifeOf(o))
	})
	if err == nil {
		s.owners.set(ids)
	}
	return err
}

// access finds the way to the store: the server that runs, or else the store
// itself, opened when everybody else is done with it. Who has to be asked for a
// passphrase is asked before, lest everybody wait for it.
func (h Home) access(ctx context.Context, mode openMode) (*store, *status, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, storeWait, fmt.Errorf("waited %v", storeWait))
	defer cancel()
	var p passphrases
	defer func() { p.destroy() }()
	for {
		if running, err := h.status(ctx); err == nil {
			return nil, running, nil
		}
		if p == nil {
			p = h.passphrases()
		}
		s, err := h.openWith(p, mode, storePoll)
		if !errors.Is(err, ErrBusy) {
			return s, nil, err
		}
		if ctx.Err() != nil {
			return nil, nil, fmt.Errorf("%w: %w", err, context.Cause(ctx))
		}
	}
}

// open opens the store under the home's root key.
func (h Home) open(mode openMode, wait time.Duration) (*store, error) {
	p := h.passphrases()
	defer p.destroy()
	return h.openWith(p, mode, wait)
}

// openWith opens the store with what passphrases gave.
func (h Home) openWith(p passphrases, mode openMode, wait time.Duration) (*store, error) {
	if !h.Exists() {
		return nil, fmt.Errorf("%s: %w", h.Dir, ErrMissing)
	}
	s, err := openStore(h.path(storeFile), func() ([]*kept, error) { return h.rootKeys(p) }, mode, wait)
	if err != nil || mode == forReading {
		return s, err
	}
	if err := h.settleRootKey(s); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}
