package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmcrypt/vmcrypt/internal/audit"
)

// agentLog makes an audit log of n entries.
func agentLog(t *testing.T, dir string, n int) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := audit.Open(dir, audit.Head{})
	if err != nil {
		t.Fatal(err)
	}
	for range n {
		if err := l.Append(false, map[string]string{"operation": "unlock"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestAgentAudit: the log is found, or named, and a change of it is told as that
// of the key manager's is. It needs no configuration.
func TestAgentAudit(t *testing.T) {
	t.Parallel()
	h := emptyHome(t)
	own, other := filepath.Join(h.dir, "agent"), filepath.Join(t.TempDir(), "archive")
	agentLog(t, own, 3)
	agentLog(t, other, 5)
	if out := h.ok("audit", "verify"); !strings.HasPrefix(out, "3 entries, from 1 to 3; hash of the last: ") {
		t.Errorf("%s", out)
	}
	r := parseJSON[audit.Report](t, h.ok("audit", "verify", other, "--json"))
	if r.Entries != 5 || r.First != 1 || r.Last != 5 || len(r.Hash) != 64 || r.Problems == nil || len(r.Problems) != 0 {
		t.Errorf("%+v", r)
	}
	log := filepath.Join(own, "audit.log")
	write(t, log, []byte(strings.Replace(string(read(t, log)), "unlock", "unlocked", 1)))
	h.fails(exitTampered, []string{"the audit log was changed: audit.log line 2"}, "audit", "verify")
	changed := h.run("audit", "verify", "--json")
	if r := parseJSON[audit.Report](t, changed.stdout); changed.code != exitTampered || len(r.Problems) != 1 || r.Problems[0].Line != 2 {
		t.Errorf("exit code %d, %+v", changed.code, r)
	}
}

func TestAgentAuditIsThere(t *testing.T) {
	t.Parallel()
	h, dir := emptyHome(t), t.TempDir()
	h.fails(exitFailure, []string{"no audit log in " + filepath.Join(h.dir, "agent")}, "audit", "verify")
	h.fails(exitFailure, []string{"no audit log in " + dir}, "audit", "verify", dir)
	h.fails(exitUsage, []string{"takes [DIR]"}, "audit", "verify", dir, dir)
	h.fails(exitUsage, []string{"unknown command"}, "audit", "check")
	agentLog(t, dir, 0)
	if out := h.ok("audit", "verify", dir); out != "the audit log is empty\n" {
		t.Errorf("%s", out)
	}
}
