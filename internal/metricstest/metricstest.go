// Package metricstest scrapes metrics for tests.
package metricstest

import (
	"context"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// Samples are the values of series, by what stands before them in the text format:
// `up{job="x"}`.
type Samples map[string]float64

// Scrape gets what is served at an address as listen.CheckLocal takes it, as text and in
// parts. It fails the test if that can't be had.
func Scrape(t testing.TB, address string) (text string, samples Samples) {
	t.Helper()
	network := "tcp"
	if filepath.IsAbs(address) {
		network = "unix"
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, address)
	}}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://metrics/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("scrape %s: %s, %v\n%s", address, resp.Status, err, body)
	}
	return string(body), parse(t, string(body))
}

func parse(t testing.TB, text string) Samples {
	samples := Samples{}
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "#") {
			continue
		}
		space := strings.LastIndexByte(line, ' ')
		value, err := strconv.ParseFloat(line[space+1:], 64)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		samples[line[:space]] = value
	}
	return samples
}

var descName = regexp.MustCompile(`fqName: "([^"]+)"`)

// Names gives the names of all metrics that a registry describes, in order, whether they
// have values yet or not.
func Names(registry *prometheus.Registry) []string {
	described := make(chan *prometheus.Desc)
	go func() {
		defer close(described)
		registry.Describe(described)
	}()
	var names []string
	for d := range described {
		names = append(names, descName.FindStringSubmatch(d.String())[1])
	}
	slices.Sort(names)
	return slices.Compact(names)
}
