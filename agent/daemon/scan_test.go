package daemon

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmcrypt/vmcrypt/agent"
	"github.com/vmcrypt/vmcrypt/agent/api"
	"github.com/vmcrypt/vmcrypt/vmx"
)

// broken makes descriptors that say nothing, which are listed with what is wrong with them.
func broken(t *testing.T, paths ...string) {
	t.Helper()
	for _, path := range paths {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func newListing() *listing {
	return &listing{found: map[string]api.VM{}, conversions: maxConversions, listed: maxListed}
}

// TestListingLimits: an answer does not become longer than clients take.
func TestListingLimits(t *testing.T) {
	datastore := t.TempDir()
	for i := range 20 {
		broken(t, filepath.Join(datastore, fmt.Sprintf("%d.vmx", i)))
	}
	l := newListing()
	l.listed = 2000
	err := agent.Scan(t.Context(), []string{datastore}, datastore, l.look)
	if !errors.Is(err, agent.ErrLimit) || len(l.found) == 0 || len(l.found) > 10 {
		t.Errorf("%d VMs, %v", len(l.found), err)
	}
}

// TestListingLimitsConversions: how far one has come takes several files to find out, and a
// descriptor can have many disks, of which others say that they are amid one.
func TestListingLimitsConversions(t *testing.T) {
	datastore := t.TempDir()
	for i := range 20 {
		amidConversion(t, filepath.Join(datastore, fmt.Sprintf("%d.vmx", i)), "scsi0:0", "scsi0:1")
	}
	l := newListing()
	l.conversions = 21
	err := agent.Scan(t.Context(), []string{datastore}, datastore, l.look)
	if !errors.Is(err, agent.ErrLimit) || len(l.found) != 10 {
		t.Errorf("%d VMs, %v", len(l.found), err)
	}
	for path, vm := range l.found {
		if len(vm.Disks) != 2 || vm.Disks[1].Conversion == nil {
			t.Errorf("%s: %+v", path, vm)
		}
	}
}

// amidConversion writes a descriptor with disks of which each is said to be amid one.
func amidConversion(t *testing.T, path string, nodes ...string) {
	t.Helper()
	text := ""
	for _, node := range nodes {
		text += node + ".fileName = \"disk.img\"\n"
		for key, value := range map[string]string{
			"version": "1", "state": "encrypting", "uuid": "11111111-1111-4111-8111-111111111111", "size": "1048576",
			"cipher": vmx.CipherXTS, "sectorSize": "512", "holes": "preserve", "mac": base64.StdEncoding.EncodeToString(make([]byte, 32)),
			"conversion.uuid": "22222222-2222-4222-8222-222222222222", "conversion.phase": vmx.PhaseConverting,
			"recipient0.alias": "a", "recipient0.kekID": "k", "recipient0.key": "AAAA",
		} {
			text += fmt.Sprintf("%s.vmcrypt.%s = %q\n", node, key, value)
		}
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestProblemIsClipped: a descriptor can't have the agent repeat it at length.
func TestProblemIsClipped(t *testing.T) {
	vm := brokenVM("/ds/vm.vmx", errors.New(strings.Repeat("x", 1<<20)))
	if len(vm.Problem) != maxProblem {
		t.Errorf("it has %d bytes", len(vm.Problem))
	}
}
