package daemon

import (
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/vmcrypt/vmcrypt/agent"
	"github.com/vmcrypt/vmcrypt/agent/api"
	"github.com/vmcrypt/vmcrypt/internal/listen"
	"github.com/vmcrypt/vmcrypt/internal/metrics"
	"github.com/vmcrypt/vmcrypt/kek"
)

// meters are what the agent counts itself. What it has to look for is the collector's.
// docs/metrics.md lists all.
type meters struct {
	registry *prometheus.Registry
	explain  func(error) (exitCode int, hint string)
	retry    func() // has the key managers asked how they are

	unlocks, restarts, locks            *prometheus.CounterVec
	adoptions, exits, denied, unaudited prometheus.Counter
	unlockTime                          prometheus.Histogram
	exchanges                           *prometheus.CounterVec
	exchangeTime                        *prometheus.HistogramVec
}

// Buckets of durations in seconds.
var (
	unlockBuckets   = []float64{.025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}
	exchangeBuckets = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 5, 10}
)

func newMeters(d *daemon) *meters {
	m := &meters{registry: metrics.NewRegistry(d.Release), explain: d.Explain, retry: d.health.askAgain}
	m.unlocks = m.counters("vmcrypt_unlocks_total", "Unlocks of VMs that were asked for, by their result.", "result")
	m.locks = m.counters("vmcrypt_locks_total", "Locks of VMs, by their result.", "result")
	m.restarts = m.counters("vmcrypt_disk_server_restarts_total",
		"Restarts of disk servers that had ended by themselves, by result; a failure that repeats itself counts once.", "result")
	m.adoptions = m.counter("vmcrypt_disk_server_adoptions_total", "Disk servers of an earlier agent that this one took over.")
	m.exits = m.counter("vmcrypt_disk_server_exits_total", "Disk servers that ended though nobody had locked their VM.")
	m.denied = m.counter("vmcrypt_denied_requests_total", "Requests to the agent by users who may not make them.")
	m.unaudited = m.counter("vmcrypt_audit_write_failures_total", "Entries that could not be written to the audit log.")
	m.unlockTime = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "vmcrypt_unlock_duration_seconds", Help: "How long unlocks took that succeeded.", Buckets: unlockBuckets,
	})
	m.exchanges = m.counters("vmcrypt_key_manager_requests_total",
		"What was asked of key managers, by KMIP operation (connect: connection and agreement on a version) and result.",
		"alias", "server", "operation", "result")
	m.exchangeTime = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "vmcrypt_key_manager_request_duration_seconds", Help: "How long key managers took, whatever the result.", Buckets: exchangeBuckets,
	}, []string{"alias", "server", "operation"})
	m.registry.MustRegister(m.unlockTime, m.exchangeTime, newCollector(d))
	return m
}

// counters makes counters that tell results and the like apart. Those by result alone
// are there from the beginning: what appears with a first failure has no increase.
func (m *meters) counters(name, help string, labels ...string) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	if len(labels) == 1 {
		for _, result := range results {
			c.WithLabelValues(result)
		}
	}
	m.registry.MustRegister(c)
	return c
}

func (m *meters) counter(name, help string) prometheus.Counter {
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	m.registry.MustRegister(c)
	return c
}

// results are how actions can end, by the exit codes of docs/cli.md: 0 is success, and
// those that are not here are "other".
var results = map[int]string{
	0: "success", 1: "other", exitNoKeyManager: "no_key_manager", 4: "key_denied", 5: "tampered", 6: "unfinished", 7: "in_use",
}

const exitNoKeyManager = 3

// resultOf gives a result, and its exit code.
func (m *meters) resultOf(err error) (result string, code int) {
	if err != nil {
		code, _ = m.explain(err)
	}
	result, ok := results[code]
	if !ok {
		result = results[1]
	}
	return result, code
}

// concluded counts an action. Where no key manager answered, more may be wrong with them
// than is known.
func (m *meters) concluded(e *entry, err error) {
	result, code := m.resultOf(err)
	if code == exitNoKeyManager {
		m.retry()
	}
	switch e.Action {
	case actUnlock:
		m.unlocks.WithLabelValues(result).Inc()
		if err == nil {
			m.unlockTime.Observe(time.Since(e.begun).Seconds())
		}
	case actRestart:
		m.restarts.WithLabelValues(result).Inc()
	case actLock:
		m.locks.WithLabelValues(result).Inc()
	case actAdopt:
		m.adoptions.Inc()
	}
}

// audited counts what could not be written to the audit log.
func (m *meters) audited(err error) error {
	if err != nil {
		m.unaudited.Inc()
	}
	return err
}

// failed counts a request of somebody who may not make it.
func (m *meters) failed(err error) {
	if errors.Is(err, ErrDenied) {
		m.denied.Inc()
	}
}

// exchange counts what was asked of a key manager.
func (m *meters) exchange(x kek.Exchange) {
	m.exchanges.WithLabelValues(x.Alias, x.Server, x.Operation, x.Result).Inc()
	m.exchangeTime.WithLabelValues(x.Alias, x.Server, x.Operation).Observe(x.Took.Seconds())
}

// observed is a host whose exchanges with key managers are counted.
func (m *meters) observed(h *agent.Host) *agent.Host {
	counted, open := *h, h.Cluster
	counted.Cluster = func(alias string) (*kek.Cluster, error) {
		c, err := open(alias)
		if err == nil {
			c.Observe(m.exchange)
		}
		return c, err
	}
	return &counted
}

// serveMetrics has the metrics scraped, if that is configured, until the agent ends. That
// they can't be is no reason not to unlock VMs: any user of the host can take a port.
func (d *daemon) serveMetrics() {
	if d.Metrics == "" {
		return
	}
	l, err := listen.Local(d.ctx, d.Metrics, d.viewGroup())
	if err != nil {
		slog.Error("there are no metrics", "error", err)
		return
	}
	d.background.Go(func() { metrics.Serve(d.ctx, l, d.metrics.registry) })
}

// askAgain has the key managers asked at once, or once more if they are being asked.
func (h *health) askAgain() {
	select {
	case h.again <- struct{}{}:
	default: // they are about to be
	}
}

// expiryStages are how long before its end a certificate is logged.
var expiryStages = []time.Duration{expirySoon, 30 * day, expiryVerySoon, day, 0}

// logExpiry logs a certificate that comes to its end, once at each stage.
func logExpiry(was, now api.KeyManager) {
	at := time.Now()
	for _, c := range []struct {
		name     string
		was, now *time.Time
	}{
		{"server", was.Expires, now.Expires},
		{"client", was.ClientExpires, now.ClientExpires},
	} {
		before := 0
		if was.Checked != nil {
			before = expiryStage(c.was, *was.Checked)
		}
		if expiryStage(c.now, at) > before {
			slog.Warn("a certificate expires soon", "alias", now.Alias, "address", now.Address, "of", c.name, "expires", *c.now)
		}
	}
}

// expiryStage is how many stages have come.
func expiryStage(ends *time.Time, at time.Time) (n int) {
	for _, before := range expiryStages {
		if ends != nil && ends.Sub(at) < before {
			n++
		}
	}
	return n
}
