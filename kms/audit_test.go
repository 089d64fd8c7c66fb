package kms

import (
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gemalto/kmip-go/kmip14"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

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

func auditReport(t *testing.T, h Home) *AuditReport {
	t.Helper()
	r, err := h.VerifyAudit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if (r.Err() != nil) != (len(r.Problems) > 0) || r.Err() != nil && !errors.Is(r.Err(), ErrAudit) {
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

func TestAuditGoesOn(t *testing.T) {
	h := auditHome(t, 3)
	wantWhole(t, h, 1, 3)
	appendEntries(t, h, 2)
	wantWhole(t, h, 1, 5)
	if info, err := os.Stat(h.path(auditFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v, want mode 0600", info, err)
	}
}

// TestAuditTogether: who appends at the same time shares writes, and every
// entry is there once.
func TestAuditTogether(t *testing.T) {
	h := newHome(t)
	s := startServer(t, h)
	var wg sync.WaitGroup
	const writers, each = 16, 20
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				if err := s.audit.append([]auditEntry{noted(w*1000 + i), noted(w*1000 + 500 + i)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	wantWhole(t, h, 1, 2*writers*each)
	text := readAudit(t, h)
	for w := range writers {
		for i := range each {
			if n := strings.Count(text, fmt.Sprintf(`"object":"%d"`, w*1000+i)); n != 1 {
				t.Fatalf("entry %d of writer %d is there %d times", i, w, n)
			}
		}
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

// auditLines are the entries of the log.
func auditLines(t *testing.T, h Home) (all []*auditLine) {
	t.Helper()
	for text := range strings.Lines(readAudit(t, h)) {
		line, err := parseAuditLine([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, line)
	}
	return all
}

// TestAuditTampering: whatever is done to the file is noticed, and where.
func TestAuditTampering(t *testing.T) {
	h := auditHome(t, 9)
	good := strings.SplitAfter(readAudit(t, h), "\n")
	good = good[:len(good)-1]
	with := func(i int, line string) []string {
		return append(append(append([]string{}, good[:i]...), line), good[i+1:]...)
	}
	for what, test := range map[string]struct {
		lines []string
		line  int // of the first problem
		words string
	}{
		"nothing":            {good, 0, ""},
		"an altered line":    {with(3, strings.Replace(good[3], `"c"`, `"d"`, 1)), 5, "entry 5 does not follow"},
		"the last altered":   {with(8, strings.Replace(good[8], `"c"`, `"d"`, 1)), 9, "entry 9 is not the one"},
		"a line removed":     {with(3, ""), 4, "entries 4 to 4 are missing"},
		"a line repeated":    {with(3, good[3]+good[3]), 5, "entry 4 follows on entry 4"},
		"lines swapped":      {with(3, good[4]+good[3]), 4, "entries 4 to 4 are missing"},
		"no entry":           {with(3, "{}\n"), 4, "not an entry"},
		"no JSON":            {with(3, "x\n"), 4, "not an entry"},
		"two on a line":      {with(3, strings.TrimSuffix(good[3], "\n")+good[4]), 4, "not an entry"},
		"an unknown field":   {with(3, strings.Replace(good[3], `{`, `{"x":1,`, 1)), 4, "not an entry"},
		"a very long line":   {with(3, strings.Repeat("x", maxAuditLine+1)+"\n"), 4, "longer than"},
		"the end cut off":    {good[:7], 7, "entries 8 to 9 are missing at the end"},
		"cut inside a line":  {append(append([]string{}, good[:8]...), good[8][:20]), 9, "entries 9 to 9 are missing at the end"},
		"all removed":        {nil, 0, "entries 1 to 9 are missing at the end"},
		"the hash replaced":  {with(3, strings.Replace(good[3], `"previous":"`, `"previous":"0`, 1)), 4, "entry 4 does not follow"},
		"a number too large": {with(3, strings.Replace(good[3], `"sequence":4`, `"sequence":44`, 1)), 4, "entries 4 to 43 are missing"},
	} {
		t.Run(what, func(t *testing.T) {
			if err := os.WriteFile(h.path(auditFile), []byte(strings.Join(test.lines, "")), 0o600); err != nil {
				t.Fatal(err)
			}
			r := auditReport(t, h)
			if test.words == "" {
				wantWhole(t, h, 1, 9)
				return
			}
			if len(r.Problems) == 0 {
				t.Fatal("not noticed")
			}
			if p := r.Problems[0]; p.File != auditFile || p.Line != test.line || !strings.Contains(p.Message, test.words) {
				t.Errorf("%+v, want line %d, %q", p, test.line, test.words)
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

// TestAuditTornWrite: after power loss the log goes on behind the last line
// that is whole, and what was behind that is kept elsewhere.
func TestAuditTornWrite(t *testing.T) {
	for what, torn := range map[string]string{
		"part of a line":     `{"sequence":6,"prev`,
		"a whole line but 1": `{"sequence":6}`,
		"zeros":              strings.Repeat("\x00", 4096),
		"zeros, then a line": strings.Repeat("\x00", 100) + "\"}\n{\"sequence\":7}\n",
		"a line with zeros":  `{"sequence":6,"pre` + strings.Repeat("\x00", 100) + "\"}\n",
	} {
		t.Run(what, func(t *testing.T) {
			h := auditHome(t, 5)
			f, err := os.OpenFile(h.path(auditFile), os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteString(torn); err != nil {
				t.Fatal(err)
			}
			appendEntries(t, h, 2)
			wantWhole(t, h, 1, 7)
			kept, err := filepath.Glob(h.path("audit-torn-*"))
			if err != nil || len(kept) != 1 {
				t.Fatalf("%v %v", kept, err)
			}
			if text, err := os.ReadFile(kept[0]); err != nil || !strings.HasSuffix(torn, string(text)) || len(text) == 0 {
				t.Errorf("kept %q, %v", text, err)
			}
		})
	}
}

// TestAuditFirstWriteTorn: there was nothing before.
func TestAuditFirstWriteTorn(t *testing.T) {
	h := newHome(t)
	if err := os.WriteFile(h.path(auditFile), []byte(`{"sequence":1,`), 0o600); err != nil {
		t.Fatal(err)
	}
	appendEntries(t, h, 2)
	wantWhole(t, h, 1, 2)
}

// TestAuditUnreadable: a last line that no power loss explains is not built
// upon.
func TestAuditUnreadable(t *testing.T) {
	h := auditHome(t, 2)
	if err := os.WriteFile(h.path(auditFile), []byte("hello\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Dial(t.Context(), ""); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), auditFile) {
		t.Errorf("error is %v", err)
	}
}

func TestAuditRotation(t *testing.T) {
	h := newHome(t)
	s := startServer(t, h)
	s.audit.full = 600
	for i := range 10 {
		appendOne(t, s.audit, i)
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	former, err := formerAudits(h.Dir)
	if err != nil || len(former) < 2 {
		t.Fatalf("%d former files, %v", len(former), err)
	}
	wantWhole(t, h, 1, 10)
	// A crash between the two steps of a rotation.
	if err := os.Rename(h.path(auditFile), h.path(auditName(10))); err != nil {
		t.Fatal(err)
	}
	appendEntries(t, h, 1)
	wantWhole(t, h, 1, 11)
	// The oldest file goes to an archive, then one in the middle is lost.
	if err := os.Remove(former[0]); err != nil {
		t.Fatal(err)
	}
	if r := auditReport(t, h); r.First == 1 || len(r.Problems) != 0 {
		t.Errorf("%+v", r)
	}
	if err := os.Truncate(former[1], 700); err != nil {
		t.Fatal(err)
	}
	if r := auditReport(t, h); len(r.Problems) == 0 || r.Problems[0].File != filepath.Base(former[1]) {
		t.Errorf("%+v", r)
	}
}

func appendOne(t *testing.T, l *auditLog, i int) {
	t.Helper()
	if err := l.append([]auditEntry{noted(i)}); err != nil {
		t.Fatal(err)
	}
}

// TestAuditFieldsAreBounded: clients choose some of them.
func TestAuditFieldsAreBounded(t *testing.T) {
	e := noted(1)
	e.Object = strings.Repeat("\"\n\x00\xff", 1<<18)
	text, _, err := beginning.encode([]auditEntry{e})
	if err != nil || len(text) > maxAuditLine || bytes.Count(text, []byte("\n")) != 1 || bytes.IndexByte(text, 0) >= 0 {
		t.Errorf("%d bytes, %v", len(text), err)
	}
}

// TestAuditOfOne: one process at a time writes.
func TestAuditOfOne(t *testing.T) {
	h := newHome(t)
	s := newTestServer(t, h)
	if _, err := h.openAudit(beginning); !errors.Is(err, ErrBusy) {
		t.Errorf("error is %v", err)
	}
	appendOne(t, s.audit, 1)
}

// TestAuditFails: an operation that cannot be noted is refused, and the log is
// not written to after it.
func TestAuditFails(t *testing.T) {
	h := newHome(t)
	s := startServer(t, h)
	appendOne(t, s.audit, 1)
	s.audit.file.Close()
	for range 2 {
		if err := s.audit.append([]auditEntry{noted(2)}); err == nil {
			t.Error("an entry was noted in a file that is closed")
		}
	}
	_ = s.close()
	wantWhole(t, h, 1, 1)
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
	h := newHome(t)
	s := startServer(t, h)
	s.audit.file.Close()
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

// TestReadsAreOnDiskSoon: what changes something is there when it is answered.
func TestReadsAreOnDiskSoon(t *testing.T) {
	s := newTestServer(t, newHome(t))
	unsynced := func() bool {
		s.audit.writing.Lock()
		defer s.audit.writing.Unlock()
		return s.audit.unsynced
	}
	read, change := noted(1), noted(2)
	change.Operation = kmip14.OperationCreate.String()
	if err := s.audit.append([]auditEntry{read, change}); err != nil || unsynced() {
		t.Errorf("a change is not on disk: %v", err)
	}
	if err := s.audit.append([]auditEntry{read}); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); unsynced(); time.Sleep(auditDelay / 10) {
		if time.Now().After(end) {
			t.Fatal("still not on disk")
		}
	}
	if err := s.audit.append([]auditEntry{read}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.audit.settle(); err != nil || unsynced() {
		t.Errorf("not on disk: %v", err)
	}
}
