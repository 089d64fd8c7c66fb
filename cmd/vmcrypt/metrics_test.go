package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vmcrypt/vmcrypt/internal/metricstest"
	"github.com/vmcrypt/vmcrypt/internal/testtool"
)

// freeAddress is one at which nobody listens.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// TestMetrics: a real agent and a real key manager tell what has happened, and Prometheus
// alerts when the key manager is gone.
func TestMetrics(t *testing.T) {
	testtool.Long(t)
	promtool := testtool.Need(t, "promtool")
	ofAgent, ofKMS := freeAddress(t), filepath.Join(t.TempDir(), "kms.sock")
	h, k := startHostWithKMS(t, "  metrics: "+ofAgent, "kms:", "  metrics: "+ofKMS)
	prometheus := startPrometheus(t, ofAgent)
	target, second := h.vm("web01", "scsi0:0"), h.vm("web02", "scsi0:0")
	h.edit(h.copyVM(second, "odd"), `"odd"`, "\"a\xff{\\\\\"\x01}\"") // who writes a datastore names VMs
	vm := h.unlock(target)
	if out, ok := qemuIO(t, vm.Disks[0].URI, "write 4096 8192", "read 4096 4096", "read 0 512", "flush"); !ok {
		t.Fatal(out)
	}
	disk := fmt.Sprintf(`{descriptor="%s",node="scsi0:0",`, target)
	with := func(name, more string) string { return name + disk + more + `vm="web01"}` }
	h.checkMetrics(ofAgent, map[string]float64{
		`vmcrypt_vms{state="unlocked"}`:                                              1,
		`vmcrypt_vms{state="locked"}`:                                                2,
		`vmcrypt_unlocks_total{result="success"}`:                                    1,
		`vmcrypt_unlock_duration_seconds_count`:                                      1,
		`vmcrypt_disk_server_exits_total`:                                            0,
		fmt.Sprintf(`vmcrypt_key_manager_up{alias="remote",server="%s"}`, k.address): 1,
		with("vmcrypt_disk_written_bytes_total", ""):                                 8192,
		with("vmcrypt_disk_request_duration_seconds_count", `operation="write",`):    1,
		fmt.Sprintf(`vmcrypt_disk_request_errors_total{descriptor="%s",error="EIO",node="scsi0:0",operation="write",vm="web01"}`, target): 0,
		fmt.Sprintf(`vmcrypt_disk_server_up{descriptor="%s",vm="web01"}`, target):                                                         1,
		fmt.Sprintf(`vmcrypt_key_manager_requests_total{alias="remote",operation="Get",result="ok",server="%s"}`, k.address):              1,
	})
	h.checkMetrics(ofKMS, map[string]float64{`vmcrypt_kms_clients{state="active"}`: 1, `vmcrypt_kms_backup_due`: 1})
	for _, address := range []string{ofAgent, ofKMS} {
		text, _ := metricstest.Scrape(t, address)
		check := exec.Command(promtool, "check", "metrics")
		check.Stdin = strings.NewReader(text)
		if out, err := check.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("promtool check metrics: %v, %s", err, out)
		}
	}
	prometheus.eventually(`up{job="vmcrypt-agent"}`, "=> 1 ")

	k.down()
	h.fails(exitNoKeyManager, nil, "unlock", second)
	prometheus.eventually(`ALERTS{alertname="VmcryptNoKeyManager",alertstate="firing"}`, `alias="remote"`)
	h.edit(second, `(scsi0:0.vmcrypt.mac) = "....`, `$1 = "AAAA`)
	k.up()
	h.fails(exitTampered, nil, "unlock", second)
	k.down()
	if err := syscall.Kill(*vm.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	h.checkMetrics(ofAgent, map[string]float64{
		`vmcrypt_vms{state="restarting"}`:                                            1,
		`vmcrypt_vms_with_problems{state="restarting"}`:                              1,
		`vmcrypt_disk_server_exits_total`:                                            1,
		`vmcrypt_disk_server_restarts_total{result="no_key_manager"}`:                1,
		`vmcrypt_unlocks_total{result="no_key_manager"}`:                             1,
		`vmcrypt_unlocks_total{result="tampered"}`:                                   1,
		fmt.Sprintf(`vmcrypt_key_manager_up{alias="remote",server="%s"}`, k.address): 0,
		fmt.Sprintf(`vmcrypt_disk_server_up{descriptor="%s",vm="web01"}`, target):    0,
	})
}

// checkMetrics waits until metrics have values.
func (h *host) checkMetrics(address string, want map[string]float64) {
	h.t.Helper()
	var text string
	defer func() {
		if h.t.Failed() {
			h.t.Log(text)
		}
	}()
	for series, value := range want {
		eventually(h.t, fmt.Sprintf("%s is %v", series, value), func() (so bool) {
			var got metricstest.Samples
			text, got = metricstest.Scrape(h.t, address)
			now, there := got[series]
			return there && now == value
		})
	}
}

// prometheusServer is a real Prometheus with the rules that are shipped.
type prometheusServer struct {
	t       *testing.T
	address string
}

var pauses = regexp.MustCompile(`(?m)^( +for:) .*$`)

// startPrometheus scrapes an agent. That alerts wait before they fire is for the unit
// tests of the rules.
func startPrometheus(t *testing.T, agent string) *prometheusServer {
	t.Helper()
	dir, p := t.TempDir(), &prometheusServer{t, freeAddress(t)}
	rules := pauses.ReplaceAll(read(t, filepath.Join("..", "..", "packaging", "prometheus", "rules.yml")), []byte("$1 0s"))
	write(t, filepath.Join(dir, "rules.yml"), rules)
	write(t, filepath.Join(dir, "prometheus.yml"), fmt.Appendf(nil, `
global: {scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms}
rule_files: [rules.yml]
scrape_configs: [{job_name: vmcrypt-agent, static_configs: [{targets: ['%s']}]}]
`, agent))
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, testtool.Need(t, "prometheus"), "--config.file="+dir+"/prometheus.yml",
		"--storage.tsdb.path="+dir+"/data", "--web.listen-address="+p.address, "--log.level=warn")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // killed
	})
	return p
}

// eventually waits for an answer to a query that has some words.
func (p *prometheusServer) eventually(query, words string) {
	p.t.Helper()
	eventually(p.t, query, func() bool {
		out, err := exec.Command(testtool.Need(p.t, "promtool"), "query", "instant", "http://"+p.address, query).Output()
		return err == nil && strings.Contains(string(out), words)
	})
}

// TestAlertRules: the rules are valid, fire as their tests say, and lead to sections that
// there are.
func TestAlertRules(t *testing.T) {
	root := filepath.Join("..", "..")
	rules := string(read(t, filepath.Join(root, "packaging", "prometheus", "rules.yml")))
	alerts := strings.Count(rules, "- alert: ")
	for _, annotation := range []string{"summary: ", "description: ", "runbook_url: "} {
		// The alerts on certificates share theirs.
		if n := strings.Count(rules, annotation) + strings.Count(rules, "annotations: *"); n != alerts {
			t.Errorf("%d alerts have %q, of %d", n, annotation, alerts)
		}
	}
	for _, link := range regexp.MustCompile(`runbook_url: (\S+)#(\S+)`).FindAllStringSubmatch(rules, -1) {
		if !slices.Contains(anchors(string(read(t, filepath.Join(root, link[1])))), link[2]) {
			t.Errorf("%s has no section %s", link[1], link[2])
		}
	}
	testtool.Long(t)
	for _, args := range [][]string{{"check", "rules", "rules.yml"}, {"test", "rules", "rules_test.yml"}} {
		cmd := exec.Command(testtool.Need(t, "promtool"), args...)
		cmd.Dir = filepath.Join(root, "packaging", "prometheus")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// anchors are what links can lead to in a document, as GitHub makes them of headings.
func anchors(document string) (all []string) {
	for _, heading := range regexp.MustCompile(`(?m)^##+ (.*)$`).FindAllStringSubmatch(document, -1) {
		text := regexp.MustCompile(`[^a-z0-9 -]`).ReplaceAllString(strings.ToLower(heading[1]), "")
		all = append(all, strings.ReplaceAll(text, " ", "-"))
	}
	return all
}
