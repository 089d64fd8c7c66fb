package main

import (
	"bytes"
	"testing"
	"time"

	"github.com/vmcrypt/vmcrypt/agent"
)

// TestPace: what an earlier run did makes no rate, and what was long ago doesn't
// either.
func TestPace(t *testing.T) {
	t.Parallel()
	p, begun := &pace{}, time.Now()
	for _, step := range []struct {
		at   time.Duration
		done int64 // MiB of 1000
		want string
	}{
		{0, 600, ""},
		{interval - 1, 601, ""},
		{time.Second, 600, "0 B/s"},
		{2 * time.Second, 620, "10.0 MiB/s, 38s left"},
		{4 * time.Second, 640, "10.0 MiB/s, 36s left"},
		{6 * time.Second, 660, "10.0 MiB/s, 34s left"},
		{8 * time.Second, 900, "37.5 MiB/s, 3s left"}, // a hole
		{12 * time.Second, 904, "40.7 MiB/s, 3s left"},
		{18 * time.Second, 910, "1.0 MiB/s, 1m30s left"},
		{20 * time.Second, 912, "1.0 MiB/s, 1m28s left"},
		{108 * time.Second, 1000, "1.0 MiB/s, 0s left"},
	} {
		got := p.see(begun.Add(step.at), agent.Progress{Done: step.done << 20, Total: 1000 << 20}).String()
		if got != step.want {
			t.Errorf("after %v: %q, want %q", step.at, got, step.want)
		}
	}
}

func TestPaceInJSON(t *testing.T) {
	t.Parallel()
	since := sample{at: time.Now().Add(-4 * time.Second)}
	out := &bytes.Buffer{}
	p := &progress{lines: out, pace: pace{older: since, newer: since}}
	p.report(agent.Progress{Done: 400, Total: 1000})
	line := parseJSON[struct{ BytesPerSecond, SecondsLeft *int64 }](t, out.String())
	if line.BytesPerSecond == nil || *line.BytesPerSecond < 1 || line.SecondsLeft == nil || *line.SecondsLeft < 6 {
		t.Error(out)
	}
}
