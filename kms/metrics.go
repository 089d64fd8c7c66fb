package kms

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/gemalto/kmip-go/kmip14"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/vmcrypt/vmcrypt/internal/listen"
	"github.com/vmcrypt/vmcrypt/internal/metrics"
)

// meters are what a server counts. docs/metrics.md lists all metrics.
type meters struct {
	requests  *prometheus.CounterVec
	durations *prometheus.HistogramVec
	refused   *prometheus.CounterVec
	unaudited prometheus.Counter
}

// The reasons for which connections are refused.
const (
	refusedHandshake = "handshake"    // the client has not proved who it is
	refusedClient    = "not_admitted" // it has, and is revoked or not known
)

// requestBuckets are in seconds.
var requestBuckets = []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .5, 1, 5}

func newMeters() *meters {
	m := &meters{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "vmcrypt_kms_requests_total", Help: "KMIP operations that were answered, by result: success, or the result reason.",
		}, []string{"operation", "result"}),
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "vmcrypt_kms_request_duration_seconds", Help: "How long KMIP operations took, whatever the result.", Buckets: requestBuckets,
		}, []string{"operation"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "vmcrypt_kms_refused_connections_total", Help: "Connections that got no access, by the reason.",
		}, []string{"reason"}),
		unaudited: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "vmcrypt_kms_audit_write_failures_total", Help: "Times that the audit log could not be written, and operations failed because of that.",
		}),
	}
	for _, reason := range []string{refusedHandshake, refusedClient} {
		m.refused.WithLabelValues(reason)
	}
	return m
}

// done counts an operation. Of those that there are not, there may be any number.
func (m *meters) done(op kmip14.Operation, known bool, out *outcome, began time.Time) {
	name, result := "unknown", "success"
	if known {
		name = op.String()
	}
	if out.ResultStatus != kmip14.ResultStatusSuccess {
		result = label(out.ResultReason.String())
	}
	m.requests.WithLabelValues(name, result).Inc()
	m.durations.WithLabelValues(name).Observe(time.Since(began).Seconds())
}

// label makes a label's value of one of KMIP's names: "ItemNotFound" is item_not_found.
func label(name string) string {
	var out strings.Builder
	for i, r := range name {
		if unicode.IsUpper(r) && i > 0 {
			out.WriteByte('_')
		}
		out.WriteRune(unicode.ToLower(r))
	}
	return out.String()
}

// life is what decides on the state of an object.
type life struct {
	kind                     kmip14.ObjectType
	state                    uint32
	activation, deactivation int64
}

func lifeOf(o *object) life {
	return life{kmip14.ObjectType(o.Type), o.State, o.Activation, o.Deactivation}
}

// at gives the state's name at a moment, in seconds since 1970.
func (l life) at(now int64) string {
	if l.state == 0 {
		return "none" // templates and opaque objects
	}
	o := object{attributes: attributes{State: l.state, Activation: l.activation, Deactivation: l.deactivation}}
	o.advance(now)
	return label(o.state().String())
}

// lives knows the states of all objects, so that scrapes need not open them, whose
// records have their keys.
type lives struct {
	mu  sync.Mutex
	all map[uuid.UUID]life // nil if nobody asks
}

func (l *lives) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = map[uuid.UUID]life{}
}

func (l *lives) set(id uuid.UUID, now life) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all != nil {
		l.all[id] = now
	}
}

// noteLives notes the states of objects whose changes were committed, in their order.
func (s *store) noteLives(changes []change) {
	for _, c := range changes {
		if c.life != nil {
			s.lives.set(uuid.UUID(c.key), *c.life)
		}
	}
}

// count gives how many objects are in each state.
func (l *lives) count(now int64) map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := map[string]int{}
	for _, one := range l.all {
		n[one.at(now)]++
	}
	return n
}

// descriptions are of what is looked for at each scrape.
var (
	describe = func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	descObjects     = describe("vmcrypt_kms_objects", "Objects in the store, by state; none: what has no state.", "state")
	descSize        = describe("vmcrypt_kms_store_size_bytes", "The size of the store's file.")
	descClients     = describe("vmcrypt_kms_clients", "Registered clients, by state: active, expired or revoked.", "state")
	descConnections = describe("vmcrypt_kms_connections", "Connections that are open, by whether the client has proved who it is.", "state")
	descExpiry      = describe("vmcrypt_kms_certificate_expiry_timestamp_seconds",
		"When a certificate ends: the key manager's own (server), its authority's (ca) or that of a client that is not revoked, in seconds since 1970.",
		"kind", "name")
	descLastBackup = describe("vmcrypt_kms_last_backup_timestamp_seconds", "When the last backup was made, in seconds since 1970; 0 if there is none.")
	descDue        = describe("vmcrypt_kms_backup_due", "Whether there are keys that no backup holds.")
)

// collector looks for what a server has no need to count.
type collector struct {
	home Home
	*server
}

// Describe is as prometheus.Collector has it.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descObjects, descSize, descClients, descConnections, descExpiry, descLastBackup, descDue} {
		out <- d
	}
}

// Collect is as prometheus.Collector has it.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	states := c.engine.store.lives.count(time.Now().Unix())
	for _, state := range []string{"pre_active", "active", "deactivated", "compromised", "destroyed", "destroyed_compromised", "none"} {
		gauge(descObjects, float64(states[state]), state)
	}
	if info, err := os.Stat(c.engine.store.path); err == nil {
		gauge(descSize, float64(info.Size()))
	}
	known, unknown := c.guests.counts()
	gauge(descConnections, float64(known), "identified")
	gauge(descConnections, float64(unknown), "handshake")
	c.clientMetrics(gauge)
	c.certificateMetrics(gauge)
	c.backupMetrics(gauge)
}

// counts gives how many connections there are.
func (g *guests) counts() (identified, others int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.count(known), g.count(unknown)
}

func (c *collector) clientMetrics(gauge func(*prometheus.Desc, float64, ...string)) {
	states := map[string]int{}
	for _, client := range c.clients.list() {
		switch {
		case client.Revoked != nil:
			states["revoked"]++
			continue
		case !client.Until.IsZero() && time.Now().After(client.Until):
			states["expired"]++
		default:
			states["active"]++
		}
		if !client.Until.IsZero() { // the first client of old stores
			gauge(descExpiry, float64(client.Until.Unix()), "client", client.Name)
		}
	}
	for _, state := range []string{"active", "expired", "revoked"} {
		gauge(descClients, float64(states[state]), state)
	}
}

func (c *collector) certificateMetrics(gauge func(*prometheus.Desc, float64, ...string)) {
	chain := c.certificates.current().Certificates[0].Certificate
	if own, err := x509.ParseCertificate(chain[0]); err == nil {
		gauge(descExpiry, float64(own.NotAfter.Unix()), "server", "")
	}
	if ca, err := c.home.authorityCert(); err == nil {
		gauge(descExpiry, float64(ca.NotAfter.Unix()), "ca", "")
	}
}

// authorityCert is the certificate of the home's certificate authority.
func (h Home) authorityCert() (*x509.Certificate, error) {
	text, err := readSmall(h.path("ca.pem"))
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s: no certificate in it", h.path("ca.pem"))
	}
	return x509.ParseCertificate(block.Bytes)
}

func (c *collector) backupMetrics(gauge func(*prometheus.Desc, float64, ...string)) {
	last, err := c.home.lastBackup()
	if err != nil {
		slog.Warn("key manager: the last backup is not known", "error", err)
		return
	}
	var made uint64
	if err := c.engine.store.view(func(t *tx) error { made = t.sequence(); return nil }); err != nil {
		return // the store fails for others, too
	}
	if last == nil {
		gauge(descLastBackup, 0)
		gauge(descDue, 1)
		return
	}
	gauge(descLastBackup, float64(last.Created.Unix()))
	due := 0.0
	if made != last.Sequence {
		due = 1
	}
	gauge(descDue, due)
}

// registry has all metrics of a server.
func (h Home) registry(s *server) *prometheus.Registry {
	r, m := metrics.NewRegistry(h.Release), s.engine.meters
	r.MustRegister(m.requests, m.durations, m.refused, m.unaudited, &collector{h, s})
	return r
}

// serveMetrics has the metrics scraped until ctx ends, if that is wanted; wait waits for
// the end. That they can't be is no reason to give nobody keys: any user of the host can
// take a port.
func (h Home) serveMetrics(ctx context.Context, s *server) (wait func()) {
	if h.Metrics == "" {
		return func() {}
	}
	l, err := listen.Local(ctx, h.Metrics, -1)
	if err != nil {
		slog.Error("key manager: there are no metrics", "error", err)
		return func() {}
	}
	var serving sync.WaitGroup
	serving.Go(func() { metrics.Serve(ctx, l, h.registry(s)) })
	return serving.Wait
}
