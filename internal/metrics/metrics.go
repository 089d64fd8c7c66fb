// Package metrics has the metrics of a daemon scraped, in Prometheus's text format, by
// HTTP: at a unix socket, or at an address that only this host reaches.
//
//	registry := metrics.NewRegistry("1.0")
//	registry.MustRegister(...)
//	l, err := listen.Local(ctx, "/run/vmcrypt/metrics.sock", gid)
//	go metrics.Serve(ctx, l, registry)
package metrics

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/vmcrypt/vmcrypt/internal/listen"
)

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

// Limits of scrapes.
const (
	maxScrapes  = 4  // at once; others are told to come again
	maxClients  = 64 // connections: every user of the host may make some
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
	if err := s.Serve(listen.Limit(l, maxClients)); !errors.Is(err, http.ErrServerClosed) {
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
