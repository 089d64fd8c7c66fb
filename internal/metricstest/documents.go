package metricstest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	metricName = regexp.MustCompile(`\bvmcrypt_[a-z0-9_]+`)
	tableRow   = regexp.MustCompile("(?m)^\\| `(vmcrypt_[a-z0-9_]+)` \\| (gauge|counter|histogram) \\|")
	suffix     = regexp.MustCompile(`_(bucket|sum|count)$`)
)

// CheckDocuments compares the names of metrics with docs/metrics.md, which has to have a
// row for each, and the dashboard, which has to use each. What these and the alerts name
// besides has to be another's, for whom mine is false.
func CheckDocuments(t *testing.T, root string, names []string, mine func(name string) bool) {
	t.Helper()
	var rows []string
	for _, row := range tableRow.FindAllStringSubmatch(text(t, root, "docs/metrics.md"), -1) {
		rows = append(rows, row[1])
	}
	shown := mentioned(expressions(t, text(t, root, "packaging/prometheus/dashboard.json")))
	alerting := mentioned(text(t, root, "packaging/prometheus/rules.yml"))
	for _, name := range names {
		if n := len(slices.DeleteFunc(slices.Clone(rows), func(r string) bool { return r != name })); n != 1 {
			t.Errorf("docs/metrics.md has %d rows of %s", n, name)
		}
		if !slices.ContainsFunc(shown, func(s string) bool { return base(s, names) == name }) {
			t.Errorf("the dashboard does not show %s", name)
		}
	}
	for _, name := range slices.Concat(rows, shown, alerting) {
		if mine(name) && !slices.Contains(names, base(name, names)) {
			t.Errorf("there is no metric %s", name)
		}
	}
}

func text(t *testing.T, root, path string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func mentioned(text string) []string { return metricName.FindAllString(text, -1) }

// base is the name of the histogram that a series is of, or else its own.
func base(series string, names []string) string {
	if slices.Contains(names, series) {
		return series
	}
	return suffix.ReplaceAllString(series, "")
}

// expressions gives what a dashboard asks Prometheus.
func expressions(t *testing.T, dashboard string) string {
	t.Helper()
	var d struct {
		Panels []struct {
			Title, Type string
			Targets     []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(dashboard), &d); err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, p := range d.Panels {
		if len(p.Targets) == 0 && p.Type != "row" {
			t.Errorf("the panel %q shows nothing", p.Title)
		}
		for _, target := range p.Targets {
			all = append(all, target.Expr)
		}
	}
	return strings.Join(all, "\n")
}
