// Package metrics has the metrics of a daemon scraped, in Prometheus's text format, by
// HTTP: at a unix socket, or at an address that only this host reaches.
//
//	registry := metrics.NewRegistry("1.0")
//	registry.MustRegister(...)
//	l, err := metrics.Listen(ctx, "/run/vmcrypt/metrics.sock", gid)
//	go metrics.Serve(ctx, l, registry)
package metrics

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sys/unix"
)

// CheckAddress refuses what is neither an absolute path nor HOST:PORT of an address that
// only this host reaches: metrics tell which VMs there are, and nobody is asked who he is.
func CheckAddress(address string) error {
	if filepath.IsAbs(address) {
		return nil
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return errors.New("neither an absolute path of a unix socket nor HOST:PORT")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("%q is no port", port)
	}
	if ip, err := netip.ParseAddr(host); host != "localhost" && (err != nil || !ip.IsLoopback()) {
		return errors.New("it may be reached from other hosts: name a unix socket, or 127.0.0.1, [::1] or localhost")
	}
	return nil
}

// NewRegistry makes a registry whose only metric tells which release it is.
func NewRegistry(release string) *prometheus.Registry {
	registry := prometheus.NewRegistry()
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "vmcrypt_build_info", Help: "Which release of vmcrypt runs, and which of Go it was built with; the value is 1.",
		ConstLabels: prometheus.Labels{"version": release, "goversion": runtime.Version()},
	})
	info.Set(1)
	registry.MustRegister(info)
	return registry
}

// Listen listens at an address that CheckAddress takes. A unix socket takes the place of
// one that is left from before; its group, unless that is -1, may connect to it.
func Listen(ctx context.Context, address string, group int) (net.Listener, error) {
	if !filepath.IsAbs(address) {
		return new(net.ListenConfig).Listen(ctx, "tcp", address)
	}
	if err := makeWay(address); err != nil {
		return nil, err
	}
	defer unix.Umask(unix.Umask(0o177)) // until the socket is given away
	l, err := new(net.ListenConfig).Listen(ctx, "unix", address)
	if err != nil {
		return nil, err
	}
	if err := give(address, group); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func makeWay(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s: %w, and is no socket", path, fs.ErrExist)
	}
	return os.Remove(path)
}

func give(path string, group int) error {
	if group < 0 {
		return nil
	}
	if err := os.Lchown(path, -1, group); err != nil {
		return err
	}
	return os.Chmod(path, 0o660) //nolint:gosec // as the group may connect
}

// Limits of scrapes.
const (
	maxScrapes  = 4 // at once; others are told to come again
	requestTime = 5 * time.Second
	answerTime  = 20 * time.Second // to collect the metrics, and to send them
	idleTime    = 2 * time.Minute
	maxHeader   = 16 << 10 // bytes
)

// Serve has a registry scraped until ctx ends.
func Serve(ctx context.Context, l net.Listener, registry *prometheus.Registry) {
	s := &http.Server{
		Handler: handler(registry), ErrorLog: slog.NewLogLogger(slog.Default().Handler(), slog.LevelWarn),
		ReadTimeout: requestTime, WriteTimeout: answerTime, IdleTimeout: idleTime, MaxHeaderBytes: maxHeader,
	}
	defer context.AfterFunc(ctx, func() { s.Close() })()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		slog.Error("metrics can't be scraped any more", "address", l.Addr().String(), "error", err)
	}
}

// handler answers GET /metrics. What can't be collected is left out, and logged.
func handler(registry *prometheus.Registry) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		ErrorLog: complaints{}, ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: maxScrapes,
	}))
	return mux
}

// complaints logs what promhttp complains of.
type complaints struct{}

func (complaints) Println(v ...any) {
	slog.Warn("metrics are not complete", "error", strings.TrimSpace(fmt.Sprintln(v...)))
}
