package agent

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/vmcrypt/vmcrypt/kek"
)

// TestPreflightOfMany: which VMs run key managers is found out once, not for each VM, which
// would take half a minute for a thousand.
func TestPreflightOfMany(t *testing.T) {
	dir := t.TempDir()
	at := func(i int) string { return filepath.Join(dir, fmt.Sprintf("%d.vmx", i)) }
	h := &Host{KeyManagerVMs: map[string][]string{"in 999": {at(999), at(1001)}, "in 998": {at(998)}, "outside": {""}}}
	var flights []*flight
	for i := range 1000 {
		alias, answer := "in 999", []ServerVerification{{unwraps: true}, {}}
		switch i {
		case 998:
			alias = "outside"
		case 999:
			alias = "in 998"
		}
		disk := DiskVerification{Recipients: []RecipientVerification{{Alias: alias, Unwraps: true, Servers: answer}}}
		flights = append(flights, &flight{target: &Target{Descriptor: at(i)}, disks: []DiskVerification{disk}})
	}
	h.settle(flights)
	for i, f := range flights {
		if !f.vm.Unlocks {
			t.Fatalf("%d of %d: %+v", i, len(flights), f.vm)
		}
	}
	flights[998].vm.Unlocks, flights[998].vm.Problems = false, []string{"its disk is gone"}
	for _, f := range flights {
		f.vm.Unlocks = false
	}
	h.settle(flights)
	if vm := flights[0].vm; vm.Unlocks || len(vm.Problems) != 1 {
		t.Errorf("%+v", vm)
	}
}

// TestPreflightOfNestedDatastores: a VM is one, though two datastores have it.
func TestPreflightOfNestedDatastores(t *testing.T) {
	target, _ := encryptedTarget(t)
	folder := filepath.Dir(target.Descriptor)
	broken(t, filepath.Join(folder, "broken.vmx"))
	h := &Host{
		Datastores: []string{filepath.Dir(folder), folder},
		Cluster:    func(string) (*kek.Cluster, error) { return nil, ErrAlias },
	}
	p, err := h.Preflight(t.Context())
	if err != nil || len(p.VMs) != 2 || p.VMs[0].Unlocks || p.VMs[1].Unlocks {
		t.Errorf("%+v, %v", p, err)
	}
}
