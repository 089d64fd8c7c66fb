package daemon

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/vmcrypt/vmcrypt/agent/api"
	"github.com/vmcrypt/vmcrypt/agent/diskserver"
	"github.com/vmcrypt/vmcrypt/internal/metricstest"
)

// TestMetricsAreDocumented: the key manager's are its own affair.
func TestMetricsAreDocumented(t *testing.T) {
	metricstest.CheckDocuments(t, "../..", metricstest.Names(newTestDaemon(t).metrics.registry),
		func(name string) bool { return !strings.HasPrefix(name, "vmcrypt_kms_") })
}

// gathered gives the metrics that a collector tells, by name. The registry refuses what
// is told twice.
func gathered(t *testing.T, c prometheus.Collector) map[string][]*dto.Metric {
	t.Helper()
	r := prometheus.NewRegistry()
	r.MustRegister(c)
	families, err := r.Gather()
	if err != nil {
		t.Error(err)
	}
	all := map[string][]*dto.Metric{}
	for _, f := range families {
		all[f.GetName()] = f.GetMetric()
	}
	return all
}

// telling is a collector that tells what a test has it tell.
type telling struct {
	*collector
	tell func(*sheet)
}

func (c telling) Collect(out chan<- prometheus.Metric) {
	c.tell(&sheet{collector: c.collector, out: out, told: map[string]bool{}})
}

// TestMetricsOfHostileNames: whoever writes a datastore keeps no other VM's metrics away.
func TestMetricsOfHostileNames(t *testing.T) {
	d := newTestDaemon(t)
	status := &diskserver.Status{LatencyBounds: []float64{1, 2}, Disks: []diskserver.DiskStatus{
		{Node: "scsi0:0", BytesRead: 7, Operations: []diskserver.Operation{
			{Operation: "read", Requests: []uint64{3, 2, 1}, Nanos: 9e9, Errors: map[string]uint64{"EIO": 2, "\xff": 1}},
			{Operation: "read", Requests: []uint64{1, 1, 1}},
			{Operation: "odd", Requests: []uint64{1}},
		}},
		{Node: "scsi0:0"}, {Node: "\xff"},
	}}
	var servers []served
	for _, path := range []string{"/a.vmx", "/b\xff.vmx", "/b\xfe.vmx", "/" + strings.Repeat("ä", 4096)} {
		m := d.machine(path)
		m.runs(wish{VM: diskserver.VM{Name: "na\xffme\n" + strings.Repeat("x", 1<<20), Descriptor: path}}, nil)
		servers = append(servers, served{m, status})
	}
	position := int64(5)
	disk := api.Disk{Node: "ide0:0", Conversion: &api.Conversion{State: "encrypting", PositionBytes: &position, SizeBytes: 10}}
	locked := map[string]api.VM{
		"/c\xff": {Name: "x", Descriptor: "/c\xff", Disks: []api.Disk{disk}},
		"/c\xfe": {Name: "x", Descriptor: "/c\xfe", Disks: []api.Disk{disk, disk}},
	}
	got := gathered(t, telling{newCollector(d), func(s *sheet) {
		s.all(locked, servers)
		for _, one := range servers {
			s.server(one)
		}
	}})
	for name, want := range map[string]int{
		"vmcrypt_disk_server_up": 3, "vmcrypt_disk_read_bytes_total": 6, "vmcrypt_disk_request_duration_seconds": 3,
		"vmcrypt_disk_request_errors_total": 9, "vmcrypt_conversion_running": 1, "vmcrypt_vms": 3,
	} {
		if len(got[name]) != want {
			t.Errorf("%d of %s, want %d", len(got[name]), name, want)
		}
	}
	h := got["vmcrypt_disk_request_duration_seconds"][0].GetHistogram()
	if h.GetSampleCount() != 6 || h.GetSampleSum() != 9 || h.GetBucket()[1].GetCumulativeCount() != 5 {
		t.Errorf("%v", h)
	}
}

// TestHungDiskServer: it is told to be down, and the scrape ends.
func TestHungDiskServer(t *testing.T) {
	d := newTestDaemon(t)
	m := d.machine(filepath.Join(d.Datastores[0], "web01.vmx"))
	m.runs(wish{VM: diskserver.VM{Name: "web01", Descriptor: m.descriptor}}, nil)
	if err := os.MkdirAll(m.directory, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(m.directory, "control.sock")) // accepts, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := newCollector(d)
	c.patience = 100 * time.Millisecond
	got := gathered(t, c)
	up := got["vmcrypt_disk_server_up"]
	if len(up) != 1 || up[0].GetGauge().GetValue() != 0 {
		t.Errorf("%v", up)
	}
	if n := len(got["vmcrypt_vms"]); n != 3 {
		t.Errorf("%d states of VMs", n)
	}
}

// TestSlowDatastore: how many VMs are in it is told once it was read to its end, however
// many scrapes that takes, and not that there are none.
func TestSlowDatastore(t *testing.T) {
	d := newTestDaemon(t)
	broken(t, filepath.Join(d.Datastores[0], "web01.vmx"))
	if err := d.scans.Acquire(t.Context(), 1); err != nil { // so no scan comes to its end
		t.Fatal(err)
	}
	c := newCollector(d)
	c.patience = 50 * time.Millisecond
	for range 2 {
		if n := len(gathered(t, c)["vmcrypt_vms"]); n != 2 {
			t.Errorf("%d states of VMs, though nothing is known of those that are locked", n)
		}
	}
	looking := c.looking
	d.scans.Release(1)
	<-looking
	states := gathered(t, c)["vmcrypt_vms"]
	if len(states) != 3 || states[0].GetLabel()[0].GetValue() != api.Locked || states[0].GetGauge().GetValue() != 1 {
		t.Errorf("%v", states)
	}
}

// TestMetricsOfAnOrdinaryUser: an agent that can't give a socket to the group of viewers
// keeps it.
func TestMetricsOfAnOrdinaryUser(t *testing.T) {
	d := newTestDaemon(t)
	ctx, stop := context.WithCancel(d.ctx)
	defer stop()
	d.ctx, d.own.uid, d.access.view = ctx, 1000, uint32(os.Getgid())
	d.Metrics = d.Socket + ".metrics"
	d.serveMetrics()
	if info, err := os.Lstat(d.Metrics); err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("the socket: %v, %v", info, err)
	}
}

// TestResults: each way in which an action can end is counted as such.
func TestResults(t *testing.T) {
	d := newTestDaemon(t)
	d.metrics.explain = func(err error) (int, string) { return len(err.Error()), "" } // the exit code
	for code := 1; code < 10; code++ {
		d.metrics.concluded(&entry{Action: actUnlock}, errors.New(strings.Repeat("x", code)))
	}
	for _, act := range []action{actUnlock, actRestart, actLock, actAdopt} {
		d.metrics.concluded(&entry{Action: act, begun: time.Now()}, nil)
	}
	families, err := d.metrics.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if c := m.GetCounter(); c.GetValue() > 0 {
				name := f.GetName()
				for _, l := range m.GetLabel() {
					name += " " + l.GetValue()
				}
				got[name] = c.GetValue()
			}
		}
	}
	want := map[string]float64{
		"vmcrypt_unlocks_total success": 1, "vmcrypt_unlocks_total other": 4, "vmcrypt_unlocks_total no_key_manager": 1,
		"vmcrypt_unlocks_total key_denied": 1, "vmcrypt_unlocks_total tampered": 1, "vmcrypt_unlocks_total unfinished": 1,
		"vmcrypt_unlocks_total in_use": 1, "vmcrypt_locks_total success": 1, "vmcrypt_disk_server_restarts_total success": 1,
		"vmcrypt_disk_server_adoptions_total": 1,
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	select {
	case <-d.health.again:
	default:
		t.Error("though no key manager answered, none is asked how it is")
	}
}

// TestExpiryIsLoggedOnce at each stage.
func TestExpiryIsLoggedOnce(t *testing.T) {
	var log bytes.Buffer
	defer slog.SetDefault(slog.Default())
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, nil)))
	at := func(asked, left time.Duration) api.KeyManager {
		checked := time.Now().Add(asked)
		ends := time.Now().Add(left)
		return api.KeyManager{Alias: "a", Checked: &checked, Expires: &ends}
	}
	for name, test := range map[string]struct {
		was, now api.KeyManager
		lines    int
	}{
		"far":               {at(-time.Minute, 61*day), at(0, 61*day), 0},
		"not known before":  {api.KeyManager{}, at(0, 29*day), 1},
		"60 days":           {at(-2*time.Hour, 60*day+time.Hour), at(0, 60*day-time.Hour), 1},
		"30 days":           {at(-2*time.Hour, 30*day-time.Hour), at(0, 30*day-time.Hour), 1},
		"a stage has come":  {at(-2*time.Hour, 7*day-time.Hour), at(0, 7*day-time.Hour), 1},
		"no stage has come": {at(-time.Minute, 6*day), at(0, 6*day), 0},
		"renewed":           {at(-time.Minute, time.Hour), at(0, 300*day), 0},
		"it has expired":    {at(-time.Minute, -time.Second), at(0, -time.Second), 1},
	} {
		log.Reset()
		logExpiry(test.was, test.now)
		if got := len(slices.Collect(strings.Lines(log.String()))); got != test.lines {
			t.Errorf("%s: %d lines: %s", name, got, log.String())
		}
	}
}
