package kms

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

const (
	controlFile    = "control.sock"
	controlTimeout = 5 * time.Second // for everything but the copy of a snapshot
	snapshotTime   = 5 * time.Minute
)

// status is what a running server tells about itself at GET /status.
type status struct {
	Address  string `json:"address"` // the TCP address it listens on
	Sequence uint64 `json:"sequence"`
}

// control is the server's side of control.sock: HTTP for processes of the same
// user on the same host.
type control struct {
	http   *http.Server
	folder *os.File
	once   sync.Once
}

// socketPath gives a path to control.sock that is short enough for a socket's
// address (108 bytes), whatever the home is called. It is valid until the
// folder is closed.
func (h Home) socketPath() (folder *os.File, path string, err error) {
	folder, err = os.Open(h.Dir)
	if err != nil {
		return nil, "", err
	}
	return folder, fmt.Sprintf("/proc/self/fd/%d/%s", folder.Fd(), controlFile), nil
}

// startControl listens on control.sock. The caller has the store open for
// writing, so a socket that is there is nobody's.
func (h Home) startControl(s *store, address net.Addr) (*control, error) {
	folder, path, err := h.socketPath()
	if err != nil {
		return nil, err
	}
	l, err := listenPrivate(path)
	if err != nil {
		folder.Close()
		return nil, fmt.Errorf("%s: %w", h.path(controlFile), err)
	}
	c := &control{folder: folder, http: &http.Server{
		Handler:           h.controlHandler(s, address),
		ReadHeaderTimeout: controlTimeout,
		WriteTimeout:      snapshotTime,
	}}
	go c.http.Serve(l) //nolint:errcheck // ends with stop
	return c, nil
}

func listenPrivate(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// stop removes the socket, lets a snapshot in progress finish for a while, and
// may be called more than once.
func (c *control) stop() {
	c.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), controlTimeout)
		defer cancel()
		if c.http.Shutdown(ctx) != nil {
			c.http.Close()
		}
		c.folder.Close()
	})
}

func (h Home) controlHandler(s *store, address net.Addr) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { tellStatus(w, s, address) })
	mux.HandleFunc("POST /snapshot", func(w http.ResponseWriter, _ *http.Request) { sendSnapshot(w, s) })
	mux.HandleFunc("POST /rotate-root", func(w http.ResponseWriter, r *http.Request) { h.answerRotation(w, r, s) })
	return mux
}

func tellStatus(w http.ResponseWriter, s *store, address net.Addr) {
	st := status{Address: address.String()}
	err := s.view(func(t *tx) error {
		st.Sequence = t.sequence()
		return nil
	})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_ = json.NewEncoder(w).Encode(st) // the client sees what is missing
}

// status asks the server that runs on this home. It fails if there is none.
func (h Home) status(ctx context.Context) (*status, error) {
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	body, err := h.call(ctx, http.MethodGet, "/status", nil)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	st := &status{}
	return st, json.NewDecoder(io.LimitReader(body, maxSmallFile)).Decode(st)
}

// call sends a request to control.sock. The error of reading the result too
// short is io.ErrUnexpectedEOF.
func (h Home) call(ctx context.Context, method, path string, body []byte) (io.ReadCloser, error) {
	transport := &http.Transport{DialContext: h.dialControl, DisableKeepAlives: true}
	req, err := http.NewRequestWithContext(ctx, method, "http://kms"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(resp.Body, maxSmallFile)) // what there is
		return nil, fmt.Errorf("key manager in %s: %s: %s", h.Dir, resp.Status, bytes.TrimSpace(text))
	}
	return resp.Body, nil
}

func (h Home) dialControl(ctx context.Context, _, _ string) (net.Conn, error) {
	folder, path, err := h.socketPath()
	if err != nil {
		return nil, err
	}
	defer folder.Close()
	return (&net.Dialer{}).DialContext(ctx, "unix", path)
}
