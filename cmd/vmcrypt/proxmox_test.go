package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmcrypt/vmcrypt/agent/api"
	"github.com/vmcrypt/vmcrypt/internal/testtool"
	"github.com/vmcrypt/vmcrypt/testimages"
)

// conf writes the configuration of a VM as Proxmox VE does, and calls the hookscript.
func (h *host) hookscript(conf, phase string) result {
	h.t.Helper()
	path := filepath.Join(h.dir, "hookscript")
	h.installHook("proxmox/vmcrypt-hookscript", path)
	file := filepath.Join(h.dir, "100.conf")
	write(h.t, file, []byte(conf))
	ctx, cancel := context.WithTimeout(h.t.Context(), 3*hang)
	defer cancel()
	// Proxmox VE itself gives no flag: its configuration is where the default is.
	return h.finish(exec.CommandContext(ctx, path, "100", phase, "--conf", file))
}

// TestProxmoxHook: the phases of a VM unlock and lock the disks that its notes name.
func TestProxmoxHook(t *testing.T) {
	t.Parallel()
	h := startHost(t)
	target := h.vm("web01", "scsi0:0")
	conf := "#Web server%3A see the wiki\n#vmcrypt%3A " + target + " \n#100%25 ours\nargs: -blockdev x\nmemory: 512\n\n" +
		"[PENDING]\nmemory: 1024\n\n[before]\n#vmcrypt%3A /elsewhere/old.vmx\nmemory: 256\n"
	for _, phase := range []string{"post-start", "pre-stop"} {
		if r := h.hookscript(conf, phase); r != (result{}) {
			t.Errorf("%s: %+v", phase, r)
		}
	}
	h.untouched()
	for range 2 { // a start that failed later has no post-stop
		if r := h.hookscript(conf, "pre-start"); r != (result{}) {
			t.Fatalf("pre-start: %+v", r)
		}
	}
	if vm := h.named("web01"); vm.State != api.Unlocked || vm.Owner != "proxmox:100" {
		t.Errorf("started, the VM is %+v", vm)
	}
	if r := h.hookscript(conf, "post-stop"); r != (result{}) {
		t.Errorf("post-stop: %+v", r)
	}
	h.untouched()
}

// TestProxmoxHookDenies: the VM does not start, and its task's log says why.
func TestProxmoxHookDenies(t *testing.T) {
	t.Parallel()
	h := startHost(t)
	target := h.vm("web01", "scsi0:0")
	h.unlock(target, "--owner", "proxmox:101")
	line := "#vmcrypt%3A " + target + "\n"
	for conf, words := range map[string][]string{
		line:                        {"unlocked for another", "proxmox:101"},
		line + line:                 {"one line", "has 2"},
		"memory: 512\n":             {"one line", "100.conf has 0"},
		"memory: 512\n[a]\n" + line: {"has 0"},
		"#vmcrypt%3A web01.vmx\n":   {"not one from the root"},
		"#vmcrypt%3A /a%0Ab.vmx":    {"control characters"},
		"#vmcrypt:/other/b.vmx":     {"not in a datastore"},
	} {
		r := h.hookscript(conf, "pre-start")
		if r.code == 0 || r.stdout != "" || strings.ContainsAny(r.stderr, "\r\x1b") {
			t.Errorf("%q: %+v", conf, r)
		}
		for _, word := range append(words, "the guest does not start") {
			if !strings.Contains(r.stderr, word) {
				t.Errorf("%q: nothing of %q in\n%s", conf, word, r.stderr)
			}
		}
		// Notes can be changed while the VM runs.
		if r := h.hookscript(conf, "post-stop"); r.code != 0 || !strings.Contains(r.stderr, "was not locked") {
			t.Errorf("%q at its end: %+v", conf, r)
		}
	}
	if vm := h.named("web01"); vm.State != api.Unlocked {
		t.Errorf("then the VM is %+v", vm)
	}
	h.fails(exitUsage, []string{"VMID"}, "proxmox-hook", "../etc", "pre-start")
}

// TestProxmoxArgs: with the line that is printed, QEMU boots from the encrypted disk.
func TestProxmoxArgs(t *testing.T) {
	testtool.Need(t, "qemu-system-x86_64")
	t.Parallel()
	h := startHost(t)
	descriptor := h.bootVM("web01")
	line := strings.TrimSpace(h.ok("proxmox-args", descriptor))
	args, ok := strings.CutPrefix(line, "args: ")
	if !ok || strings.Contains(line, "\n") || strings.Count(line, "-blockdev") != 2 {
		t.Fatalf("the line is %q", line)
	}
	if got := parseJSON[struct{ Args string }](t, h.ok("proxmox-args", descriptor, "--json")); got.Args != args {
		t.Errorf("as JSON: %q", got.Args)
	}
	// Proxmox VE splits the line as a shell does.
	words := strings.Split(string(execute(t, exec.Command("sh", "-c", `printf '%s\0' `+args))), "\x00")
	conf := fmt.Sprintf("#vmcrypt%%3A %s\nargs: %s\n", descriptor, args)
	if r := h.hookscript(conf, "pre-start"); r != (result{}) {
		t.Fatalf("pre-start: %+v", r)
	}
	if said := boot(t, words[:len(words)-1]...).off(); said != testimages.Banner+testimages.Written {
		t.Errorf("the machine said %q", said)
	}
	if r := h.hookscript(conf, "post-stop"); r != (result{}) {
		t.Fatalf("post-stop: %+v", r)
	}
	h.untouched()
}
