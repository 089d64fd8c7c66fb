package image

import (
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vmcrypt/vmcrypt/internal/testtool"
)

// snapshotVMDK is the descriptor of a snapshot as ESXi writes it.
const snapshotVMDK = `# Disk DescriptorFile
version=3
encoding="UTF-8"
CID=2d43a4a3
parentCID=e539795b
createType="vmfsSparse"
parentFileNameHint="base.vmdk"
# Extent description
RW 20480 VMFSSPARSE "base-000001-delta.vmdk"
`

func TestVMDKParent(t *testing.T) {
	dir := t.TempDir()
	for content, want := range map[string]string{
		"":           "",
		"base.vmdk":  "",
		"KDMV":       "",
		qemuVMDK:     "",
		snapshotVMDK: "base.vmdk",
		replaced(snapshotVMDK, "base.vmdk", "/vmfs/volumes/4a2b/vm/base.vmdk"): "base.vmdk",
		replaced(snapshotVMDK, "base.vmdk", `C:\Machines\Base.vmdk`):           "Base.vmdk",
		replaced(snapshotVMDK, "UTF-8", "windows-1252", "base", "Kl\xf6ster"):  "Klöster.vmdk",
		replaced(snapshotVMDK, `="base`, ` = "base`, "\n", "\r\n"):             "base.vmdk",
		"#" + snapshotVMDK: "",
		snapshotVMDK[:30] + strings.Repeat("#\n", 32<<10) + snapshotVMDK[30:]: "",
		sparse(21, 20):    "base.vmdk",
		sparse(1, 1<<60):  "base.vmdk",
		sparse(1<<60, 20): "",
		sparse(21, 0):     "",
	} {
		path := filepath.Join(dir, "x.vmdk")
		writeFile(t, path, content)
		if got, err := VMDKParent(path); err != nil || got != want {
			t.Errorf("%q, %v of %.300q, want %q", got, err, content, want)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := VMDKParent(filepath.Join(dir, "pipe")); got != "" || err != nil {
		t.Errorf("%q, %v of a pipe", got, err)
	}
	if _, err := VMDKParent(filepath.Join(dir, "none")); err == nil {
		t.Error("no error of a file that is not there")
	}
}

// sparse is a sparse disk with its descriptor in it. Where it says that it is, in
// sectors, may be wrong.
func sparse(offset, length uint64) string {
	at := int(min(offset, 100))
	b := make([]byte, 512*at+20*512)
	copy(b, "KDMV")
	binary.LittleEndian.PutUint64(b[28:], offset)
	binary.LittleEndian.PutUint64(b[36:], length)
	copy(b[512*at:], snapshotVMDK)
	return string(b)
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestVMDKParentQEMU(t *testing.T) {
	qemuImg := testtool.Need(t, "qemu-img")
	dir := t.TempDir()
	for _, args := range [][]string{
		{"-o", "subformat=monolithicFlat", "base.vmdk", "1M"},
		{"-b", "base.vmdk", "-F", "vmdk", "over.vmdk"},
	} {
		cmd := exec.CommandContext(t.Context(), qemuImg, append([]string{"create", "-f", "vmdk"}, args...)...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	for name, want := range map[string]string{"base.vmdk": "", "base-flat.vmdk": "", "over.vmdk": "base.vmdk"} {
		if got, err := VMDKParent(filepath.Join(dir, name)); err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", name, got, err, want)
		}
	}
}
