package daemon

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/vmcrypt/vmcrypt/agent/api"
	"github.com/vmcrypt/vmcrypt/agent/diskserver"
	"github.com/vmcrypt/vmcrypt/internal/text"
	"github.com/vmcrypt/vmcrypt/kek"
)

// Labels. The path of a descriptor tells VMs apart, which may have the same name.
var (
	vmLabels   = []string{"vm", "descriptor"}
	diskLabels = []string{"vm", "descriptor", "node"}
)

// desc describes a metric of the collector.
func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

func diskDesc(name, help string, labels ...string) *prometheus.Desc {
	return desc(name, help, slices.Concat(diskLabels, labels)...)
}

// descriptions are of what the collector finds.
type descriptions struct {
	vms, problems                                    *prometheus.Desc
	serverUp, serverStart                            *prometheus.Desc
	read, written, connections, requests, failed     *prometheus.Desc
	position, size, running                          *prometheus.Desc
	managerUp, managerCanary, managerLatency, expiry *prometheus.Desc
}

func newDescriptions() *descriptions {
	return &descriptions{
		vms:      desc("vmcrypt_vms", "VMs with encrypted disks in the datastores, by state.", "state"),
		problems: desc("vmcrypt_vms_with_problems", "VMs that can't be unlocked as they are, or don't run as they should, by state.", "state"),
		serverUp: desc("vmcrypt_disk_server_up", "Whether the disk server of a VM that is to be unlocked runs and answers.", vmLabels...),
		serverStart: desc("vmcrypt_disk_server_start_time_seconds",
			"When the disk server of an unlocked VM was started, in seconds since 1970.", vmLabels...),
		read:        diskDesc("vmcrypt_disk_read_bytes_total", "Bytes that were read from a disk."),
		written:     diskDesc("vmcrypt_disk_written_bytes_total", "Bytes that were written to a disk; zeroes and trims do not count."),
		connections: diskDesc("vmcrypt_disk_connections", "NBD connections that are open to a disk."),
		requests: diskDesc("vmcrypt_disk_request_duration_seconds",
			"NBD requests that were answered, by operation: from when the disk server took one to when its reply was ready.", "operation"),
		failed: diskDesc("vmcrypt_disk_request_errors_total", "NBD requests that failed, by operation and by the error that the client was told.",
			"operation", "error"),
		position: diskDesc("vmcrypt_conversion_position_bytes",
			"How far the conversion of a disk in place has come; absent where that is not known.", "state"),
		size:           diskDesc("vmcrypt_conversion_size_bytes", "The size of a disk that is amid a conversion in place.", "state"),
		running:        diskDesc("vmcrypt_conversion_running", "Whether a process is at the conversion of a disk; if not, it was interrupted.", "state"),
		managerUp:      desc("vmcrypt_key_manager_up", "Whether a key manager could be used when it was last asked, which is once a minute.", "alias", "server"),
		managerCanary:  desc("vmcrypt_key_manager_canary_ok", "Whether a key manager gave the key that it was last tried with, which is every five minutes.", "alias", "server"),
		managerLatency: desc("vmcrypt_key_manager_latency_seconds", "How long a key manager took when it was last asked how it is.", "alias", "server"),
		expiry: desc("vmcrypt_certificate_expiry_timestamp_seconds",
			"When the certificate ends that a key manager showed (server), or by which the agent is known to it (client), in seconds since 1970.",
			"alias", "server", "kind"),
	}
}

func (d *descriptions) all() []*prometheus.Desc {
	return []*prometheus.Desc{
		d.vms, d.problems, d.serverUp, d.serverStart, d.read, d.written, d.connections, d.requests, d.failed,
		d.position, d.size, d.running, d.managerUp, d.managerCanary, d.managerLatency, d.expiry,
	}
}

// collector finds out, at each scrape, how disk servers, datastores and key managers are.
type collector struct {
	*daemon
	*descriptions
	patience time.Duration // with disk servers and datastores

	mu      sync.Mutex
	seen    map[string]api.VM // in the datastores, as if all were locked, by the paths of descriptors; nil before the first look
	until   time.Time         // that it counts
	looking chan struct{}     // closed when the look under way ends; nil if there is none
}

func newCollector(d *daemon) *collector {
	return &collector{daemon: d, descriptions: newDescriptions(), patience: collectTime}
}

// Describe is as prometheus.Collector has it.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range c.all() {
		out <- d
	}
}

// Collect is as prometheus.Collector has it.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(c.ctx, c.patience)
	defer cancel()
	var looking sync.WaitGroup
	var locked map[string]api.VM
	looking.Go(func() { locked = c.look(ctx) })
	servers := c.askServers(ctx)
	looking.Wait()
	s := &sheet{collector: c, out: out, told: map[string]bool{}}
	s.keyManagers()
	s.all(locked, servers)
	for _, one := range servers {
		s.server(one)
	}
}

// collectTime is how long a scrape waits for disk servers and datastores.
const collectTime = 5 * time.Second

// rest is how many times as long as it takes to look at the datastores what was seen
// there counts: so scrapes cost little, however much is in them.
const rest = 20

// look gives the VMs in the datastores as if they were locked, or what was seen before
// if that is not to be had in time: nil, if there is no such thing.
func (c *collector) look(ctx context.Context) map[string]api.VM {
	if looking := c.lookAgain(); looking != nil {
		select {
		case <-looking:
		case <-ctx.Done():
			slog.Warn("metrics of VMs are of an earlier time", "error", ctx.Err())
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seen
}

// lookAgain begins to look unless somebody is at it, or what was seen counts. It takes
// its time: what one scrape does not wait for is there for the next.
func (c *collector) lookAgain() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.looking == nil && time.Now().After(c.until) {
		c.looking = make(chan struct{})
		go c.scanAll(c.looking)
	}
	return c.looking
}

func (c *collector) scanAll(done chan struct{}) {
	begun := time.Now()
	found, err := c.scan(c.ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil { // the agent has not ended
		c.seen = found
	}
	c.until = time.Now().Add(rest * time.Since(begun))
	c.looking = nil
	close(done)
}

// sheet is what one scrape is told.
type sheet struct {
	*collector
	out  chan<- prometheus.Metric
	told map[string]bool // what can be there once
}

func (s *sheet) gauge(d *prometheus.Desc, value float64, labels ...string) {
	s.out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
}

func (s *sheet) counter(d *prometheus.Desc, value uint64, labels ...string) {
	s.out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(value), labels...)
}

func (s *sheet) keyManagers() {
	for _, k := range s.health.all() {
		if k.State == stateUnknown {
			continue
		}
		s.gauge(s.managerUp, truth(k.State == string(kek.StateOK)), k.Alias, k.Address)
		if k.Canary != "" {
			s.gauge(s.managerCanary, truth(k.Canary == string(kek.KeyOK)), k.Alias, k.Address)
		}
		s.gauge(s.managerLatency, k.LatencyMs/1000, k.Alias, k.Address)
		if k.Expires != nil {
			s.gauge(s.expiry, float64(k.Expires.Unix()), k.Alias, k.Address, "server")
		}
		if k.ClientExpires != nil {
			s.gauge(s.expiry, float64(k.ClientExpires.Unix()), k.Alias, k.Address, "client")
		}
	}
}

func truth(so bool) float64 {
	if so {
		return 1
	}
	return 0
}

// all tells of the VMs as a whole, and of the conversions of those that are locked.
func (s *sheet) all(locked map[string]api.VM, servers []served) {
	states, problems, others := map[string]int{}, map[string]int{}, map[string]bool{}
	count := func(state string, problem bool) {
		states[state]++
		if problem {
			problems[state]++
		}
	}
	for _, one := range servers {
		others[one.descriptor] = true
		count(one.state())
	}
	for path, vm := range locked {
		if !others[path] {
			count(api.Locked, len(vmWarnings(vm)) > 0)
			s.conversions(vm)
		}
	}
	for _, state := range []string{api.Locked, api.Unlocked, api.Restarting} {
		if state == api.Locked && locked == nil {
			continue // how many there are is not known yet
		}
		s.gauge(s.vms, float64(states[state]), state)
		s.gauge(s.problems, float64(problems[state]), state)
	}
}

func (s *sheet) conversions(vm api.VM) {
	for _, disk := range vm.Disks {
		c := disk.Conversion
		labels := append(labelsOf(vm.Name, vm.Descriptor), disk.Node)
		if c == nil || !s.first("conversion", labels) {
			continue
		}
		labels = append(labels, c.State)
		if c.PositionBytes != nil {
			s.gauge(s.position, float64(*c.PositionBytes), labels...)
		}
		s.gauge(s.size, float64(c.SizeBytes), labels...)
		s.gauge(s.running, truth(c.Running), labels...)
	}
}

// maxLabel bounds what others have written, in bytes.
const maxLabel = 1 << 10

func labelsOf(name, descriptor string) []string {
	return []string{text.Clip(name, maxName), text.Clip(descriptor, maxLabel)}
}

// first tells whether something is told for the first time: paths that differ may look
// alike as labels, and Prometheus takes none twice.
func (s *sheet) first(what string, labels []string) bool {
	for _, l := range labels {
		what += "\x00" + l
	}
	defer func() { s.told[what] = true }()
	return !s.told[what]
}

// served is a VM that is not locked, and what its disk server says: nil if that does not
// answer.
type served struct {
	*machine
	status *diskserver.Status
}

// state gives the state of the VM, and whether there is a problem.
func (one served) state() (state string, problem bool) {
	one.mu.Lock()
	defer one.mu.Unlock()
	problem = one.problem != "" || one.status == nil
	if one.status != nil || one.machine.server.lives() {
		return api.Unlocked, problem
	}
	return api.Restarting, problem
}

// scrapedAtOnce is how many disk servers are asked at a time. One that hangs takes all
// the time that there is, so it is more than are likely to.
const scrapedAtOnce = 256

func (c *collector) askServers(ctx context.Context) []served {
	machines := c.wanted()
	all := make([]served, len(machines))
	var asking errgroup.Group
	asking.SetLimit(scrapedAtOnce)
	for i, m := range machines {
		asking.Go(func() error {
			status, err := statusOfServer(ctx, m.directory)
			if err != nil {
				status = nil
			}
			all[i] = served{m, status}
			return nil
		})
	}
	_ = asking.Wait() // they give no errors
	return all
}

func (s *sheet) server(one served) {
	w := one.wants()
	if w == nil {
		return // locked meanwhile
	}
	labels := labelsOf(w.VM.Name, one.descriptor)
	if !s.first("server", labels) {
		return
	}
	s.gauge(s.serverUp, truth(one.status != nil), labels...)
	if one.status == nil {
		return
	}
	s.gauge(s.serverStart, float64(one.status.Since.Unix()), labels...)
	for _, disk := range one.status.Disks {
		if own := append(labels[:2:2], text.Clip(disk.Node, maxName)); s.first("disk", own) {
			s.disk(disk, one.status.LatencyBounds, own)
		}
	}
}

func (s *sheet) disk(disk diskserver.DiskStatus, bounds []float64, labels []string) {
	s.counter(s.read, disk.BytesRead, labels...)
	s.counter(s.written, disk.BytesWritten, labels...)
	s.gauge(s.connections, float64(disk.Connections), labels...)
	for _, o := range disk.Operations {
		own := append(labels[:3:3], text.Clip(o.Operation, maxName))
		if len(o.Requests) != len(bounds)+1 || !s.first("operation", own) {
			continue
		}
		count, buckets := histogram(bounds, o.Requests)
		s.out <- prometheus.MustNewConstHistogram(s.requests, count, time.Duration(o.Nanos).Seconds(), buckets, own...)
		s.errors(o, own)
	}
}

// errors tells of the errors that alerts are about even while there are none: what
// appears with the first has no increase.
func (s *sheet) errors(o diskserver.Operation, labels []string) {
	all := map[string]uint64{"EIO": 0, "ENOSPC": 0}
	maps.Copy(all, o.Errors)
	for code, n := range all {
		if own := append(labels[:4:4], text.Clip(code, maxName)); s.first("error", own) {
			s.counter(s.failed, n, own...)
		}
	}
}

// histogram gives the number of all requests, and of those up to each bound.
func histogram(bounds []float64, requests []uint64) (count uint64, buckets map[float64]uint64) {
	buckets = map[float64]uint64{}
	for i, n := range requests {
		if count += n; i < len(bounds) {
			buckets[bounds[i]] = count
		}
	}
	return count, buckets
}
