package daemon

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

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

func newScan(datastore string) *scan {
	return &scan{
		datastores: []string{datastore}, found: map[string]api.VM{},
		files: maxFiles, descriptors: maxDescriptors, text: maxText, conversions: maxConversions, listed: maxListed,
	}
}

// TestScanReadsLargeFolders: it finds all that is in them, though it reads them in parts.
func TestScanReadsLargeFolders(t *testing.T) {
	datastore := t.TempDir()
	const n = 2*readAtOnce + 1
	for i := range n {
		broken(t, filepath.Join(datastore, fmt.Sprintf("%d.vmx", i)), filepath.Join(datastore, fmt.Sprint(i), "vm.VMX"))
	}
	s := newScan(datastore)
	if err := s.datastore(t.Context(), datastore); err != nil || len(s.found) != 2*n {
		t.Errorf("%d of %d VMs, %v", len(s.found), 2*n, err)
	}
}

// TestScanLimits: a scan ends at each of its limits, and says that it did.
func TestScanLimits(t *testing.T) {
	datastore := t.TempDir()
	for i := range 20 {
		broken(t, filepath.Join(datastore, fmt.Sprintf("%d.vmx", i)))
	}
	for name, limit := range map[string]func(*scan){
		"files":       func(s *scan) { s.files = 10 },
		"descriptors": func(s *scan) { s.descriptors = 10 },
		"text":        func(s *scan) { s.text = 10 },
		"listed":      func(s *scan) { s.listed = 2000 },
	} {
		s := newScan(datastore)
		limit(s)
		err := s.datastore(t.Context(), datastore)
		if !errors.Is(err, errLimit) || len(s.found) == 0 || len(s.found) > 10 {
			t.Errorf("%s: %d VMs, %v", name, len(s.found), err)
		}
	}
}

// TestScanLimitsConversions: how far one has come takes several files to find out, and a
// descriptor can have many disks, of which others say that they are amid one.
func TestScanLimitsConversions(t *testing.T) {
	datastore := t.TempDir()
	for i := range 20 {
		amidConversion(t, filepath.Join(datastore, fmt.Sprintf("%d.vmx", i)), "scsi0:0", "scsi0:1")
	}
	s := newScan(datastore)
	s.conversions = 21
	err := s.datastore(t.Context(), datastore)
	if !errors.Is(err, errLimit) || len(s.found) != 10 {
		t.Errorf("%d VMs, %v", len(s.found), err)
	}
	for path, vm := range s.found {
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

// TestScanDepth: what lies too deep is left out, and nothing else.
func TestScanDepth(t *testing.T) {
	datastore := t.TempDir()
	deep := func(depth int) string {
		return filepath.Join(datastore, strings.Repeat("x/", depth), "vm.vmx")
	}
	broken(t, deep(maxDepth), deep(maxDepth+1), deep(maxDepth+2), filepath.Join(datastore, "y/vm.vmx"))
	s := newScan(datastore)
	err := s.datastore(t.Context(), datastore)
	if !errors.Is(err, errLimit) || len(s.found) != 2 || s.found[deep(maxDepth)].Name != "vm.vmx" {
		t.Errorf("found are %v, %v", s.found, err)
	}
}

// TestScanFollowsNoLinks: neither those that it finds, nor those that take a folder's place.
func TestScanFollowsNoLinks(t *testing.T) {
	datastore, outside := t.TempDir(), t.TempDir()
	broken(t, filepath.Join(outside, "vm.vmx"), filepath.Join(outside, "folder/vm.vmx"))
	for name, to := range map[string]string{"folder": outside, "loop": ".", "vm.vmx": filepath.Join(outside, "vm.vmx")} {
		if err := os.Symlink(to, filepath.Join(datastore, name)); err != nil {
			t.Fatal(err)
		}
	}
	s := newScan(datastore)
	if err := s.datastore(t.Context(), datastore); err != nil || len(s.found) != 0 {
		t.Errorf("found are %v, %v", s.found, err)
	}
	parent, err := os.Open(datastore)
	if err != nil {
		t.Fatal(err)
	}
	defer parent.Close()
	if folder, err := openFolder(parent, "folder"); err == nil {
		folder.Close()
		t.Error("a link is opened as a folder")
	}
}

// TestScanIsCancelled: it ends with its context.
func TestScanIsCancelled(t *testing.T) {
	datastore := t.TempDir()
	broken(t, filepath.Join(datastore, "vm.vmx"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s := newScan(datastore)
	if err := s.datastore(ctx, datastore); !errors.Is(err, context.Canceled) || len(s.found) != 0 {
		t.Errorf("found are %v, %v", s.found, err)
	}
}

// TestProblemIsClipped: a descriptor can't have the agent repeat it at length.
func TestProblemIsClipped(t *testing.T) {
	vm := brokenVM("/ds/vm.vmx", errors.New(strings.Repeat("x", 1<<20)))
	if len(vm.Problem) != maxProblem {
		t.Errorf("it has %d bytes", len(vm.Problem))
	}
}
