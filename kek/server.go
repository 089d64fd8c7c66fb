package kek

import (
	"context"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// server is a key manager of a cluster: the connections to it that are kept, and how it
// fared of late.
type server struct {
	Server
	cluster *Cluster
	places  chan struct{} // an element for each connection in use

	mu       sync.Mutex
	idle     []*session  // the one used last comes last
	reaper   *time.Timer // closes those that nobody uses; nil while there are none
	failed   int         // how often in a row it did not do what it was asked for
	since    time.Time   // when it did not for the first time since it was last well
	resume   time.Time   // until when it is asked last; zero while all is well
	answered time.Time   // when it last did
	probe    *time.Timer // asks it in the background at that time; nil while all is well, or nothing is kept
}

const (
	idleTime  = 30 * time.Second // that a connection is kept without being used
	firstRest = time.Second      // of a server that has failed
	maxRest   = time.Minute
)

// take gives a connection to the server that has agreed on a version: one that was kept,
// if there is one, or a new one. Done gives it back, and says what has become of it.
func (s *server) take(ctx context.Context) (_ *session, kept bool, err error) {
	if err := s.enter(ctx); err != nil {
		return nil, false, err
	}
	if conn := s.reuse(); conn != nil {
		return conn, true, nil
	}
	conn, err := s.begin(ctx)
	return conn, false, err
}

// takeNew gives a new connection, which nobody has closed yet. One that was kept makes
// room for it.
func (s *server) takeNew(ctx context.Context) (*session, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	if conn := s.reuse(); conn != nil {
		conn.conn.Close()
	}
	return s.begin(ctx)
}

// enter waits for a place.
func (s *server) enter(ctx context.Context) error {
	select {
	case s.places <- struct{}{}:
		return nil
	default:
		return s.queue(ctx)
	}
}

// queue waits for a place for as long as the server answers others: those who queue for one
// that hangs would wait for it one after the other.
func (s *server) queue(ctx context.Context) error {
	begun, wait := time.Now(), time.NewTimer(s.cluster.timeout)
	defer wait.Stop()
	for {
		select {
		case s.places <- struct{}{}:
			return nil
		case <-wait.C:
			left := s.cluster.timeout - s.silentSince(begun)
			if left <= 0 {
				return &transportError{os.ErrDeadlineExceeded}
			}
			wait.Reset(left)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// silentSince is how long the server has answered nobody, from a time on.
func (s *server) silentSince(begun time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.answered.After(begun) {
		begun = s.answered
	}
	return time.Since(begun)
}

func (s *server) answeredAfter(t time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.answered.After(t)
}

func (s *server) leave() { <-s.places }

// begin makes the connection of a place.
func (s *server) begin(ctx context.Context) (*session, error) {
	conn, err := s.connect(ctx)
	if err != nil {
		s.leave()
		s.noteFailure(ctx, err)
	}
	return conn, err
}

// reuse takes a connection that was kept. Those that were for too long are closed, and
// those that were made by other certificates than are in force.
func (s *server) reuse() (conn *session) {
	trusted := s.cluster.trust.current()
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.idle) > 0 && conn == nil {
		last := len(s.idle) - 1
		conn, s.idle = s.idle[last], s.idle[:last]
		if time.Since(conn.used) > idleTime || conn.trusted != trusted {
			conn.conn.Close()
			conn = nil
		}
	}
	return conn
}

// done gives a connection back on which something ended with an error, or nil.
func (s *server) done(ctx context.Context, conn *session, err error) {
	if !isAnswer(err) {
		s.noteFailure(ctx, err)
		conn.conn.Close()
		s.leave()
		return
	}
	s.noteSuccess()
	s.giveBack(conn)
}

// giveBack gives a connection back on which more can be asked.
func (s *server) giveBack(conn *session) {
	defer s.leave()
	if !s.keep(conn) {
		conn.conn.Close()
	}
}

// keep has a connection wait for the next who needs one.
func (s *server) keep(conn *session) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.cluster.keeps() || conn.transient || len(s.idle) >= cap(s.places) {
		return false
	}
	conn.conn.Forget()
	conn.used = time.Now()
	s.idle = append(s.idle, conn)
	if s.reaper == nil {
		s.reaper = time.AfterFunc(idleTime, s.reap)
	}
	return true
}

// reap closes the connections that were kept for too long, and comes back for the others.
func (s *server) reap() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.idle) > 0 && time.Since(s.idle[0].used) >= idleTime {
		s.idle[0].conn.Close()
		s.idle = s.idle[1:]
	}
	s.reaper = nil
	if len(s.idle) > 0 {
		s.reaper = time.AfterFunc(idleTime-time.Since(s.idle[0].used), s.reap)
	}
}

// noteFailure is for work that ended with an error. That a caller gave up is no failure of
// the server's, and to refuse is none either.
func (s *server) noteFailure(ctx context.Context, err error) {
	if ctx.Err() == nil && !s.cluster.diagnose(s.Address, err).answered {
		s.rest()
	}
}

// rest has the server asked last for a while, the longer the more often in a row, and
// looks after it meanwhile. Many who see it fail at once count as one.
func (s *server) rest() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Now().Before(s.resume) {
		return
	}
	if s.resume.IsZero() {
		s.since = time.Now()
	}
	rest := min(firstRest<<min(s.failed, 6), maxRest)
	s.failed++
	s.resume = time.Now().Add(rest)
	if !s.cluster.keeps() {
		return
	}
	if s.probe != nil {
		s.probe.Stop()
	}
	s.probe = time.AfterFunc(rest, s.tryAgain)
}

// noteAnswer is for one message: the server is not silent.
func (s *server) noteAnswer() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answered = time.Now()
}

// noteSuccess is for work that the server has answered to the end.
func (s *server) noteSuccess() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed = 0
	s.endRest()
}

// noteBack is for a server that can be connected to: it is asked in its turn again. If it
// then fails as before, it rests for longer than before.
func (s *server) noteBack() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endRest()
}

// endRest is called with the server locked.
func (s *server) endRest() {
	s.resume = time.Time{}
	if s.probe != nil {
		s.probe.Stop()
		s.probe = nil
	}
}

// restsSince is since when the server is better asked last: for a while, and until the one
// who looks after it has found it well. The time is zero if it is not.
func (s *server) restsSince() (since time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.probe != nil || time.Now().Before(s.resume) {
		since = s.since
	}
	return since
}

// tryAgain connects to a server that has failed, so that nobody has to wait for it who
// needs a key. Each step has as long as it has for others.
func (s *server) tryAgain() {
	ctx := s.cluster.kept
	conn, err := s.takeNew(ctx)
	switch {
	case err == nil:
		s.noteBack()
		s.giveBack(conn)
	case ctx.Err() != nil:
	case s.cluster.diagnose(s.Address, err).answered:
		s.noteBack()
	default:
		s.rest()
	}
}

func (s *server) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endRest()
	if s.reaper != nil {
		s.reaper.Stop()
	}
	for _, conn := range s.idle {
		conn.conn.Close()
	}
	s.idle = nil
}

// connect dials the key manager, completes the TLS handshake and agrees on a version of
// KMIP.
func (s *server) connect(ctx context.Context) (_ *session, err error) {
	defer s.cluster.watch(ctx, s.Address, "connect", time.Now(), &err)
	raw, err := s.dial(ctx)
	if err != nil {
		return nil, &transportError{err}
	}
	_, transient := raw.(interface{ Transient() })
	trusted := s.cluster.trust.current()
	conn := &session{
		server: s, transient: transient, trusted: trusted,
		conn: kmipwire.Client(raw, s.cluster.trust.tls(trusted, s.Server), s.cluster.timeouts),
	}
	if err := conn.conn.Handshake(ctx); err != nil {
		conn.conn.Close()
		return nil, fmt.Errorf("TLS handshake: %w", &transportError{err})
	}
	if err := conn.negotiate(ctx); err != nil {
		conn.conn.Close()
		return nil, err
	}
	return conn, nil
}

func (s *server) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cluster.dialTimeout)
	defer cancel()
	return s.cluster.dial(ctx, s.Address)
}
