package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/vmcrypt/vmcrypt/agent/diskserver"
	"github.com/vmcrypt/vmcrypt/internal/durable"
)

// wish is how a VM is to be unlocked. It lies beside the disk server's directory, for
// the agent that is started next.
type wish struct {
	VM       diskserver.VM `json:"vm"`
	ReadOnly bool          `json:"readOnly"`
	Boot     string        `json:"boot"`              // of the host: after another one, all is locked
	Locking  bool          `json:"locking,omitempty"` // once the disk server has ended, it stays so
	Owner    string        `json:"owner,omitempty"`   // for whom; "" for nobody in particular
}

const wishSuffix = ".json"

func (m *machine) note(w wish) error {
	text, err := json.Marshal(w)
	if err != nil {
		return err
	}
	return durable.WriteFile(m.directory+wishSuffix, text, 0o600)
}

// noteLock keeps the next agent from starting the disk server again.
func (m *machine) noteLock(w wish) {
	err := m.note(w)
	if err != nil {
		err = errors.Join(err, unnote(m.directory))
		slog.Error("it can't be noted that a VM is to be locked", "descriptor", m.descriptor, "error", err)
	}
}

func unnote(directory string) error {
	if err := os.Remove(directory + wishSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// noted gives the wish for a directory, nil if there is none that counts.
func (d *daemon) noted(directory string) *wish {
	text, err := os.ReadFile(directory + wishSuffix)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			slog.Error("a note of an earlier agent can't be read", "error", err)
		}
		return nil
	}
	w := new(wish)
	if err := json.Unmarshal(text, w); err != nil || w.Boot != d.boot {
		slog.Warn("a note of an earlier agent does not count", "file", directory+wishSuffix, "error", err, "boot", w.Boot)
		return nil
	}
	return w
}

// bootID tells this run of the kernel from others: random(4).
func bootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(id)), err
}

// adopt finds what earlier agents left: disk servers that run, and such as should.
func (d *daemon) adopt() error {
	entries, err := os.ReadDir(d.folder)
	if err != nil {
		return err
	}
	ids := map[string]bool{}
	for _, e := range entries {
		id, _, _ := strings.Cut(e.Name(), ".") // a directory, its lock or its note
		ids[id] = true
	}
	var adopting errgroup.Group
	adopting.SetLimit(askedAtOnce)
	for id := range ids {
		adopting.Go(func() error {
			directory := filepath.Join(d.folder, id)
			if err := d.adoptOne(directory); err != nil {
				slog.Error("what an earlier agent left can't be taken over", "directory", directory, "error", err)
			}
			return nil
		})
	}
	return adopting.Wait()
}

func (d *daemon) adoptOne(directory string) error {
	w := d.noted(directory)
	p, status, err := serving(d.ctx, directory)
	if err == nil {
		return d.adoptServer(p, status, w, directory)
	}
	p, silence := silent(directory)
	switch {
	case errors.Is(silence, fs.ErrNotExist) && (w == nil || w.Locking): // it was stopped, or never came to be
		diskserver.RemoveDirectory(directory)
		return unnote(directory)
	case w != nil && p != nil:
		d.takeOver(*w, p)
		return nil
	case w != nil:
		d.goOn(*w, nil)
		return nil
	}
	return fmt.Errorf("a disk server that can't be asked, nor its VM be told: %w", errors.Join(err, silence))
}

// adoptServer goes on with a disk server that runs. An agent may have ended before it
// wrote down what it is for.
func (d *daemon) adoptServer(p *process, s *diskserver.Status, w *wish, directory string) (err error) {
	if d.directoryOf(s.VM.Descriptor) != directory {
		return fmt.Errorf("there is a disk server of %s", s.VM.Descriptor)
	}
	unnoted := w == nil
	if unnoted {
		w = &wish{VM: s.VM, ReadOnly: s.Disks[0].ReadOnly, Boot: d.boot}
	}
	m := d.takeOver(*w, p)
	if unnoted {
		err = m.note(*w)
	}
	return err
}

// takeOver goes on with a disk server of an earlier agent.
func (d *daemon) takeOver(w wish, p *process) *machine {
	m := d.goOn(w, p)
	m.conclude(m.entry(d.ctx, actAdopt, w), nil)
	return m
}
