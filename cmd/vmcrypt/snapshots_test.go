package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/vmcrypt/vmcrypt/agent"
)

// flatVMDK makes a flat VMDK with its extent, and gives its path.
func flatVMDK(t *testing.T, dir, name string) string {
	t.Helper()
	smallImage(t, filepath.Join(dir, name+"-flat.vmdk"))
	path := filepath.Join(dir, name+".vmdk")
	write(t, path, vmdkText(name+"-flat.vmdk", "ffffffff", ""))
	return path
}

func vmdkText(extent, parentCID, hint string) []byte {
	return fmt.Appendf(nil, `# Disk DescriptorFile
version=1
CID=e539795b
parentCID=%s
createType="monolithicFlat"
%s
RW 128 FLAT "%s" 0
`, parentCID, hint, extent)
}

// TestInPlaceSnapshots: a disk that snapshots lie on is not converted under them,
// though a conversion that was begun goes on.
func TestInPlaceSnapshots(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	disk := flatVMDK(t, dir, "w")
	before := sum(t, at("w-flat.vmdk"))
	write(t, at("vm.vmx"), []byte("scsi0:0.fileName = \"w.vmdk\"\n"))
	write(t, at("other.vmdk"), vmdkText("other-flat.vmdk", "ffffffff", ""))
	if err := os.Symlink("nowhere", at("gone.vmdk")); err != nil {
		t.Fatal(err)
	}
	refused := func(words []string, targets ...string) {
		t.Helper()
		for _, target := range targets {
			h.fails(exitFailure, append(words, "--output"), "encrypt", target)
		}
	}

	child := at("w-000001.vmdk")
	haveChild := func() {
		write(t, child, vmdkText("w-000001-flat.vmdk", "e539795b", `parentFileNameHint="/vmfs/volumes/x/W.vmdk"`))
	}
	haveChild()
	refused([]string{child, "snapshot of"}, disk, at("vm.vmx"), at("w-flat.vmdk"))
	remove(t, child)
	write(t, at("vm.vmsd"), []byte("snapshot.numSnapshots = \"1\"\n"))
	refused([]string{"vm.vmsd", "1 snapshots"}, at("vm.vmx"))
	remove(t, at("vm.vmsd"))
	if err := os.Mkdir(at("vm.vmsd"), 0o700); err != nil {
		t.Fatal(err)
	}
	refused([]string{"vm.vmsd", "can't be read"}, at("vm.vmx"))
	remove(t, at("vm.vmsd"))
	if sum(t, at("w-flat.vmdk")) != before {
		t.Fatal("the disk was changed")
	}
	for _, list := range []string{"", ".encoding = \"UTF-8\"\nsnapshot.numSnapshots = \"0\"\n"} {
		write(t, at("vm.vmsd"), []byte(list))
		h.ok("encrypt", at("vm.vmx"))
		h.ok("decrypt", at("vm.vmx"))
	}
	h.interrupted(agent.StateEncrypting, "encrypt", disk)
	haveChild()
	h.ok("encrypt", disk, "--abort")
	if sum(t, at("w-flat.vmdk")) != before {
		t.Error("the disk did not come back")
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}
