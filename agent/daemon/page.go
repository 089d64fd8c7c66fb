package daemon

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/vmcrypt/vmcrypt/agent/page"
	"github.com/vmcrypt/vmcrypt/internal/listen"
)

// openPage has a status page served, if there is to be one. That it can't be is no reason
// not to unlock VMs.
func (d *daemon) openPage() {
	if d.HTTP == "" {
		return
	}
	token, err := d.pageToken()
	if err != nil {
		slog.Error("there is no status page", "error", err)
		return
	}
	l, err := listen.Local(d.ctx, d.HTTP, d.viewGroup())
	if err != nil {
		slog.Error("there is no status page", "error", err)
		return
	}
	if token != nil {
		slog.Info("status page", "at", "http://"+l.Addr().String()+"/", "token in", token.File)
	} else {
		slog.Info("status page", "at", d.HTTP)
	}
	d.background.Go(func() {
		if err := page.Serve(d.ctx, l, page.Handler(d.overview, token)); err != nil {
			slog.Error("the status page has ended", "error", err)
		}
	})
}

// onSocket tells whether the status page is on a unix socket.
func (d *daemon) onSocket() bool { return filepath.IsAbs(d.HTTP) }

// pageToken is what opens the status page; nil if its socket's mode says who can. Viewers
// may read it, and so have to get to its folder; what else is in there is nobody's business.
func (d *daemon) pageToken() (*page.Token, error) {
	if d.onSocket() {
		return nil, nil
	}
	group := d.viewGroup()
	if group >= 0 {
		if err := errors.Join(os.Chown(d.State, -1, group), os.Chmod(d.State, 0o710)); err != nil { //nolint:gosec // as is said above
			return nil, err
		}
	}
	return page.OpenToken(filepath.Join(d.State, "http-token"), group)
}

// viewGroup is the group of those who may look; negative if there is none that the agent
// could give a file to.
func (d *daemon) viewGroup() int {
	if d.own.uid != 0 || d.access.view == noGroup {
		return -1
	}
	return int(d.access.view)
}
