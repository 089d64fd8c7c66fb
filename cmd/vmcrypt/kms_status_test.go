package main

import (
	"strings"
	"testing"
	"time"
)

// TestStatusWarnsOfExpiry: people read of it when there is something to do.
func TestStatusWarnsOfExpiry(t *testing.T) {
	day := 24 * time.Hour
	for left, want := range map[time.Duration]string{
		61 * day:           "",
		60*day - time.Hour: "in 59 days",
		time.Hour:          "in 0 days",
		-time.Hour:         " expired on ",
	} {
		ends := time.Now().Add(left)
		note := expiryNote("it", utc(ends))
		if (note == "") != (want == "") || !strings.Contains(note, want) {
			t.Errorf("%v: %q, want %q", left, note, want)
		}
		r := &kmsReport{Aliases: []aliasReport{{Alias: "a", ClientExpires: &ends,
			Servers: []serverReport{{Address: "a:1", State: "ok", Expires: &ends}}}}}
		var out strings.Builder
		printKMSReport(&out, r)
		if n := strings.Count(out.String(), "certificate"); n != 0 && want == "" || n != 2 && want != "" {
			t.Errorf("%v: %s", left, out.String())
		}
	}
	if note := expiryNote("it", utc(time.Time{})); note != "" {
		t.Errorf("of no certificate: %q", note)
	}
}
