package main

import (
	"strings"
	"testing"
	"time"

	"github.com/vmcrypt/vmcrypt/kek"
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

// TestStatusOfKeyManagersThatTellNoKey: no key to try is no fault, unless they do not say so.
func TestStatusOfKeyManagersThatTellNoKey(t *testing.T) {
	silent := serverReport{Address: "a:1", State: "ok", Canary: kek.KeyDenied, CanaryDetail: "Locate: refused"}
	for _, test := range []struct {
		servers []serverReport
		code    int
		says    string
	}{
		{[]serverReport{{Address: "a:1", State: "ok"}}, exitDone, " ms\n"},
		{[]serverReport{silent}, exitKey, "a:1  ok, , KMIP , 0.0 ms, but tells of no keys: denied: Locate: refused\n"},
		{[]serverReport{silent, {Address: "b:1", State: "unreachable", Error: "refused", Canary: kek.KeyUnreachable}}, exitKey, "tells of no keys"},
	} {
		r := &kmsReport{Aliases: []aliasReport{{Alias: "a", Servers: test.servers}}}
		var out strings.Builder
		printKMSReport(&out, r)
		err := r.verdict()
		if (err == nil) != (test.code == exitDone) || err != nil && exitCode(err) != test.code {
			t.Errorf("%+v: %v", test.servers, err)
		}
		if !strings.Contains(out.String(), test.says) {
			t.Errorf("want %q in %q", test.says, out.String())
		}
	}
}
