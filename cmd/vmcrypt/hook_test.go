package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmcrypt/vmcrypt/agent/api"
	"github.com/vmcrypt/vmcrypt/image"
)

const domainID = "0d3b3b64-5f2c-4f6e-9c55-1f6b7a3c9d11"

// domainXML is a domain with some metadata.
func domainXMLWith(metadata string) string {
	return "<domain type='kvm'><name>web01</name><uuid>" + domainID + "</uuid><metadata>" + metadata + "</metadata></domain>\n"
}

func domainOf(descriptor string) string {
	return domainXMLWith(`<v:vm xmlns:v="urn:vmcrypt:libvirt:1" descriptor="` + descriptor + `"/>`)
}

// hook calls the installed hook as libvirt does. It must print nothing on standard
// output, which libvirt may take for a domain's XML.
func (h *host) hook(xml string, args ...string) result {
	h.t.Helper()
	path := filepath.Join(h.dir, "hook")
	h.installHook("libvirt/hook", path)
	ctx, cancel := context.WithTimeout(h.t.Context(), 3*hang)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdin = strings.NewReader(xml)
	r := h.finish(cmd)
	if r.stdout != "" {
		h.t.Errorf("the hook prints %q", r.stdout)
	}
	return r
}

// passes calls the hook, which must let libvirt go on.
func (h *host) passes(xml string, args ...string) {
	h.t.Helper()
	if r := h.hook(xml, args...); r.code != 0 {
		h.t.Fatalf("the hook at %q: exit code %d\n%s", args, r.code, r.stderr)
	}
}

// TestLibvirtHook: what libvirt says when a domain starts and ends unlocks and locks.
func TestLibvirtHook(t *testing.T) {
	t.Parallel()
	h := startHost(t)
	target := h.vm("web01", "scsi0:0")
	xml := domainOf(target)
	for _, operation := range []string{"start begin", "started begin", "restore begin", "migrate begin", "reconnect begin", "attach begin", "prepare end", "release begin"} {
		h.passes(xml, append([]string{"web01"}, append(strings.Fields(operation), "-")...)...)
	}
	h.untouched()
	h.passes(xml, "--help", "prepare", "begin", "-") // a domain's name
	if vm := h.named("web01"); vm.State != api.Unlocked || vm.Owner != "libvirt:"+domainID {
		t.Errorf("prepared, the VM is %+v", vm)
	}
	stop := connected(t, h.named("web01").Disks[0].URI)
	h.passes(xml, "web01", "reconnect", "begin", "-")
	h.passes(xml, "web01", "stopped", "end", "shutdown")
	if vm := h.named("web01"); vm.State != api.Unlocked || vm.Disks[0].Connections == 0 {
		t.Errorf("stopped, the VM is %+v", vm)
	}
	h.passes(xml, "web01", "release", "end", "crashed") // QEMU may be slow to go
	h.untouched()
	stop()
}

// TestLibvirtHookDenies: the domain does not start, and who started it is told why.
func TestLibvirtHookDenies(t *testing.T) {
	t.Parallel()
	h := startHost(t)
	target := h.vm("web01", "scsi0:0")
	const ns = `xmlns:v="urn:vmcrypt:libvirt:1"`
	for xml, words := range map[string][]string{
		domainOf("web01.vmx"):                {"not one from the root", "libvirt-xml"},
		domainOf(h.at() + "/x/../web01.vmx"): {"without detours"},
		domainOf("/a&#10;b.vmx"):             {"control characters"},
		domainOf(h.at("disk.img")):           {"ends in .vmx"},
		domainOf(h.at("other.vmx")):          {"unknown VM", "other.vmx", "vmcrypt list"},
		domainOf("/etc/other.vmx"):           {"not in a datastore"},
		domainXMLWith("<v:vm " + ns + "/>"):  {"names no descriptor"},
		domainXMLWith(strings.Repeat("<v:vm "+ns+" descriptor='"+target+"'/>", 2)): {"2 elements"},
		strings.Replace(domainOf(target), domainID, "", 1):                         {"uuid"},
		strings.Replace(domainOf(target), "</domain>", "", 1):                      {"not the XML"},
		"<network " + ns + "/>": {"network"},
	} {
		r := h.hook(xml, "web01", "prepare", "begin", "-")
		if r.code == 0 || strings.Count(r.stderr, "\n") > 2 || strings.ContainsAny(r.stderr, "\r\x1b") {
			t.Errorf("%s: exit code %d\n%s", xml, r.code, r.stderr)
		}
		for _, word := range append(words, "the guest does not start") {
			if !strings.Contains(r.stderr, word) {
				t.Errorf("%s: nothing of %q in\n%s", xml, word, r.stderr)
			}
		}
		h.passes(xml, "web01", "release", "end", "failed")
	}
	h.untouched()
}

// TestHookOfCopiedGuest: a guest that was copied, and then given a VM of its own in name
// only, does not get the disks of the first one.
func TestHookOfCopiedGuest(t *testing.T) {
	t.Parallel()
	h := startHost(t)
	first, second := h.vm("web01", "scsi0:0"), h.vm("web02", "scsi0:0")
	domain := h.ok("libvirt-xml", first)
	element, disks, _ := strings.Cut(domain, "\n")
	xml := func(metadata string) string {
		return strings.Replace(domainXMLWith(metadata), "</domain>", "<devices>"+disks+"</devices></domain>", 1)
	}
	h.passes(xml(element), "web01", "prepare", "begin", "-")
	conf := fmt.Sprintf("#vmcrypt%%3A %s\n%s", second, h.ok("proxmox-args", first))
	for name, r := range map[string]result{
		"libvirt":    h.hook(xml(strings.ReplaceAll(element, first, second)), "web02", "prepare", "begin", "-"),
		"Proxmox VE": h.hookscript(conf, "pre-start"),
	} {
		if r.code == 0 || !strings.Contains(r.stderr, "disk of another VM") || !strings.Contains(r.stderr, second) {
			t.Errorf("%s: %+v", name, r)
		}
	}
	if vm := h.named("web02"); vm.State != api.Locked {
		t.Errorf("then it is %+v", vm)
	}
	h.passes(xml(element), "web01", "release", "end", "-")
	h.untouched()
}

// TestLibvirtHookInUse: as at the destination of a migration, where another host has
// the disk, nothing is taken from it.
func TestLibvirtHookInUse(t *testing.T) {
	t.Parallel()
	h := startHost(t)
	target := h.vm("web01", "scsi0:0")
	disk, err := image.Open(h.at("web01/disk0.img"), image.Raw, image.ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	if r := h.hook(domainOf(target), "web01", "prepare", "begin", "-"); r.code != exitInUse || !strings.Contains(r.stderr, "disk0.img") {
		t.Errorf("%+v", r)
	}
	h.passes(domainOf(target), "web01", "release", "end", "failed")
	disk.Close()
	h.untouched()
}

// TestLibvirtHookAlone: without an agent no domain of ours starts, and without the
// program none is touched.
func TestLibvirtHookAlone(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	xml := domainOf(h.vm("web01", "scsi0:0"))
	if r := h.hook(xml, "web01", "prepare", "begin", "-"); r.code == 0 || !strings.Contains(r.stderr, "systemctl start vmcrypt-agent") {
		t.Errorf("without an agent: %+v", r)
	}
	h.passes(xml, "web01", "release", "end", "-")
	path := filepath.Join(h.dir, "alone")
	h.installHook("libvirt/hook", path)
	if err := os.Remove(filepath.Join(h.dir, "vmcrypt")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "web01", "prepare", "begin", "-")
	cmd.Stdin = strings.NewReader(xml)
	if r := h.finish(cmd); r != (result{}) {
		t.Errorf("without the program: %+v", r)
	}
}

// TestReleaseReports: a release that fails lets libvirt go on, and says so.
func TestReleaseReports(t *testing.T) {
	t.Parallel()
	h := startHost(t)
	target := h.vm("web01", "scsi0:0")
	h.unlock(target, "--owner", "libvirt:another")
	r := h.hook(domainOf(target), "web01", "release", "end", "-")
	if r.code != 0 || !strings.Contains(r.stderr, "was not locked") || !strings.Contains(r.stderr, "libvirt:another") {
		t.Errorf("%+v", r)
	}
	if vm := h.named("web01"); vm.State != api.Unlocked {
		t.Errorf("then the VM is %+v", vm)
	}
}

// foreignDomain is the XML of one that has nothing of vmcrypt, as large as they are.
func foreignDomain(t *testing.T) string {
	text := string(read(t, "../../internal/libvirtxml/testdata/virtinstall.xml"))
	return strings.Replace(text, "</devices>", strings.Repeat("<!-- as many devices as others have -->\n", 200)+"</devices>", 1)
}

// TestHookCost: a domain that is none of ours costs less than 20 ms of CPU, in the
// script and in the program.
func TestHookCost(t *testing.T) {
	h := newHome(t)
	xml := foreignDomain(t)
	for name, command := range map[string]func() *exec.Cmd{
		"script": func() *exec.Cmd {
			return exec.Command("../../packaging/libvirt/hook", "other", "prepare", "begin", "-")
		},
		"program": func() *exec.Cmd {
			return h.command(t.Context(), "libvirt-hook", "other", "prepare", "begin", "-")
		},
	} {
		least := time.Hour
		for range 15 {
			cmd := command()
			cmd.Stdin = strings.NewReader(xml)
			if r := h.finish(cmd); r != (result{}) {
				t.Fatalf("%s: %+v", name, r)
			}
			least = min(least, cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime())
		}
		t.Logf("%s: %v of CPU", name, least)
		if least > 20*time.Millisecond {
			t.Errorf("%s: %v of CPU", name, least)
		}
	}
}

// TestHookEnds: while the agent hangs, who asked for the start can end it.
func TestHookEnds(t *testing.T) {
	h := newHost(t)
	if err := os.Mkdir(filepath.Dir(h.socket()), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", h.socket())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cmd := h.command(t.Context(), "libvirt-hook", "web01", "prepare", "begin", "-")
	cmd.Stdin = strings.NewReader(domainOf("/vms/web01.vmx"))
	time.AfterFunc(time.Second, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
	if r := h.finish(cmd); r.code == 0 || r.stderr == "" {
		t.Errorf("%+v", r)
	}
}

// TestLibvirtXML: what is printed leads to where the agent serves the disks.
func TestLibvirtXML(t *testing.T) {
	t.Parallel()
	h := startHost(t)
	target := h.vm("web01", "scsi0:0", "nvme0:1")
	vm := h.unlock(target)
	out := h.ok("libvirt-xml", target, "--libvirt", "10.0.0")
	for _, d := range vm.Disks {
		_, socket, _ := strings.Cut(d.URI, "socket=")
		if want := fmt.Sprintf("<source protocol='nbd' name='%s'>\n    <host transport='unix' socket='%s'/>\n    <reconnect delay='300'/>", d.Node, socket); !strings.Contains(out, want) {
			t.Errorf("no %s in\n%s", want, out)
		}
	}
	if strings.Contains(h.ok("libvirt-xml", target, "--libvirt", "9.0.0"), "reconnect") {
		t.Error("libvirt 9.0 is told what it does not know")
	}
	if one := h.ok("libvirt-xml", target, "--disk", "nvme0:1", "--target", "nvme0:1=vdx"); strings.Count(one, "<disk ") != 1 || !strings.HasPrefix(one, "<disk ") || !strings.Contains(one, "dev='vdx'") {
		t.Errorf("one disk:\n%s", one)
	}
	if got := parseJSON[struct{ XML string }](t, h.ok("libvirt-xml", target, "--json", "--libvirt", "10.0.0")); got.XML != out {
		t.Errorf("as JSON: %q", got.XML)
	}
	h.lock(target)

	domain := filepath.Join(h.dir, "domain.xml")
	plain := fmt.Sprintf("<domain>\n  <devices>\n    <disk type='file'>\n      <driver name='qemu' type='raw' discard='unmap'/>\n      <source file='%s'/>\n      <target dev='vda'/>\n    </disk>\n  </devices>\n</domain>\n", h.at("web01/disk0.img"))
	write(t, domain, []byte(plain))
	h.fails(exitUsage, []string{"nvme0:1", "disk0.img", "--target"}, "libvirt-xml", target, "--domain", domain, "--disk", "nvme0:1")
	served := h.ok("libvirt-xml", target, "--domain", domain, "--target", "nvme0:1=vdb")
	if strings.Count(served, "protocol='nbd'") != 2 || !strings.Contains(served, `descriptor="`+target+`"`) {
		t.Errorf("the domain becomes\n%s", served)
	}
	write(t, domain, []byte(served))
	h.fails(exitFailure, []string{"still encrypted"}, "libvirt-xml", target, "--domain", domain, "--remove")
	h.ok("decrypt", target)
	back := h.command(t.Context(), "libvirt-xml", "--domain", "-", target, "--remove", "--disk", "scsi0:0")
	back.Stdin = strings.NewReader(h.withoutSecond(served))
	if r := h.finish(back); r.code != exitDone || strings.ReplaceAll(r.stdout, "\n", "") != strings.ReplaceAll(plain, "\n", "") {
		t.Errorf("decrypted, the domain becomes\n%s%s", r.stdout, r.stderr)
	}
	h.fails(exitUsage, []string{"--domain"}, "libvirt-xml", target, "--remove")
	h.fails(exitFailure, []string{"no encrypted disk"}, "libvirt-xml", target)
	h.fails(exitUsage, []string{"NODE=DEVICE"}, "libvirt-xml", target, "--target", "vda")
}

// withoutSecond takes the last disk out of a domain.
func (h *host) withoutSecond(xml string) string {
	h.t.Helper()
	from, to := strings.LastIndex(xml, "    <disk "), strings.LastIndex(xml, "  </devices>")
	if from < 0 || to < from {
		h.t.Fatalf("no disk in\n%s", xml)
	}
	return xml[:from] + xml[to:]
}
