package daemon

import (
	"context"
	"log/slog"
	"time"
)

// goOn has a VM unlocked from now on. It has a disk server, or p is nil.
func (d *daemon) goOn(w wish, p *process) *machine {
	m := d.machine(w.VM.Descriptor)
	defer d.left(m)
	m.runs(w, p)
	m.tend(func() {
		if p != nil {
			m.watch(p)
		} else {
			m.restart(0)
		}
	})
	return m
}

// watch starts the disk server of a VM again when it has ended.
func (m *machine) watch(p *process) {
	select {
	case <-p.ended:
	case <-m.ctx.Done():
		return
	}
	if !m.died(p) {
		m.finish(p)
		return
	}
	slog.Warn("a disk server has ended", "descriptor", m.descriptor)
	m.metrics.exits.Inc()
	m.restart(m.pauseAfter(time.Since(p.since)))
}

// finish ends a lock that failed because the disk server did not end.
func (m *machine) finish(p *process) {
	if err := m.take(m.ctx); err != nil {
		return
	}
	defer m.give()
	if m.process() == p { // neither did another lock, nor has the VM been unlocked since
		_ = m.stop(m.ctx) // it is on record how that ends
	}
}

// Pauses before attempts to start a disk server again.
const (
	firstPause = 200 * time.Millisecond
	maxPause   = time.Minute

	shortLife      = 10 * time.Second // a disk server that ends so soon may do so again
	shortLifePause = time.Second
)

// pauseAfter is the pause after a disk server has ended: none, or the longer, the more
// of them had short lives, one after the other.
func (m *machine) pauseAfter(life time.Duration) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	if life < shortLife {
		m.pause = min(max(2*m.pause, shortLifePause), maxPause)
	} else {
		m.pause = 0
	}
	return m.pause
}

// restart starts the disk server of a VM that is to be unlocked, until that works, or
// the VM is locked.
func (m *machine) restart(pause time.Duration) {
	for {
		select {
		case <-time.After(pause):
		case <-m.ctx.Done():
			return
		}
		if m.tryRestart() {
			return
		}
		pause = min(max(2*pause, firstPause), maxPause)
	}
}

// tryRestart is done if the disk server runs, for others may have started it, or is
// not wanted any more. A lock interrupts it.
func (m *machine) tryRestart() (done bool) {
	ctx, cancel := context.WithCancel(m.ctx)
	defer cancel()
	if err := m.take(ctx); err != nil {
		return true
	}
	defer m.give()
	w := m.wants()
	if w == nil || w.Locking {
		return true
	}
	if _, err := m.running(ctx); err == nil {
		return true
	}
	m.attempting(cancel)
	defer m.attempting(nil)
	e := m.entry(ctx, actRestart, *w)
	err := m.start(ctx, m.descriptor, *w, e)
	if err == nil {
		m.revives()
	}
	if news := m.isNews(err); news || len(e.Keys) > 0 {
		m.conclude(e, err)
	}
	return err == nil
}
