package nbd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"
)

// Serve serves whoever connects to l, which it closes, until ctx ends. Then it
// takes no more requests, finishes those under way, flushes the disks and
// returns: nil, or what a flush said. It returns earlier if l fails.
//
// Several calls may run at once, with several listeners.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	within, cancel := context.WithCancel(ctx)
	defer cancel()
	var open sync.WaitGroup
	var failed error
	for {
		c, err := accept(ctx, l)
		if err != nil {
			failed = err
			break
		}
		s.welcome(within, c, &open)
	}
	if ctx.Err() != nil {
		failed = nil
	}
	cancel()
	open.Wait()
	s.shrink()
	return errors.Join(failed, s.flush())
}

// shrink gives back the memory for requests beside connections, with what it
// held of the disks.
func (s *Server) shrink() {
	for range maxBeside {
		select {
		case b := <-s.spare:
			b.release()
			s.spare <- b
		default:
		}
	}
}

// accept waits for a connection. Errors of the moment, such as too many open
// files, only slow it down; it fails when ctx or l ends.
func accept(ctx context.Context, l net.Listener) (net.Conn, error) {
	for delay := 5 * time.Millisecond; ; delay = min(2*delay, time.Second) {
		c, err := l.Accept()
		if err == nil || ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return c, err
		}
		slog.Warn("nbd: cannot accept a connection", "address", l.Addr(), "error", err)
		select {
		case <-time.After(delay):
		case <-ctx.Done():
		}
	}
}

// welcome serves a connection in a goroutine of its own, or closes it if there
// are too many: a client that is turned away tells its user, one that waits does
// not.
func (s *Server) welcome(ctx context.Context, c net.Conn, open *sync.WaitGroup) {
	select {
	case s.places <- struct{}{}:
	default:
		slog.Warn("nbd: too many connections", "most", maxConnections)
		c.Close()
		return
	}
	open.Go(func() {
		defer func() { <-s.places }()
		if err := s.serve(ctx, c); !isEnd(err) {
			slog.Debug("nbd: connection ended", "error", err)
		}
	})
}

// isEnd tells the ways in which connections usually end.
func isEnd(err error) bool {
	return err == nil || errors.Is(err, errEnd) || errors.Is(err, io.EOF)
}

// serve serves a connection to its end.
func (s *Server) serve(ctx context.Context, c net.Conn) error {
	chosen, err := s.introduce(ctx, c)
	if err != nil {
		return errors.Join(err, c.Close())
	}
	st, err := newStream(c)
	if err != nil {
		return errors.Join(err, c.Close())
	}
	defer st.Close()
	chosen.export.open.Add(1)
	defer chosen.export.open.Add(-1)
	return s.transmit(ctx, chosen, st)
}

// introduce negotiates, in time and as long as ctx lasts.
func (s *Server) introduce(ctx context.Context, c net.Conn) (session, error) {
	if err := c.SetDeadline(time.Now().Add(s.negotiation)); err != nil {
		return session{}, err
	}
	interrupted := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) }) // fails for a closed one
	chosen, err := s.negotiate(c)
	if !interrupted() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return session{}, err
	}
	return chosen, c.SetDeadline(time.Time{})
}

// transmit serves a connection in its second phase.
func (s *Server) transmit(ctx context.Context, chosen session, st stream) error {
	var in, out buffer
	defer in.release()
	defer out.release()
	c, err := newConn(chosen, st, s.spare, &in, &out)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { c.stop(s.grace) })()
	return errors.Join(c.transmit(), c.finish())
}

// stop ends a connection soon: requests that have arrived are refused, and what
// was begun is finished, if the client takes the replies in time.
func (c *conn) stop(grace time.Duration) {
	c.stopping.Store(true)
	c.stream.stop()
	time.AfterFunc(grace, c.stream.abort)
}

// flush makes all that was written durable.
func (s *Server) flush() error {
	var failed []error
	for _, e := range s.exports {
		if e.ReadOnly {
			continue
		}
		if err := e.Disk.Flush(); err != nil {
			failed = append(failed, fmt.Errorf("flush export %q: %w", e.Name, err))
		}
	}
	return errors.Join(failed...)
}
