package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmcrypt/vmcrypt/agent"
	"github.com/vmcrypt/vmcrypt/agent/api"
)

func (h *host) overview() *api.Overview {
	h.t.Helper()
	o, err := h.client().Overview(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	return o
}

// TestOverview: conversions that run and that don't, a key manager that answers and one
// that does not.
func TestOverview(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.edit(filepath.Join(h.home.dir, "config.yaml"), `(?m)^aliases:$`,
		"aliases:\n  elsewhere: {servers: [{address: '127.0.0.1:1'}], clientCert: client.pem, clientKey: client.key, ca: ca.pem}")
	h.startAgent()
	vm := h.vm("web01", "scsi0:0")
	h.unlock(vm)
	disk := h.at("half.img")
	holedImage(t, disk, 2<<20)
	h.halfWay(func(cmd *exec.Cmd, _ *os.File) {
		half := conversionIn(t, h.overview(), disk)
		if half.State != agent.StateEncrypting || !half.Running || half.PositionBytes == nil || half.SizeBytes != 2<<20 {
			t.Errorf("while it runs: %+v", half)
		}
		if got := warningsOf(h.overview(), disk+".vmx"); len(got) > 0 {
			t.Errorf("while it runs, there are warnings: %v", got)
		}
		_ = cmd.Process.Signal(os.Interrupt)
	}, "encrypt", disk)
	want := state(t, disk).Conversion.PositionBytes
	o := h.overview()
	if half := conversionIn(t, o, disk); half.Running || half.PositionBytes == nil || *half.PositionBytes != *want {
		t.Errorf("interrupted at %d: %+v", *want, half)
	}
	if got := warningsOf(o, disk+".vmx"); len(got) != 1 || !strings.Contains(got[0].Text, "interrupted") || got[0].Severity != api.Notice {
		t.Errorf("interrupted, there are warnings: %v", got)
	}
	h.checkKeyManagers()
	if got := warningsOf(h.overview(), vm); len(got) > 0 {
		t.Errorf("all is well: %v", got)
	}
}

func (h *host) checkKeyManagers() {
	h.t.Helper()
	eventually(h.t, "the key managers are known", func() bool {
		return !slices.ContainsFunc(h.overview().KeyManagers, func(k api.KeyManager) bool { return k.State == "unknown" })
	})
	o := h.overview()
	byAlias := map[string]api.KeyManager{}
	for _, k := range o.KeyManagers {
		byAlias[k.Alias] = k
	}
	if k := byAlias["local"]; k.State != "ok" || k.Version != "1.4" || k.LatencyMs <= 0 || k.Checked == nil || k.Expires == nil || k.ClientExpires == nil {
		h.t.Errorf("local is %+v", k)
	}
	if k := byAlias["elsewhere"]; k.State != "unreachable" || k.Problem == "" || k.Expires != nil || k.ClientExpires == nil {
		h.t.Errorf("elsewhere is %+v", k)
	}
	if len(o.Warnings) == 0 || o.Warnings[0].Severity != api.Critical || !strings.Contains(o.Warnings[0].Text, "no key manager of elsewhere is left") {
		h.t.Errorf("the warnings are %+v", o.Warnings)
	}
}

func conversionIn(t *testing.T, o *api.Overview, disk string) *api.Conversion {
	t.Helper()
	i := slices.IndexFunc(o.VMs, func(vm api.VM) bool { return vm.Descriptor == disk+".vmx" })
	if i < 0 || o.VMs[i].Disks[0].Conversion == nil {
		t.Fatalf("there is no conversion of %s in %+v", disk, o.VMs)
	}
	return o.VMs[i].Disks[0].Conversion
}

func warningsOf(o *api.Overview, subject string) (found []api.Warning) {
	for _, w := range o.Warnings {
		if w.Subject == subject {
			found = append(found, w)
		}
	}
	return found
}
