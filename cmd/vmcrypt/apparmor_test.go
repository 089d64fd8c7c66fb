package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmcrypt/vmcrypt/internal/testtool"
)

// TestAppArmor: the rules for QEMU can be compiled where libvirt's profiles include them.
func TestAppArmor(t *testing.T) {
	parser := testtool.Need(t, "apparmor_parser")
	base := t.TempDir()
	if err := os.CopyFS(base, os.DirFS("/etc/apparmor.d")); err != nil {
		t.Fatal(err)
	}
	snippets := filepath.Join(base, "abstractions/libvirt-qemu.d")
	local := filepath.Join(base, "local/abstractions")
	for _, dir := range []string{snippets, local} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	const include = "include if exists <abstractions/libvirt-qemu.d>\n"
	write(t, filepath.Join(snippets, "vmcrypt"), read(t, "../../packaging/apparmor/libvirt-qemu.d"))
	write(t, filepath.Join(local, "libvirt-qemu"), []byte(include)) // as docs/libvirt.md says for Debian 12
	profile := include
	if _, err := os.Stat("/etc/apparmor.d/abstractions/libvirt-qemu"); err == nil {
		profile = "include <abstractions/libvirt-qemu>\n"
	}
	file := filepath.Join(base, "test")
	write(t, file, []byte("abi <abi/3.0>,\ninclude <tunables/global>\nprofile libvirt-test flags=(attach_disconnected) {\n"+profile+"}\n"))
	compiled := execute(t, exec.Command(parser, "--base", base, "--skip-kernel-load", "--skip-cache", "--debug", file))
	if !strings.Contains(string(compiled), "run/vmcrypt/vms/*/*:*.sock)") {
		t.Error("the rule is not in what was compiled")
	}
}
