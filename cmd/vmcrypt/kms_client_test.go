package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmcrypt/vmcrypt/internal/audit"
)

type clientReport struct {
	Name, Serial, Certificate string
	Revoked                   *string
}

func (h *home) clients() []clientReport {
	h.t.Helper()
	return parseJSON[struct{ Clients []clientReport }](h.t, h.ok("kms", "client", "list", "--json")).Clients
}

// otherHost gives a host whose configuration leads to a server of h.
func (h *home) otherHost(address, name, certs string) *home {
	h.t.Helper()
	other := &home{t: h.t, dir: filepath.Join(h.t.TempDir(), "other")}
	if err := os.MkdirAll(other.dir, 0o700); err != nil {
		h.t.Fatal(err)
	}
	write(h.t, filepath.Join(other.dir, "config.yaml"), []byte("defaultAlias: local\naliases:"))
	at := func(suffix string) string { return filepath.Join(certs, name+suffix) }
	other.configure("local", address, at(".pem"), at(".key"), at("-ca.pem"))
	return other
}

func TestClientCommands(t *testing.T) {
	t.Parallel()
	h, dir := newHome(t), t.TempDir()
	added := parseJSON[clientReport](t, h.ok("kms", "client", "add", "host2", "--out", dir, "--json"))
	if added.Name != "host2" || added.Serial == "" || added.Certificate != filepath.Join(dir, "host2.pem") {
		t.Errorf("%+v", added)
	}
	for _, name := range []string{"host2.pem", "host2.key", "host2-ca.pem"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	h.fails(exitFailure, []string{"host2", "--replace"}, "kms", "client", "add", "host2", "--out", t.TempDir())
	h.fails(exitFailure, []string{"letters"}, "kms", "client", "add", "../x")
	h.fails(exitFailure, []string{"host3.csr"}, "kms", "client", "add", "host3", "--csr", "host3.csr")
	h.fails(exitFailure, []string{"no such client"}, "kms", "client", "revoke", "host3")
	h.fails(exitUsage, nil, "kms", "client", "add")
	h.ok("kms", "client", "revoke", "host2")
	if all := h.clients(); len(all) != 2 || all[0].Name != "host2" || all[0].Revoked == nil || all[1].Revoked != nil {
		t.Errorf("%+v", all)
	}
	if out := h.ok("kms", "client", "list"); strings.Count(out, "\n") != 3 || !strings.Contains(out, added.Serial) {
		t.Errorf("%s", out)
	}
}

// TestClientsHaveTheirOwnKeys: another host's client can use the key manager,
// but not a disk of this host, and nothing once it is revoked.
func TestClientsHaveTheirOwnKeys(t *testing.T) {
	t.Parallel()
	h, dir := newHome(t), t.TempDir()
	h.ok("kms", "client", "add", "host2", "--out", dir)
	other := h.otherHost(h.serveKMS(), "host2", dir)
	path := filepath.Join(dir, "disk.img")
	smallImage(t, path)
	h.ok("encrypt", path, "--output", path+".ours")
	other.ok("encrypt", path, "--output", path+".theirs")
	other.ok("decrypt", path+".theirs", "--output", path+".back")
	other.fails(exitKey, nil, "decrypt", path+".ours", "--output", path+".stolen")
	h.ok("kms", "client", "revoke", "host2")
	other.fails(exitKey, []string{"denied"}, "decrypt", path+".theirs", "--output", path+".again")
	h.ok("kms", "audit", "verify")
}

func TestAuditCommand(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	if out := h.ok("kms", "audit", "verify"); !strings.Contains(out, "empty") {
		t.Errorf("%s", out)
	}
	path := filepath.Join(t.TempDir(), "disk.img")
	smallImage(t, path)
	h.ok("encrypt", path, "--output", path+".enc")
	r := parseJSON[audit.Report](t, h.ok("kms", "audit", "verify", "--json"))
	if r.Entries == 0 || r.First != 1 || len(r.Hash) != 64 || len(r.Problems) != 0 {
		t.Errorf("%+v", r)
	}
	log := filepath.Join(h.dir, "kms", "audit.log")
	write(t, log, []byte(strings.Replace(string(read(t, log)), "Create", "Locate", 1)))
	h.fails(exitTampered, []string{"audit.log line 3"}, "kms", "audit", "verify")
}
