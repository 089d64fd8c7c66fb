package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/vmcrypt/vmcrypt/blockcrypt"
)

// benchJSON runs a short bench, whose JSON has no other fields than these.
func benchJSON(t *testing.T, h *home, args ...string) benchReport {
	t.Helper()
	text := h.ok(append([]string{"bench", "--json", "--time", "1ms"}, args...)...)
	dec := json.NewDecoder(strings.NewReader(text))
	dec.DisallowUnknownFields()
	var report benchReport
	if err := dec.Decode(&report); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
	if report.CPU == "" {
		t.Error("the CPU has no name")
	}
	return report
}

func TestBenchNeedsNoHome(t *testing.T) {
	t.Parallel()
	h := emptyHome(t)
	report := benchJSON(t, h)
	fastest, err := blockcrypt.Fastest()
	if err != nil {
		t.Fatal(err)
	}
	if report.Kernel != fastest.Name() || !strings.Contains(report.Reason, "fastest") {
		t.Errorf("it uses %s, %q", report.Kernel, report.Reason)
	}
	if _, err := os.Stat(h.dir); err == nil {
		t.Error("it made a home")
	}
}

func TestBenchMeasuresEveryEngine(t *testing.T) {
	t.Parallel()
	want := map[string]bool{}
	for _, e := range blockcrypt.Engines() {
		for _, op := range []string{"encrypt", "decrypt"} {
			for _, size := range []int{512, 4096} {
				if e.Missing() == "" {
					want[fmt.Sprint(e.Name(), op, size, 1)] = true
					want[fmt.Sprint(e.Name(), op, size, runtime.GOMAXPROCS(0))] = true
				}
			}
		}
	}
	for _, r := range benchJSON(t, emptyHome(t)).Results {
		name := fmt.Sprint(r.Kernel, r.Op, r.SectorSize, r.Cores)
		if !want[name] || r.BytesPerSecond <= 0 {
			t.Errorf("unexpected, or twice: %+v", r)
		}
		delete(want, name)
	}
	if len(want) > 0 {
		t.Errorf("not measured: %v", want)
	}
}

// Programs read these names.
func TestBenchFieldNames(t *testing.T) {
	t.Parallel()
	data, err := json.Marshal(benchReport{Results: []benchSpeed{{}}})
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"cpu":"","kernel":"","reason":"",` +
		`"results":[{"kernel":"","op":"","sectorSize":0,"cores":0,"bytesPerSecond":0}]}`
	if string(data) != want {
		t.Errorf("got  %s\nwant %s", data, want)
	}
}

func TestBenchObeysTheConfiguration(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	file := filepath.Join(h.dir, "config.yaml")
	if report := benchJSON(t, h); !strings.Contains(report.Reason, "fastest") {
		t.Errorf("engine: auto: %s, %s", report.Kernel, report.Reason)
	}
	text := read(t, file)
	write(t, file, bytes.Replace(text, []byte("engine: auto"), []byte("engine: crypto-aes"), 1))
	if report := benchJSON(t, h); report.Kernel != "crypto-aes" || !strings.Contains(report.Reason, "configuration") {
		t.Errorf("engine: crypto-aes: %s, %s", report.Kernel, report.Reason)
	}
	if report := benchJSON(t, emptyHome(t), "--config", file); report.Kernel != "crypto-aes" {
		t.Errorf("--config with engine: crypto-aes: %s", report.Kernel)
	}
	write(t, file, []byte("engine: other\n"))
	h.fails(exitFailure, []string{"engine", "other"}, "bench", "--time", "1ms")
	h.fails(exitFailure, []string{"no configuration"}, "bench", "--config", h.dir+"/missing.yaml")
}

func TestBenchInFIPSMode(t *testing.T) {
	t.Parallel()
	h := emptyHome(t)
	cmd := h.command(t.Context(), "bench", "--json", "--time", "1ms")
	cmd.Env = append(cmd.Env, "GODEBUG=fips140=on")
	r := h.finish(cmd)
	report := parseJSON[benchReport](t, r.stdout)
	if report.Kernel != "crypto-aes" || !strings.Contains(report.Reason, "FIPS 140") {
		t.Errorf("it uses %s, %q", report.Kernel, report.Reason)
	}
	for _, s := range report.Results {
		if s.Kernel != "crypto-aes" {
			t.Errorf("it measured %s", s.Kernel)
		}
	}
}

func TestBenchForPeople(t *testing.T) {
	t.Parallel()
	text := emptyHome(t).ok("bench", "--time", "1ms")
	for _, e := range blockcrypt.Engines() {
		why := e.Missing()
		if why == "" {
			why = "\n" + e.Name() + " " // a line of the table
		}
		if !strings.Contains(text, why) {
			t.Errorf("nothing of %s (%q) in\n%s", e.Name(), why, text)
		}
	}
}

func TestBenchUsage(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"--no-such"}, {"disk.img"}, {"--time", "0"}, {"--time", "-1s"}, {"--time", "long"}} {
		emptyHome(t).fails(exitUsage, nil, append([]string{"bench"}, args...)...)
	}
}
