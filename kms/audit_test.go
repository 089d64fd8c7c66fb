package kms

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/gemalto/kmip-go/kmip14"

	"github.com/vmcrypt/vmcrypt/internal/audit"
	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

const auditFile = "audit.log"

// auditHome is a home whose audit log has n entries.
func auditHome(t *testing.T, n int) Home {
	t.Helper()
	h := newHome(t)
	appendEntries(t, h, n)
	return h
}

// appendEntries opens the key manager, notes n operations one by one, and
// closes it.
func appendEntries(t *testing.T, h Home, n int) {
	t.Helper()
	s := startServer(t, h)
	for i := range n {
		appendOne(t, s.audit, i)
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
}

// startServer gives a server that has to be closed.
func startServer(t *testing.T, h Home) *server {
	t.Helper()
	s, err := h.open(forWriting, storeWait)
	if err != nil {
		t.Fatal(err)
	}
	srv, err := h.newServer(s, localTimeouts)
	if err != nil {
		t.Fatal(errors.Join(err, s.close()))
	}
	return srv
}

func noted(i int) auditEntry {
	return auditEntry{Time: time.Now(), Client: "c", Address: "local", Operation: "Get", Object: fmt.Sprint(i), Result: "Success"}
}

func auditReport(t *testing.T, h Home) *audit.Report {
	t.Helper()
	r, err := h.VerifyAudit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if (r.Err() != nil) != (len(r.Problems) > 0) || r.Err() != nil && !errors.Is(r.Err(), audit.ErrChanged) {
		t.Errorf("error is %v", r.Err())
	}
	return r
}

func wantWhole(t *testing.T, h Home, first, last uint64) {
	t.Helper()
	r := auditReport(t, h)
	if r.First != first || r.Last != last || r.Entries != last-first+1 || len(r.Problems) != 0 {
		t.Errorf("%+v, want entries %d to %d", r, first, last)
	}
}

// TestAuditFormat: the lines are those of the first release, byte for byte.
func TestAuditFormat(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	s := startServer(t, h)
	err := s.audit.append([]auditEntry{{
		Time:   time.Date(2026, 1, 2, 3, 4, 5, 600_000_000, time.FixedZone("", 3600)),
		Client: "host <1>", Address: "192.0.2.1", Operation: "Create", Object: "11111111-1111-4111-8111-111111111111",
		Result: "Success", Correlation: correlation{"mine", "ours"},
	}, {
		Time:      time.Date(2026, 1, 2, 3, 4, 6, 0, time.UTC),
		Operation: "Connection", Result: "OperationFailed", Reason: "no \"TLS\"\n",
	}})
	if err := errors.Join(err, s.close()); err != nil {
		t.Fatal(err)
	}
	want := `{"sequence":1,"previous":"0000000000000000000000000000000000000000000000000000000000000000","time":"2026-01-02T02:04:05.6Z","client":"host \u003c1\u003e","address":"192.0.2.1","operation":"Create","object":"11111111-1111-4111-8111-111111111111","result":"Success","clientCorrelation":"mine","serverCorrelation":"ours"}
{"sequence":2,"previous":"24e968520791e0bf16648e70a9d09d508da8a83d971de1001227e1e7802456c0","time":"2026-01-02T03:04:06Z","client":"","address":"","operation":"Connection","result":"OperationFailed","reason":"no \"TLS\"\n"}
`
	if got := readAudit(t, h); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if r := auditReport(t, h); r.Hash != "33344ca55edb616fe1fb6fd42b52817eb6d6b6ef5ccb1e4f8dbcef3a06072d29" {
		t.Errorf("%+v", r)
	}
}

func TestAuditGoesOn(t *testing.T) {
	h := auditHome(t, 3)
	wantWhole(t, h, 1, 3)
	appendEntries(t, h, 2)
	wantWhole(t, h, 1, 5)
	if info, err := os.Stat(h.path(auditFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v, want mode 0600", info, err)
	}
}

func readAudit(t *testing.T, h Home) string {
	t.Helper()
	text, err := os.ReadFile(h.path(auditFile))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// loggedLine is a line of the log.
type loggedLine struct {
	Sequence uint64 `json:"sequence"`
	auditLine
}

// auditLines are the entries of the log.
func auditLines(t *testing.T, h Home) (all []loggedLine) {
	t.Helper()
	for text := range strings.Lines(readAudit(t, h)) {
		var line loggedLine
		if err := json.Unmarshal([]byte(text), &line); err != nil || line.Sequence == 0 {
			t.Fatal(text, err)
		}
		all = append(all, line)
	}
	return all
}

// TestAuditTampering: the store knows how far the log went, and how it ended.
func TestAuditTampering(t *testing.T) {
	h := auditHome(t, 9)
	good := readAudit(t, h)
	lines := strings.SplitAfter(good, "\n")
	for what, test := range map[string]struct {
		text, words string
	}{
		"an altered line":  {strings.Replace(good, `"object":"3"`, `"object":"4"`, 1), "entry 5 does not follow"},
		"the last altered": {strings.Replace(good, `"object":"8"`, `"object":"4"`, 1), "entry 9 is not the one"},
		"the end cut off":  {strings.Join(lines[:7], ""), "entries 8 to 9 are missing at the end"},
		"all removed":      {"", "entries 1 to 9 are missing at the end"},
	} {
		t.Run(what, func(t *testing.T) {
			if err := os.WriteFile(h.path(auditFile), []byte(test.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if r := auditReport(t, h); len(r.Problems) != 1 || !strings.Contains(r.Problems[0].Message, test.words) {
				t.Errorf("%+v, want %q", r, test.words)
			}
		})
	}
}

// TestAuditGapStays: what was cut off is missing for ever, also when the log
// has gone on.
func TestAuditGapStays(t *testing.T) {
	h := auditHome(t, 9)
	text := readAudit(t, h)
	lines := strings.SplitAfter(text, "\n")
	for what, left := range map[string]string{"some": strings.Join(lines[:5], ""), "none": ""} {
		t.Run(what, func(t *testing.T) {
			if err := os.WriteFile(h.path(auditFile), []byte(left), 0o600); err != nil {
				t.Fatal(err)
			}
			s := startServer(t, h)
			if err := errors.Join(s.audit.append([]auditEntry{noted(1)}), s.close()); err != nil {
				t.Fatal(err)
			}
			r := auditReport(t, h)
			if left == "" && (r.First < 10 || r.Entries != 1) {
				t.Errorf("%+v, want it to begin after the entries that are gone", r)
			}
			if left != "" && (len(r.Problems) != 1 || !strings.Contains(r.Problems[0].Message, "entries 6 to ")) {
				t.Errorf("%+v, want a gap", r)
			}
		})
	}
}

// TestAuditUnreadable: a last line that no power loss explains is not built
// upon.
func TestAuditUnreadable(t *testing.T) {
	h := auditHome(t, 2)
	if err := os.WriteFile(h.path(auditFile), []byte("hello\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Dial(t.Context(), ""); !errors.Is(err, audit.ErrDamaged) || !strings.Contains(err.Error(), auditFile) {
		t.Errorf("error is %v", err)
	}
}

func appendOne(t *testing.T, l auditLog, i int) {
	t.Helper()
	if err := l.append([]auditEntry{noted(i)}); err != nil {
		t.Fatal(err)
	}
}

// TestAuditFieldsAreBounded: clients choose some of them.
func TestAuditFieldsAreBounded(t *testing.T) {
	long := strings.Repeat("\"\n\x00\xff", 1<<18)
	e := auditEntry{Client: long, Address: long, Operation: long, Object: long, Result: long, Reason: long, Correlation: correlation{long, long}}
	text, err := json.Marshal(e.line())
	if err != nil || len(text) > audit.MaxEntry {
		t.Errorf("%d bytes, %v", len(text), err)
	}
}

// TestAuditOfOne: one process at a time writes.
func TestAuditOfOne(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	s := newTestServer(t, h)
	if _, err := h.openAudit(audit.Head{}); !errors.Is(err, audit.ErrBusy) {
		t.Errorf("error is %v", err)
	}
	appendOne(t, s.audit, 1)
}

// TestOperationsAreLogged: who did what to which object, before the answer, and
// never a byte of a key.
func TestOperationsAreLogged(t *testing.T) {
	everyWay(t, func(t *testing.T, h Home) {
		c := dial(t, h)
		id := c.create("secret-name")
		key := c.get(id)
		missing := "11111111-1111-4111-8111-111111111111"
		c.refused(kmip14.ResultReasonItemNotFound, kmip14.OperationGet, &kmipwire.GetRequest{UniqueIdentifier: missing})
		c.refused(kmip14.ResultReasonOperationNotSupported, kmip14.OperationSign, &kmipwire.GetRequest{})
		text := readAudit(t, h) // the connection is still open
		lines := strings.Split(strings.TrimSpace(text), "\n")
		for i, words := range []string{
			`"operation":"Create","object":"` + id + `","result":"Success"`,
			`"operation":"Get","object":"` + id + `","result":"Success"`,
			`"operation":"Get","object":"` + missing + `","result":"Operation`,
			`"operation":"Sign"`,
		} {
			if i >= len(lines) || !strings.Contains(lines[i], words) || !strings.Contains(lines[i], `"client":"vmcrypt","address":"`) {
				t.Errorf("line %d has no %s:\n%s", i+1, words, text)
			}
		}
		for _, secret := range []string{key, hex.EncodeToString([]byte(key)), base64.StdEncoding.EncodeToString([]byte(key)), "secret-name"} {
			if strings.Contains(text, secret) {
				t.Error("the log tells a secret")
			}
		}
		c.conn.Close()
		wantWhole(t, h, 1, 4)
	})
}

// TestNothingIsAnsweredUnlogged: a key that was handed out would be in the log.
func TestNothingIsAnsweredUnlogged(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	s := startServer(t, h)
	_ = s.audit.Close()
	local, remote, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { s.handle(t.Context(), s.guests.enter(t.Context(), remote)); close(done) }()
	c := &client{t: t, version: newest, conn: kmipwire.NewConn(tls.Client(local, clientTLS(t, h)), kmipwire.DefaultTimeouts)}
	c.refused(kmip14.ResultReasonGeneralFailure, kmip14.OperationCreate, createRequest())
	c.conn.Close()
	<-done
	_ = s.close()
}

// TestChangesAreOnDisk when they are answered; what is only read is there soon.
func TestChangesAreOnDisk(t *testing.T) {
	read, change := noted(1), noted(2)
	change.Operation = kmip14.OperationCreate.String()
	for _, test := range []struct {
		entries []auditEntry
		durable bool
	}{
		{[]auditEntry{read, change}, true},
		{[]auditEntry{read, read}, false},
		{[]auditEntry{refusedConnection("", "", "")}, false},
	} {
		if got := changes(test.entries); got != test.durable {
			t.Errorf("%+v: %v", test.entries, got)
		}
	}
}
