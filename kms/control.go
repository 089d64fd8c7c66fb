package kms

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/vmcrypt/vmcrypt/internal/audit"
	"github.com/vmcrypt/vmcrypt/internal/listen"
)

const (
	controlFile    = "control.sock"
	controlTimeout = 5 * time.Second // for everything but the copy of a snapshot
	snapshotTime   = 5 * time.Minute
	maxAnswer      = 64 << 20 // bytes, of JSON: some 200,000 clients
)

// status is what a running server tells about itself at GET /status.
type status struct {
	Address  string     `json:"address"` // the TCP address it listens on
	Sequence uint64     `json:"sequence"`
	Audit    audit.Head `json:"audit"` // the last entry of the audit log
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
func (h Home) startControl(s *server, address net.Addr) (*control, error) {
	folder, path, err := h.socketPath()
	if err != nil {
		return nil, err
	}
	l, err := listen.Private(context.Background(), path)
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

func (h Home) controlHandler(s *server, address net.Addr) http.Handler {
	st := s.engine.store
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { tellStatus(w, s, address) })
	mux.HandleFunc("POST /snapshot", func(w http.ResponseWriter, _ *http.Request) { sendSnapshot(w, st) })
	mux.HandleFunc("POST /rotate-root", func(w http.ResponseWriter, r *http.Request) { h.answerRotation(w, r, s) })
	mux.HandleFunc("GET /clients", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(s.clients.list()) // the client sees what is missing
	})
	mux.HandleFunc("POST /clients/add", func(w http.ResponseWriter, r *http.Request) {
		obey(w, r, func(in *addition) error { return s.addClient(in.Client, in.Replace) })
	})
	mux.HandleFunc("POST /clients/revoke", func(w http.ResponseWriter, r *http.Request) {
		obey(w, r, func(name *string) error { return s.revokeClient(*name) })
	})
	return mux
}

// addition is the body of POST /clients/add.
type addition struct {
	Client  registered `json:"client"`
	Replace bool       `json:"replace"`
}

// controlStatus gives the errors that the caller of control.sock tells apart.
var controlStatus = map[int]error{
	http.StatusConflict: ErrClientExists,
	http.StatusNotFound: ErrNoClient,
}

// obey does what the body of a request asks for.
func obey[T any](w http.ResponseWriter, r *http.Request, do func(*T) error) {
	in := new(T)
	if err := json.NewDecoder(io.LimitReader(r.Body, maxSmallFile)).Decode(in); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	err := do(in)
	if err == nil {
		return
	}
	code := http.StatusInternalServerError
	for status, known := range controlStatus {
		if errors.Is(err, known) {
			code = status
		}
	}
	http.Error(w, err.Error(), code)
}

func tellStatus(w http.ResponseWriter, s *server, address net.Addr) {
	st := status{Address: address.String(), Audit: s.audit.Head()}
	err := s.engine.store.view(func(t *tx) error {
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
	st := &status{}
	return st, h.fetch(ctx, "/status", st)
}

// Alive fails if no server runs on this home, or if it does not answer within 5 s.
func (h Home) Alive(ctx context.Context) error {
	_, err := h.status(ctx)
	return err
}

// fetch gets an answer from the server that runs on this home.
func (h Home) fetch(ctx context.Context, path string, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	body, err := h.call(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer body.Close()
	return json.NewDecoder(io.LimitReader(body, maxAnswer)).Decode(answer)
}

// order has the server that runs on this home do something.
func (h Home) order(ctx context.Context, path string, what any) error {
	text, err := json.Marshal(what)
	if err != nil {
		return err
	}
	body, err := h.call(ctx, http.MethodPost, path, text)
	if err != nil {
		return err
	}
	return body.Close()
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
		return nil, &controlError{resp.StatusCode, string(bytes.TrimSpace(text))}
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

// controlError is what the server that runs answered instead of obeying.
type controlError struct {
	code    int
	message string
}

func (e *controlError) Error() string { return "the running key manager: " + e.message }
func (e *controlError) Unwrap() error { return controlStatus[e.code] }
