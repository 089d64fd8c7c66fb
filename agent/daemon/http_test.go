package daemon

import (
	"context"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/vmcrypt/vmcrypt/agent/api"
)

// TestOperationsAreDocumented: openapi.yaml has them all, and no others.
func TestOperationsAreDocumented(t *testing.T) {
	var document struct {
		Paths map[string]map[string]any
	}
	if err := yaml.Unmarshal(api.OpenAPI, &document); err != nil {
		t.Fatal(err)
	}
	var documented, there []string
	for path, methods := range document.Paths {
		for method := range methods {
			documented = append(documented, strings.ToUpper(method)+" "+path)
		}
	}
	for pattern := range (&daemon{}).operations() {
		there = append(there, pattern)
	}
	slices.Sort(documented)
	slices.Sort(there)
	if !slices.Equal(documented, there) {
		t.Errorf("documented are\n%v, and there are\n%v", documented, there)
	}
}

// hang bounds what must not take for ever.
const hang = time.Minute

// serveRoutes serves a daemon's operations at a socket, and tells when one has begun and
// when it has ended.
func serveRoutes(t *testing.T, d *daemon) (socket string, begun, ended chan struct{}) {
	t.Helper()
	begun, ended = make(chan struct{}, 1), make(chan struct{}, 1)
	socket = filepath.Join(t.TempDir(), "sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	routes := d.routes()
	s := &http.Server{ConnContext: withPeer, ReadTimeout: hang, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begun <- struct{}{}
		routes.ServeHTTP(w, r)
		ended <- struct{}{}
	})}
	t.Cleanup(func() { s.Close() })
	go s.Serve(newGate(l, d.access)) //nolint:errcheck // it ends with the test
	return socket, begun, ended
}

// TestListEndsWithItsClient: nobody waits on, or searches, for a client that went away,
// whether it sent a body or not.
func TestListEndsWithItsClient(t *testing.T) {
	d := newTestDaemon(t)
	d.Explain = func(error) (int, string) { return 1, "" }
	socket, begun, ended := serveRoutes(t, d)
	transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", socket) }}
	for name, list := range map[string]func(context.Context) error{
		"the client": func(ctx context.Context) error {
			_, err := api.NewClient(socket).List(ctx)
			return err
		},
		"with a body": func(ctx context.Context) error {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/v1/vms", strings.NewReader("null"))
			if err != nil {
				return err
			}
			resp, err := transport.RoundTrip(req)
			if err == nil {
				resp.Body.Close()
			}
			return err
		},
	} {
		endsWithClient(t, d, name, list, begun, ended)
	}
}

// endsWithClient has a client list while another scan goes on, and go away.
func endsWithClient(t *testing.T, d *daemon, name string, list func(context.Context) error, begun, ended chan struct{}) {
	t.Helper()
	if err := d.scans.Acquire(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	defer d.scans.Release(1)
	ctx, leave := context.WithCancel(t.Context())
	answered := make(chan error, 1)
	go func() { answered <- list(ctx) }()
	<-begun
	leave()
	if err := <-answered; !errors.Is(err, context.Canceled) {
		t.Errorf("%s: %v", name, err)
	}
	select {
	case <-ended:
	case <-time.After(hang):
		t.Fatalf("%s: the agent goes on", name)
	}
}
