package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/vmcrypt/vmcrypt/agent"
	"github.com/vmcrypt/vmcrypt/agent/api"
	"github.com/vmcrypt/vmcrypt/internal/text"
)

// operations are those of api/openapi.yaml.
func (d *daemon) operations() map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{
		"GET /v1/vms": handle(d, viewer, withoutBody(func(ctx context.Context, _ *http.Request) (any, error) {
			return d.list(ctx)
		})),
		"GET /v1/vm": handle(d, viewer, withoutBody(func(ctx context.Context, r *http.Request) (any, error) {
			return d.status(ctx, r.URL.Query().Get("vm"))
		})),
		"GET /v1/agent": handle(d, viewer, func(context.Context, *http.Request) (any, error) {
			return d.self(), nil
		}),
		"GET /v1/overview": handle(d, viewer, withoutBody(func(ctx context.Context, _ *http.Request) (any, error) {
			return d.overview(ctx)
		})),
		"POST /v1/unlock": handle(d, operator, withBody(d.unlock)),
		"POST /v1/lock":   handle(d, operator, withBody(d.lock)),
		"GET /v1/openapi.yaml": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/yaml")
			limitWriting(w)
			_, _ = w.Write(api.OpenAPI) // a client that went away
		},
	}
}

func (d *daemon) routes() http.Handler {
	mux := http.NewServeMux()
	for pattern, do := range d.operations() {
		mux.HandleFunc(pattern, do)
	}
	mux.HandleFunc("/", handle(d, stranger, func(_ context.Context, r *http.Request) (any, error) {
		return nil, fmt.Errorf("%w: there is no %s %s in this release; see /v1/openapi.yaml", errPath, r.Method, r.URL.Path)
	}))
	return mux
}

// errPath is the error for a path that is none of the API's.
var errPath = errors.New("unknown operation")

// ErrRequest is the error for a request that says nothing sensible.
var ErrRequest = errors.New("malformed request")

// handle answers requests of those who may make them.
func handle(d *daemon, need role, do func(context.Context, *http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxRequest)
		who := peerIn(r.Context())
		err := who.may(d.Groups, need)
		var answer any
		if err == nil {
			answer, err = do(r.Context(), r)
		}
		if err != nil {
			who.complain(r.Pattern, err)
			d.metrics.failed(err)
			d.fail(w, err)
			return
		}
		send(w, http.StatusOK, answer)
	}
}

// complain logs why a request failed. Those who may do nothing are told, and that is
// all: the log is not theirs to fill.
func (p peer) complain(operation string, err error) {
	if p.role != stranger {
		slog.Warn("request failed", "operation", operation, "uid", p.uid, "pid", p.pid, "error", text.Clip(err.Error(), maxReason))
	}
}

// withoutBody is for an operation that takes nothing from the body. What is there all
// the same has to be read: only then does net/http notice that a client goes away.
func withoutBody(do func(context.Context, *http.Request) (any, error)) func(context.Context, *http.Request) (any, error) {
	return func(ctx context.Context, r *http.Request) (any, error) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrRequest, err)
		}
		return do(ctx, r)
	}
}

// withBody is for an operation that takes all that it needs from the body.
func withBody[T any](do func(context.Context, T) (*api.VM, error)) func(context.Context, *http.Request) (any, error) {
	return func(ctx context.Context, r *http.Request) (any, error) {
		var request T
		body := json.NewDecoder(r.Body)
		body.DisallowUnknownFields()
		if err := body.Decode(&request); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrRequest, err)
		}
		if _, err := body.Token(); !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%w: more than one JSON value", ErrRequest)
		}
		return do(ctx, request)
	}
}

func (d *daemon) fail(w http.ResponseWriter, err error) {
	code, hint := d.Explain(err)
	send(w, statusOf(err, code), map[string]*api.Error{"error": {Message: err.Error(), Hint: hint, ExitCode: code}})
}

// statuses are the HTTP statuses of errors; the first that fits counts.
var statuses = []struct {
	err    error
	status int
}{
	{ErrDenied, http.StatusForbidden},
	{agent.ErrOutside, http.StatusForbidden},
	{ErrRequest, http.StatusBadRequest},
	{ErrAmbiguous, http.StatusConflict},
	{agent.ErrState, http.StatusUnprocessableEntity},
	{errPath, http.StatusNotFound},
	{ErrUnknownVM, http.StatusNotFound},
}

// ofExitCodes are the statuses of all others, by the exit codes of docs/cli.md.
var ofExitCodes = map[int]int{
	2: http.StatusBadRequest,
	3: http.StatusServiceUnavailable,
	4: http.StatusUnprocessableEntity,
	5: http.StatusUnprocessableEntity,
	6: http.StatusConflict,
	7: http.StatusConflict,
}

func statusOf(err error, exitCode int) int {
	for _, s := range statuses {
		if errors.Is(err, s.err) {
			return s.status
		}
	}
	if status, ok := ofExitCodes[exitCode]; ok {
		return status
	}
	return http.StatusInternalServerError
}

func send(w http.ResponseWriter, status int, answer any) {
	limitWriting(w)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(answer) // a client that went away
}

// limitWriting gives an answer so much time to be read by its client. net/http lifts the
// limit with the end of the answer.
func limitWriting(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(requestTime)) // a connection can
}
