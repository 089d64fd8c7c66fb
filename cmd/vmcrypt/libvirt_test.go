package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmcrypt/vmcrypt/agent/api"
	"github.com/vmcrypt/vmcrypt/internal/testtool"
	"github.com/vmcrypt/vmcrypt/testimages"
)

// isolate is a script that runs a command with mounts and processes of its own.
const isolate = "../../scripts/isolate.sh"

// isolated runs a test again where it has mounts and processes of its own: what is left
// of them ends with it. It tells whether this is that run.
func isolated(t *testing.T) bool {
	t.Helper()
	const mark = "VMCRYPT_TEST_ISOLATED"
	if os.Getenv(mark) == t.Name() {
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("only root can mount something over the folders of libvirt")
	}
	if out, err := exec.Command(isolate, "true").CombinedOutput(); err != nil {
		t.Skipf("no mounts and processes of its own: %v: %s", err, out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*hang)
	defer cancel()
	cmd := exec.CommandContext(ctx, isolate, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), mark+"="+t.Name())
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Errorf("%v\n%s", err, out)
	}
	return false
}

// libvirtHost is a host with an agent and libvirt's daemon.
type libvirtHost struct {
	*host
	daemon *exec.Cmd
}

// startLibvirt installs the hook and starts libvirt's daemon, with empty folders of its own.
func startLibvirt(h *host) *libvirtHost {
	h.t.Helper()
	for _, dir := range []string{"/run", "/etc/libvirt", "/var/lib/libvirt", "/var/log/libvirt", "/var/cache/libvirt"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			h.t.Fatal(err)
		}
		if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil {
			h.t.Fatal(err)
		}
	}
	if _, err := os.Stat("/sys/devices"); err != nil { // as in a chroot
		if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
			h.t.Fatal(err)
		}
	}
	if err := os.MkdirAll("/etc/libvirt/hooks/qemu.d", 0o755); err != nil {
		h.t.Fatal(err)
	}
	knowUser(h.t, "/etc/passwd", "libvirt-qemu:x:64055:64055::/:/usr/sbin/nologin")
	knowUser(h.t, "/etc/group", "libvirt-qemu:x:64055:")
	write(h.t, "/etc/libvirt/libvirtd.conf", []byte("auth_unix_rw = \"none\"\nunix_sock_group = \"root\"\n"))
	write(h.t, "/etc/libvirt/qemu.conf", []byte(`security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
user = "root"
group = "root"
`))
	h.installHook("libvirt/hook", "/etc/libvirt/hooks/qemu.d/vmcrypt")
	l := &libvirtHost{host: h}
	l.startDaemon()
	return l
}

// knowUser adds to what this test sees of a file of users, if that lacks it: libvirt's daemon
// looks for its own, which only the package with its service makes, whatever its
// configuration says.
func knowUser(t *testing.T, path, line string) {
	t.Helper()
	text := read(t, path)
	name, _, _ := strings.Cut(line, ":")
	if bytes.Contains(append([]byte("\n"), text...), []byte("\n"+name+":")) {
		return
	}
	more := filepath.Join("/run", filepath.Base(path))
	write(t, more, append(text, line+"\n"...))
	if err := errors.Join(os.Chmod(more, 0o644), unix.Mount(more, path, "", unix.MS_BIND, "")); err != nil {
		t.Fatal(err)
	}
}

// installHook copies a script that calls vmcrypt, which is this test.
func (h *host) installHook(name, to string) {
	h.t.Helper()
	vmcrypt := filepath.Join(h.dir, "vmcrypt")
	script(h.t, vmcrypt, fmt.Appendf(nil, "#!/bin/sh\nexport %s=1 VMCRYPT_HOME=%s\nexec %s \"$@\"\n", actAsVMCrypt, h.home.dir, os.Args[0]))
	text := read(h.t, filepath.Join("../../packaging", name))
	if !bytes.Contains(text, []byte("/usr/bin/vmcrypt")) {
		h.t.Fatalf("%s does not name /usr/bin/vmcrypt", name)
	}
	script(h.t, to, bytes.ReplaceAll(text, []byte("/usr/bin/vmcrypt"), []byte(vmcrypt)))
}

func script(t *testing.T, path string, text []byte) {
	t.Helper()
	if err := os.WriteFile(path, text, 0o700); err != nil {
		t.Fatal(err)
	}
}

func (l *libvirtHost) startDaemon() {
	l.t.Helper()
	l.daemon = exec.Command(testtool.Need(l.t, "libvirtd"))
	l.daemon.Stderr = os.Stderr
	if err := l.daemon.Start(); err != nil {
		l.t.Fatal(err)
	}
	eventually(l.t, "libvirtd answers", func() bool { _, err := l.try("list"); return err == nil })
}

// killDaemon ends libvirt's daemon at once. Its guests go on.
func (l *libvirtHost) killDaemon() {
	l.t.Helper()
	if err := l.daemon.Process.Kill(); err != nil {
		l.t.Fatal(err)
	}
	_ = l.daemon.Wait() // it was killed
}

func (l *libvirtHost) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(l.t.Context(), 3*hang)
	defer cancel()
	out, err := exec.CommandContext(ctx, testtool.Need(l.t, "virsh"), append([]string{"-c", "qemu:///system"}, args...)...).CombinedOutput()
	return string(out), err
}

// virsh runs a command that must work.
func (l *libvirtHost) virsh(args ...string) string {
	l.t.Helper()
	out, err := l.try(args...)
	if err != nil {
		l.t.Fatalf("virsh %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// denied runs a command that must fail, and say all the words.
func (l *libvirtHost) denied(words []string, args ...string) {
	l.t.Helper()
	out, err := l.try(args...)
	if err == nil {
		l.t.Fatalf("virsh %s works", strings.Join(args, " "))
	}
	for _, word := range words {
		if !strings.Contains(out, word) {
			l.t.Errorf("virsh %s says nothing of %q:\n%s", strings.Join(args, " "), word, out)
		}
	}
}

// define makes a domain that has the given disk, if any, as its first.
func (l *libvirtHost) define(name, disk string) {
	l.t.Helper()
	if disk != "" {
		disk = fmt.Sprintf("<disk type='file' device='disk'><driver name='qemu' type='raw' cache='none'/>"+
			"<source file='%s'/><target dev='vda' bus='virtio'/></disk>", disk)
	}
	path := filepath.Join(l.t.TempDir(), name+".xml")
	write(l.t, path, fmt.Appendf(nil, `<domain type='qemu'><name>%s</name><memory unit='MiB'>32</memory>
<os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/><apic/></features>
<devices>%s<serial type='file'><source path='%s'/></serial><video><model type='none'/></video>
<memballoon model='none'/></devices></domain>`, name, disk, l.serial(name)))
	l.virsh("define", path)
}

// serial is what a domain's serial port writes to.
func (l *libvirtHost) serial(name string) string { return filepath.Join(l.dir, name+".serial") }

// convert has a domain use a VM's encrypted disks.
func (l *libvirtHost) convert(name, descriptor string, flags ...string) {
	l.t.Helper()
	before := filepath.Join(l.t.TempDir(), "before.xml")
	write(l.t, before, []byte(l.virsh("dumpxml", "--inactive", "--security-info", name)))
	after := before + ".after"
	write(l.t, after, []byte(l.ok(append([]string{"libvirt-xml", descriptor, "--domain", before}, flags...)...)))
	l.virsh("define", after, "--validate")
	again := l.virsh("dumpxml", "--inactive", "--security-info", name)
	write(l.t, after, []byte(again))
	if text := l.ok(append([]string{"libvirt-xml", descriptor, "--domain", after}, flags...)...); text != again {
		l.t.Errorf("what libvirt made of it is changed once more, from\n%s\nto\n%s", again, text)
	}
}

// bootVM encrypts a VM that boots, with a second disk.
func (h *host) bootVM(name string) (descriptor string) {
	h.t.Helper()
	plain := h.t.TempDir()
	if err := testimages.Boot(filepath.Join(plain, "disk0.img"), 1); err != nil {
		h.t.Fatal(err)
	}
	smallImage(h.t, filepath.Join(plain, "disk1.img"))
	write(h.t, filepath.Join(plain, name+".vmx"), fmt.Appendf(nil,
		"displayName = %q\nscsi0:0.fileName = \"disk0.img\"\nscsi0:1.fileName = \"disk1.img\"\n", name))
	h.ok("encrypt", filepath.Join(plain, name+".vmx"), "--output", h.at(name))
	return h.at(name, name+".vmx")
}

// TestLibvirt is the life of a domain with encrypted disks under libvirt's own daemon.
func TestLibvirt(t *testing.T) {
	testtool.Long(t)
	for _, tool := range []string{"libvirtd", "virsh", "qemu-system-x86_64"} {
		testtool.Need(t, tool)
	}
	if !isolated(t) {
		return
	}
	h, kms := startHostWithKMS(t)
	web01 := h.bootVM("web01")
	l := startLibvirt(h)
	defer l.killDaemon()
	l.define("web01", h.at("web01/disk0.img"))
	l.convert("web01", web01, "--disk", "scsi0:0")

	l.boot()
	l.destroy()
	l.secondDomain(web01)
	l.foreignDomain()
	l.hotplug(web01)
	l.killQEMU()
	l.restart()
	l.saved(kms)
	l.withoutAgent()
	l.wrongMetadata()
	h.untouched()
}

// boot has the guest boot from its encrypted disk and turn itself off.
func (l *libvirtHost) boot() {
	l.t.Helper()
	l.virsh("start", "web01")
	l.hasBooted()
}

// destroy turns a guest off from outside.
func (l *libvirtHost) destroy() {
	l.t.Helper()
	vm := l.startPaused()
	if owner := "libvirt:" + strings.TrimSpace(l.virsh("domuuid", "web01")); vm.Owner != owner {
		l.t.Errorf("the VM is unlocked for %q, want %q", vm.Owner, owner)
	}
	l.virsh("destroy", "web01")
	l.isLocked()
}

// startPaused starts a guest that does nothing yet.
func (l *libvirtHost) startPaused() api.VM {
	l.t.Helper()
	l.virsh("start", "--paused", "web01")
	return l.isServed()
}

// isServed checks that the guest has its disk.
func (l *libvirtHost) isServed() api.VM {
	l.t.Helper()
	vm := l.named("web01")
	if vm.State != api.Unlocked || vm.Disks[0].Connections == 0 {
		l.t.Fatalf("the VM is %+v", vm)
	}
	return vm
}

// resume has a paused guest go on: it boots.
func (l *libvirtHost) resume() {
	l.t.Helper()
	l.virsh("resume", "web01")
	l.hasBooted()
}

func (l *libvirtHost) hasBooted() {
	l.t.Helper()
	l.isLocked()
	if said := string(read(l.t, l.serial("web01"))); said != testimages.Banner+testimages.Written {
		l.t.Errorf("the guest said %q", said)
	}
}

// isLocked waits until the guest has ended, and its VM is locked.
func (l *libvirtHost) isLocked() {
	l.t.Helper()
	eventually(l.t, "the guest has ended", func() bool { return l.state() == "shut off" })
	eventually(l.t, "the VM is locked", func() bool { return l.named("web01").State == api.Locked })
}

func (l *libvirtHost) state() string {
	l.t.Helper()
	return strings.TrimSpace(l.virsh("domstate", "web01"))
}

// restart kills libvirt's daemon while a guest runs, which goes on.
func (l *libvirtHost) restart() {
	l.t.Helper()
	before := l.startPaused()
	l.killDaemon()
	l.startDaemon()
	eventually(l.t, "libvirt knows the guest again", func() bool { return l.state() == "paused" })
	if now := l.isServed(); *now.PID != *before.PID {
		l.t.Errorf("then the VM is %+v", now)
	}
	l.resume()
}

// killQEMU ends a guest as the kernel does when memory is short.
func (l *libvirtHost) killQEMU() {
	l.t.Helper()
	l.startPaused()
	text := strings.TrimSpace(string(read(l.t, "/run/libvirt/qemu/web01.pid")))
	pid, err := strconv.Atoi(text)
	if err != nil {
		l.t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		l.t.Fatal(err)
	}
	l.isLocked()
}

// secondDomain: what a domain has unlocked, another one neither gets nor takes away.
func (l *libvirtHost) secondDomain(descriptor string) {
	l.t.Helper()
	l.define("web02", l.at("web01/disk0.img"))
	l.convert("web02", descriptor, "--disk", "scsi0:0")
	before := l.startPaused()
	l.denied([]string{"unlocked for another", before.Owner}, "start", "web02")
	if now := l.isServed(); *now.PID != *before.PID {
		l.t.Errorf("then the VM is %+v", now)
	}
	l.resume()
	l.virsh("undefine", "web02")
}

// foreignDomain: one that is none of ours starts and ends without the agent.
func (l *libvirtHost) foreignDomain() {
	l.t.Helper()
	l.define("other", "")
	before := len(l.audit())
	l.stopAgent(syscall.SIGTERM)
	l.virsh("start", "other")
	l.virsh("destroy", "other")
	l.startAgent()
	if n := len(l.audit()); n != before {
		l.t.Errorf("the audit log has %d entries more", n-before)
	}
}

// hotplug: all disks of a VM are served, and can be attached to its guest.
func (l *libvirtHost) hotplug(descriptor string) {
	l.t.Helper()
	disk := filepath.Join(l.t.TempDir(), "disk.xml")
	write(l.t, disk, []byte(l.ok("libvirt-xml", descriptor, "--disk", "scsi0:1", "--target", "scsi0:1=vdb")))
	l.startPaused()
	l.virsh("attach-device", "web01", disk, "--live")
	if vm := l.named("web01"); vm.Disks[1].Node != "scsi0:1" || vm.Disks[1].Connections == 0 {
		l.t.Errorf("the disk is %+v", vm.Disks[1])
	}
	l.resume()
}

// saved: a guest's memory is kept while its disks are locked, even if they can't be
// unlocked for a while.
func (l *libvirtHost) saved(kms *keyManager) {
	l.t.Helper()
	l.startPaused()
	l.virsh("managedsave", "web01")
	l.isLocked()
	kms.down()
	l.denied([]string{"Hook script execution failed", "the guest does not start", kms.address, "kms status"}, "start", "web01")
	l.isLocked()
	kms.up()
	l.virsh("start", "web01")
	l.isServed()
	if state := l.state(); state != "paused" {
		l.t.Errorf("restored, the guest is %s", state)
	}
	l.resume()
}

// withoutAgent: who starts the guest is told what is missing.
func (l *libvirtHost) withoutAgent() {
	l.t.Helper()
	l.stopAgent(syscall.SIGTERM)
	l.denied([]string{"no agent answers", "systemctl start vmcrypt-agent"}, "start", "web01")
	l.startAgent()
}

// wrongMetadata: what names no descriptor keeps the guest from starting.
func (l *libvirtHost) wrongMetadata() {
	l.t.Helper()
	l.virsh("metadata", "web01", "--config", "urn:vmcrypt:libvirt:1", "--key", "vmcrypt", "--set", "<vm descriptor='web01.vmx'/>")
	l.denied([]string{"not one from the root", "libvirt-xml"}, "start", "web01")
}
