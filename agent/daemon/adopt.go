package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vmcrypt/vmcrypt/agent/diskserver"
	"github.com/vmcrypt/vmcrypt/internal/durable"
)

// wish is how a VM is to be unlocked. It lies beside the disk server's directory, for
// the agent that is started next.
type wish struct {
	Path     string `json:"path"` // of the descriptor or bare image
	ReadOnly bool   `json:"readOnly"`
}

const wishSuffix = ".json"

func (m *machine) note(w wish) error {
	text, err := json.Marshal(w)
	if err != nil {
		return err
	}
	return durable.WriteFile(m.directory+wishSuffix, text, 0o600)
}

func (m *machine) unnote() error {
	if err := os.Remove(m.directory + wishSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// wishOf tells how a disk server was started.
func wishOf(s *diskserver.Status) *wish {
	w := &wish{Path: imageOf(s.VM.Descriptor)}
	if len(s.Disks) > 0 {
		w.ReadOnly = s.Disks[0].ReadOnly
	}
	return w
}

// adopt finds what earlier agents left: disk servers that run, and such as should.
func (d *daemon) adopt() error {
	entries, err := os.ReadDir(d.folder)
	if err != nil {
		return err
	}
	done := map[string]bool{}
	for _, e := range entries {
		id := strings.TrimSuffix(e.Name(), wishSuffix)
		if done[id] {
			continue
		}
		done[id] = true
		if err := d.adoptOne(id); err != nil {
			slog.Error("what an earlier agent left can't be taken over", "directory", filepath.Join(d.folder, id), "error", err)
		}
	}
	return nil
}

func (d *daemon) adoptOne(id string) error {
	directory := filepath.Join(d.folder, id)
	ctx, cancel := context.WithTimeout(d.ctx, askTime)
	defer cancel()
	w, err := readWish(directory)
	if err != nil {
		return err
	}
	p, status, err := serving(ctx, directory)
	if err == nil {
		return d.adoptServer(p, status, w, id)
	}
	p, silence := silent(directory)
	if silence != nil && !errors.Is(silence, fs.ErrNotExist) {
		return silence
	}
	if w != nil {
		return d.adoptSilent(p, w)
	}
	if p != nil {
		p.Close()
		return fmt.Errorf("a disk server that can't be asked, nor its VM be told: %w", err)
	}
	return os.RemoveAll(directory) // of one that was stopped, or never came to be
}

// adoptSilent goes on with a disk server that can't be asked, or is none any more.
func (d *daemon) adoptSilent(p *process, w *wish) error {
	m, leave, err := d.enter(d.ctx, w.Path)
	if err != nil {
		return err
	}
	defer leave()
	m.runs(*w, diskserver.VM{Name: filepath.Base(w.Path)}, p)
	d.background.Go(func() {
		if p != nil {
			m.watch(p)
		} else {
			m.restart()
		}
	})
	return nil
}

// adoptServer goes on with a disk server that runs. An agent may have ended before it
// wrote down what it is for.
func (d *daemon) adoptServer(p *process, s *diskserver.Status, w *wish, id string) error {
	m, leave, err := d.enter(d.ctx, s.VM.Descriptor)
	if err != nil {
		return err
	}
	defer leave()
	if filepath.Base(m.directory) != id {
		p.Close()
		return fmt.Errorf("there is a disk server of %s", s.VM.Descriptor)
	}
	if w == nil {
		w = wishOf(s)
		err = m.note(*w)
	}
	m.runs(*w, s.VM, p)
	d.background.Go(func() { m.watch(p) })
	e := m.entry(d.ctx, actAdopt)
	e.about(s.VM, *w)
	m.conclude(e, nil)
	return err
}

func readWish(directory string) (*wish, error) {
	text, err := os.ReadFile(directory + wishSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	w := new(wish)
	return w, json.Unmarshal(text, w)
}

// watch notices when the disk server ends.
func (m *machine) watch(p *process) {
	err := p.wait(m.ctx)
	if m.ctx.Err() != nil {
		return
	}
	m.died(p, "its disk server ended")
	if m.wants() != nil {
		slog.Warn("a disk server has ended", "descriptor", m.descriptor, "error", err)
		m.restart()
	}
}

// Pauses between attempts to start a disk server again.
const (
	firstPause = 200 * time.Millisecond
	maxPause   = time.Minute
)

// restart starts the disk server of a VM that is to be unlocked, until that works, or
// the VM is locked.
func (m *machine) restart() {
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		done, err := m.tryRestart(m.ctx)
		if done {
			return
		}
		m.died(nil, err.Error())
		select {
		case <-time.After(pause):
		case <-m.ctx.Done():
			return
		}
	}
}

// tryRestart is done if the disk server runs, for others may have started it, or is
// not wanted any more.
func (m *machine) tryRestart(ctx context.Context) (done bool, err error) {
	_, leave, err := m.enter(ctx, m.descriptor)
	if err != nil {
		return false, err
	}
	defer leave()
	w := m.wants()
	if w == nil {
		return true, nil
	}
	if _, err := m.ask(ctx); err == nil {
		return true, nil
	}
	err = m.start(ctx, *w, actRestart)
	return err == nil, err
}
