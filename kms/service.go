package kms

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// auditMark is how often a server notes in the store how far the audit log
// goes: what is cut off it before that is noticed.
const auditMark = time.Minute

// newServer makes a server of a home from its store, which it takes charge of:
// close closes it.
func (h Home) newServer(s *store, t kmipwire.Timeouts) (*server, error) {
	srv, err := h.newOffice(s)
	if err != nil {
		return nil, err
	}
	srv.timeouts = t
	if srv.certificates, err = h.certificates(srv.clients.admit); err != nil {
		return nil, errors.Join(err, srv.audit.Close())
	}
	return srv, nil
}

// newOffice makes a server for administrators only, who need no certificates.
func (h Home) newOffice(s *store) (_ *server, err error) {
	srv := &server{engine: newEngine(s), guests: newGuests(serverLimits.fitting())}
	if srv.clients, err = newRegistry(s); err != nil {
		return nil, err
	}
	if srv.marked, err = s.auditHead(); err != nil {
		return nil, err
	}
	if srv.audit, err = h.openAudit(srv.marked); err != nil {
		return nil, err
	}
	srv.audit.failures = srv.engine.meters.unaudited
	srv.strangers, srv.shutOut = newRefusals(srv.note), newRefusals(srv.note)
	return srv, nil
}

// note writes an entry that nobody waits for.
func (s *server) note(e auditEntry) {
	if err := s.audit.append([]auditEntry{e}); err != nil {
		slog.Error("key manager", "error", err)
	}
}

// close closes audit log and store.
func (s *server) close() error {
	s.countRefusals()
	return errors.Join(s.mark(), s.audit.Close(), s.engine.store.close())
}

func (s *server) countRefusals() {
	s.strangers.tick()
	s.shutOut.tick()
}

// mark notes in the store how far the audit log goes.
func (s *server) mark() error {
	head, err := s.audit.Sync()
	if err != nil || head == s.marked {
		return err
	}
	s.marked = head
	return s.engine.store.setAuditHead(head)
}

// keepMarking marks, and counts refusals, until ctx ends. Nobody else may meanwhile.
func (s *server) keepMarking(ctx context.Context) {
	tick := time.NewTicker(auditMark)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.countRefusals()
			_ = s.mark() // the store fails for others, too
		case <-ctx.Done():
			return
		}
	}
}

// The names of what administrators do, in the audit log.
const (
	addOperation    = "Add Client"
	revokeOperation = "Revoke Client"
	rotateOperation = "Rotate Root Key"
)

func (s *server) addClient(c registered, replace bool) error {
	err := s.clients.add(c, replace)
	if err == nil && replace {
		s.guests.expel(c.Name)
	}
	return s.report(addOperation, c.Name, err)
}

func (s *server) revokeClient(name string) error {
	err := s.clients.revoke(name)
	if err == nil {
		s.guests.expel(name)
	}
	return s.report(revokeOperation, name, err)
}

func (s *server) rotateRoot(h Home, k *keeper) error {
	return s.report(rotateOperation, "", h.rotate(s.engine.store, k))
}

// report writes into the audit log what an administrator did.
func (s *server) report(operation, object string, err error) error {
	e := auditEntry{Time: time.Now(), Client: administrator(), Address: "local", Operation: operation, Object: object, Result: "Success"}
	if err != nil {
		e.Result, e.Reason = "Operation Failed", err.Error()
	}
	return errors.Join(err, s.audit.append([]auditEntry{e}))
}

// administrator is who the audit log says has changed something.
func administrator() string { return fmt.Sprintf("uid %d", os.Getuid()) }
