package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmcrypt/vmcrypt/agent"
	"github.com/vmcrypt/vmcrypt/agent/api"
	"github.com/vmcrypt/vmcrypt/internal/ovhkmip"
	"github.com/vmcrypt/vmcrypt/internal/pykmip"
	"github.com/vmcrypt/vmcrypt/internal/testtool"
)

// makes is a host with key managers of three makes, each an alias, and disks under each.
type makes struct {
	*host
	pykmip *pykmip.Server
	plain  string // folder of the disks as they were: one named after each alias
}

// aliases is in the order of the status.
var aliases = []string{"ours", "ovh", "pykmip"}

// TestThreeMakes: one host works with key managers of three makes at once, and goes on with
// two of them.
func TestThreeMakes(t *testing.T) {
	testtool.Long(t)
	t.Parallel()
	m := newMakes(t)
	for _, alias := range aliases {
		m.encrypt(alias)
		m.keysOf(alias)
	}
	m.encryptMixed()
	m.startAgent()
	vms := m.unlockAll(exitDone, exitDone, exitDone, exitDone)
	m.checkDisks(vms)
	m.checkAll()

	m.pykmip.Kill()
	m.checkDisks(vms) // who has the data key needs nobody
	for _, vm := range vms {
		m.lock(vm.Descriptor)
	}
	m.checkOthers()
	vms = m.unlockAll(exitDone, exitDone, exitNoKeyManager, exitNoKeyManager)
	m.checkDisks(vms[:2])
	for _, vm := range vms[:2] {
		m.lock(vm.Descriptor)
	}
	m.untouched()
}

func newMakes(t *testing.T) *makes {
	t.Helper()
	m := &makes{pykmip: pykmip.Start(t), host: newHost(t), plain: t.TempDir()}
	ovh, ours := ovhkmip.Start(t), m.serveKMS()
	config := filepath.Join(m.home.dir, "config.yaml")
	write(t, config, []byte("defaultAlias: ours\naliases:\n"))
	m.addAlias("ours", ours)
	m.home.configure("pykmip", m.pykmip.Address, m.pykmip.ClientCert, m.pykmip.ClientKey, m.pykmip.CA)
	m.home.configure("ovh", ovh.Address, ovh.ClientCert, ovh.ClientKey, ovh.CA)
	m.configureAgent()
	for i, alias := range aliases {
		write(t, m.plainDisk(alias), bytes.Repeat([]byte{byte(i + 1), 0xa5}, 32<<10))
	}
	return m
}

func (m *makes) plainDisk(alias string) string { return filepath.Join(m.plain, alias+".img") }

// targets are the disks of their own, and a VM that has a disk under each alias.
func (m *makes) targets() []string {
	return []string{m.at("ours.img.vmx"), m.at("ovh.img.vmx"), m.at("pykmip.img.vmx"), m.at("mixed/mixed.vmx")}
}

// encrypt encrypts a disk under an alias.
func (m *makes) encrypt(alias string) {
	m.t.Helper()
	to, back := m.at(alias+".img"), filepath.Join(m.plain, "back")
	m.ok("encrypt", m.plainDisk(alias), "--output", to, "--kms", alias)
	m.ok("decrypt", to, "--output", back)
	if sum(m.t, back) != sum(m.t, m.plainDisk(alias)) {
		m.t.Errorf("the disk under %s came back wrong", alias)
	}
	if err := os.Remove(back); err != nil {
		m.t.Fatal(err)
	}
}

// encryptMixed encrypts each disk of a VM under another alias, in place.
func (m *makes) encryptMixed() {
	m.t.Helper()
	if err := os.Mkdir(m.at("mixed"), 0o755); err != nil {
		m.t.Fatal(err)
	}
	text := ""
	for i, alias := range aliases {
		write(m.t, m.at("mixed", alias+".img"), read(m.t, m.plainDisk(alias)))
		text += fmt.Sprintf("scsi0:%d.fileName = %q\n", i, alias+".img")
	}
	write(m.t, m.at("mixed/mixed.vmx"), []byte(text))
	for i, alias := range aliases {
		m.ok("encrypt", m.at("mixed/mixed.vmx"), "--disk", fmt.Sprintf("scsi0:%d", i), "--kms", alias)
	}
}

// keysOf takes a key through its life, beside the one that a disk needs.
func (m *makes) keysOf(alias string) {
	m.t.Helper()
	disk := m.at(alias + ".img")
	needed := parseJSON[agent.Status](m.t, m.ok("status", "--json", disk)).Disks[0].Recipients[0].KEKID
	id := parseJSON[keyResult](m.t, m.ok("kms", "create-key", "--json", "--kms", alias)).ID
	of := func(args ...string) []string { return append([]string{"kms"}, append(args, "--kms", alias)...) }

	m.checkKeys(alias, map[string]string{needed: "active " + disk + ".vmx", id: "active orphan"})
	m.fails(exitFailure, []string{"revoke-key"}, of("destroy-key", id, "--yes")...)
	for range 2 { // the second time there is nothing to do
		m.ok(of("revoke-key", id)...)
	}
	m.checkKeys(alias, map[string]string{needed: "active " + disk + ".vmx", id: "deactivated orphan"})
	m.fails(exitKey, []string{"not active"}, "encrypt", m.plainDisk(alias), "--output", m.at("none.img"), "--kms", alias, "--kek", id)
	m.ok(of("destroy-key", id, "--yes")...)
	m.checkKeys(alias, map[string]string{needed: "active " + disk + ".vmx"})
	m.fails(exitKey, nil, of("revoke-key", id)...)
	m.fails(exitFailure, []string{disk + ".vmx"}, of("destroy-key", needed, "--yes")...)
}

// checkKeys compares the list of keys: of each its state, and who needs it.
func (m *makes) checkKeys(alias string, want map[string]string) {
	m.t.Helper()
	list := parseJSON[keyList](m.t, m.ok("kms", "list-keys", "--json", "--kms", alias))
	for _, key := range list.Keys {
		text := key.State + " " + strings.Join(key.VMs, ",")
		if key.Orphan {
			text += "orphan"
		}
		if text != want[key.ID] || !strings.HasPrefix(key.Name, "vmcrypt-kek-") || key.Created == nil {
			m.t.Errorf("%s: %+v, want %s", alias, key, want[key.ID])
		}
	}
	if len(list.Keys) != len(want) || list.Alias != alias || len(list.Unread) > 0 {
		m.t.Errorf("%+v", list)
	}
}

// unlockAll has the agent unlock all targets at once, which must end with the codes.
func (m *makes) unlockAll(codes ...int) []api.VM {
	m.t.Helper()
	results, vms := make([]result, len(codes)), make([]api.VM, len(codes))
	var unlocking sync.WaitGroup
	for i, target := range m.targets() {
		unlocking.Go(func() { results[i] = m.run("unlock", "--json", target) })
	}
	unlocking.Wait()
	for i, r := range results {
		if r.code != codes[i] || (r.code != exitDone) != strings.Contains(r.stderr, m.pykmip.Address) {
			m.t.Fatalf("%s: exit code %d, want %d\n%s", m.targets()[i], r.code, codes[i], r.stderr)
		}
		if r.code == exitDone {
			vms[i] = parseJSON[api.VM](m.t, r.stdout)
		}
	}
	return vms
}

// checkDisks compares what QEMU reads with the disks as they were.
func (m *makes) checkDisks(vms []api.VM) {
	m.t.Helper()
	for i, vm := range vms {
		under := aliases
		if i < len(aliases) {
			under = aliases[i : i+1]
		}
		if len(vm.Disks) != len(under) {
			m.t.Fatalf("%+v, want %d disks", vm, len(under))
		}
		for j, alias := range under {
			execute(m.t, exec.Command(testtool.Need(m.t, "qemu-img"), "compare", "-f", "raw", "-F", "raw", m.plainDisk(alias), vm.Disks[j].URI))
		}
	}
}

// checkAll: the status is right for each key manager, and no key is amiss.
func (m *makes) checkAll() {
	m.t.Helper()
	report := m.kmsStatus()
	for i, alias := range aliases {
		m.isWell(report.Aliases[i], alias)
	}
	if text := m.ok("kms", "status"); strings.Count(text, "gives keys") != len(aliases) || !strings.Contains(text, ovhkmip.Vendor) {
		m.t.Error(text)
	}
	want := slices.Repeat([]string{"scsi0:0,ok,true"}, 3)
	want = append(want, "scsi0:0,ok,true", "scsi0:1,ok,true", "scsi0:2,ok,true")
	if got := m.verified(exitDone, m.targets()...); !slices.Equal(got, want) {
		m.t.Errorf("%q, want %q", got, want)
	}
	m.preflight(exitDone, "mixed true, ours.img true, ovh.img true, pykmip.img true")
}

// isWell checks the status of an alias with which all is well.
func (m *makes) isWell(a aliasReport, alias string) {
	m.t.Helper()
	want := map[string]struct{ vendor, tls string }{
		"ours": {"vmcrypt", "TLS 1.3"}, "ovh": {ovhkmip.Vendor, "TLS 1.3"}, "pykmip": {"PyKMIP", "TLS 1.2"},
	}[alias]
	if len(a.Servers) != 1 || a.Alias != alias || a.Canary == "" || a.ClientExpires == nil || time.Until(*a.ClientExpires) < time.Hour {
		m.t.Fatalf("%+v, want %s", a, alias)
	}
	s := a.Servers[0]
	if s.State != "ok" || s.Error != "" || s.Version != "1.4" || s.TLS != want.tls || !strings.HasPrefix(s.Vendor, want.vendor) ||
		s.LatencyMs <= 0 || s.Expires == nil || time.Until(*s.Expires) < time.Hour || s.Canary != "ok" {
		m.t.Errorf("%s: %+v", alias, s)
	}
}

// preflight compares which VMs could be unlocked. Nothing more is said where all could be.
func (m *makes) preflight(code int, want string) {
	m.t.Helper()
	out := m.run("preflight", "--json")
	p := parseJSON[agent.Preflight](m.t, out.stdout)
	var got []string
	said := len(p.Datastores) + len(p.Circles)
	for _, vm := range p.VMs {
		got = append(got, fmt.Sprint(vm.Name, " ", vm.Unlocks))
		said += len(vm.Problems) + len(vm.Warnings)
	}
	if out.code != code || strings.Join(got, ", ") != want || (said == 0) != (code == exitDone) {
		m.t.Errorf("exit code %d, want %d; want %s: %s", out.code, code, want, out.stdout)
	}
}

// checkOthers: with PyKMIP gone, the status is right for the others, and so are their keys.
func (m *makes) checkOthers() {
	m.t.Helper()
	out := m.run("kms", "status", "--json")
	report := parseJSON[kmsReport](m.t, out.stdout)
	if out.code != exitNoKeyManager || !strings.Contains(out.stderr, "pykmip") {
		m.t.Errorf("exit code %d: %s", out.code, out.stderr)
	}
	for i, alias := range aliases[:2] {
		m.isWell(report.Aliases[i], alias)
		m.ok("kms", "status", alias)
	}
	if a := report.Aliases[2]; a.Canary != "" || a.Servers[0].State != "unreachable" || a.Servers[0].Error == "" || a.Servers[0].Canary != "unreachable" {
		m.t.Errorf("%+v", a)
	}

	targets := m.targets()
	if got, want := m.verified(exitDone, targets[:2]...), []string{"scsi0:0,ok,true", "scsi0:0,ok,true"}; !slices.Equal(got, want) {
		m.t.Errorf("%q, want %q", got, want)
	}
	want := []string{"scsi0:0,unreachable,false", "scsi0:0,ok,true", "scsi0:1,ok,true", "scsi0:2,unreachable,false"}
	if got := m.verified(exitNoKeyManager, targets[2:]...); !slices.Equal(got, want) {
		m.t.Errorf("%q, want %q", got, want)
	}
	m.preflight(exitNoKeyManager, "mixed false, ours.img true, ovh.img true, pykmip.img false")
}
