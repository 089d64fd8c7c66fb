package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmcrypt/vmcrypt/agent/api"
	"github.com/vmcrypt/vmcrypt/agent/diskserver"
	"github.com/vmcrypt/vmcrypt/image"
	"github.com/vmcrypt/vmcrypt/internal/testtool"
	"github.com/vmcrypt/vmcrypt/vmx"
)

// host is a home with a datastore, and an agent perhaps.
type host struct {
	*home
	dir     string                // short, for sockets
	program string                // that the agent is, if not this
	start   func(*exec.Cmd) error // starts the agent, if that is not just so
	agent   *exec.Cmd
	ended   chan struct{} // closed when the agent has
}

// newHost makes a host without an agent. More is added to its configuration.
func newHost(t *testing.T, more ...string) *host {
	t.Helper()
	dir, err := os.MkdirTemp("", "va")
	if err != nil {
		t.Fatal(err)
	}
	h := &host{home: &home{t: t, dir: filepath.Join(dir, "home")}, dir: dir}
	t.Cleanup(func() {
		h.killAll()
		os.RemoveAll(dir)
	})
	if err := os.Chmod(dir, 0o755); err != nil { // for other users
		t.Fatal(err)
	}
	if err := os.Mkdir(h.at(), 0o755); err != nil {
		t.Fatal(err)
	}
	h.ok("init")
	h.configureAgent(more...)
	return h
}

// startHost makes a host with an agent.
func startHost(t *testing.T, more ...string) *host {
	t.Helper()
	h := newHost(t, more...)
	h.startAgent()
	return h
}

// at names a file in the datastore.
func (h *host) at(names ...string) string {
	return filepath.Join(append([]string{h.dir, "ds"}, names...)...)
}

func (h *host) socket() string { return filepath.Join(h.dir, "run/agent.sock") }

func (h *host) configureAgent(more ...string) {
	path := filepath.Join(h.home.dir, "config.yaml")
	text := fmt.Sprintf("\ndatastores: [%q]\nagent:\n  socket: %s\n  qemuUser: %q\n%s\n",
		h.at(), h.socket(), strconv.Itoa(os.Getuid()), strings.Join(more, "\n"))
	write(h.t, path, append(read(h.t, path), text...))
}

// startAgent starts an agent, which must listen.
func (h *host) startAgent() {
	h.t.Helper()
	log, err := os.OpenFile(filepath.Join(h.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		h.t.Fatal(err)
	}
	defer log.Close()
	h.agent = h.command(context.Background(), "agent", "--json")
	if h.program != "" {
		h.agent.Path = h.program
	}
	h.agent.Stderr = log // which disk servers inherit
	stdout, err := h.agent.StdoutPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	start := h.start
	if start == nil {
		start = (*exec.Cmd).Start
	}
	if err := start(h.agent); err != nil {
		h.t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	cmd, ended := h.agent, make(chan struct{})
	h.ended = ended
	go func() {
		_ = cmd.Wait() // how it ended is in cmd
		close(ended)
	}()
	if err != nil || parseJSON[struct{ Type, Socket string }](h.t, line) != (struct{ Type, Socket string }{"listening", h.socket()}) {
		h.t.Fatalf("the agent says %q, %v\n%s", line, err, h.log())
	}
}

func (h *host) log() string {
	text, _ := os.ReadFile(filepath.Join(h.dir, "log")) // there may be none
	return string(text)
}

// stopAgent ends the agent by a signal, and waits for its end.
func (h *host) stopAgent(signal os.Signal) {
	h.t.Helper()
	if err := h.agent.Process.Signal(signal); err != nil {
		h.t.Fatal(err)
	}
	select {
	case <-h.ended:
	case <-time.After(hang):
		h.t.Fatal("the agent does not end")
	}
	if code := h.agent.ProcessState.ExitCode(); signal != os.Kill && code != exitDone {
		h.t.Fatalf("the agent ended with exit code %d\n%s", code, h.log())
	}
}

// killAll ends the agent and all disk servers, of which there may be forgotten ones.
func (h *host) killAll() {
	if h.agent != nil {
		_ = h.agent.Process.Kill() // it may have ended
		<-h.ended
	}
	if h.t.Failed() {
		h.t.Logf("the agent's log:\n%s", h.log())
	}
	for _, pid := range h.diskServers() {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
	}
}

// diskServers finds the disk servers of this host. Only root finds those that can't be
// asked.
func (h *host) diskServers() (pids []int) {
	directories, _ := filepath.Glob(filepath.Join(h.dir, "run/vms/*")) // the pattern is good
	for _, directory := range directories {
		if pid := pidIn(directory); pid > 0 {
			pids = append(pids, pid)
		}
	}
	environments, _ := filepath.Glob("/proc/[0-9]*/environ") // likewise
	for _, path := range environments {
		text, _ := os.ReadFile(path) // it may have ended
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if bytes.Contains(text, []byte("VMCRYPT_HOME="+h.home.dir+"\x00")) && isDiskServer(pid) && !slices.Contains(pids, pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// pidIn asks the disk server of a directory for its number.
func pidIn(directory string) int {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	c, err := diskserver.Connect(ctx, directory)
	if err != nil {
		return 0
	}
	defer c.Close()
	st, err := c.Status(ctx)
	if err != nil {
		return 0
	}
	return st.PID
}

func isDiskServer(pid int) bool {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // of a zombie it is empty
	return bytes.HasSuffix(text, []byte("\x00disk-server\x00"))
}

// eventually waits until something is so.
func eventually(t *testing.T, what string, so func() bool) {
	t.Helper()
	for begun := time.Now(); !so(); time.Sleep(10 * time.Millisecond) {
		if time.Since(begun) > hang {
			t.Fatalf("%s: it does not come to that", what)
		}
	}
}

// gone waits until a disk server has ended.
func (h *host) gone(pid int) {
	h.t.Helper()
	eventually(h.t, fmt.Sprintf("process %d ends", pid), func() bool { return !isDiskServer(pid) })
}

// client asks the agent without a command.
func (h *host) client() *api.Client { return api.NewClient(h.socket()) }

func (h *host) list() []api.VM {
	h.t.Helper()
	return parseJSON[api.List](h.t, h.ok("list", "--json")).VMs
}

// named gives a VM of the list.
func (h *host) named(name string) api.VM {
	h.t.Helper()
	for _, vm := range h.list() {
		if vm.Name == name {
			return vm
		}
	}
	h.t.Fatalf("no VM %s in %+v", name, h.list())
	return api.VM{}
}

// unlock has the agent unlock a VM, which must work.
func (h *host) unlock(vm string, flags ...string) api.VM {
	h.t.Helper()
	out := parseJSON[api.VM](h.t, h.ok(append([]string{"unlock", "--json", vm}, flags...)...))
	if out.State != api.Unlocked || out.PID == nil || out.Since == nil || len(out.Disks) == 0 {
		h.t.Fatalf("unlocked it is %+v", out)
	}
	return out
}

// lock has the agent lock a VM, of which nothing must be left.
func (h *host) lock(vm string, flags ...string) {
	h.t.Helper()
	if out := parseJSON[api.VM](h.t, h.ok(append([]string{"lock", "--json", vm}, flags...)...)); out.State != api.Locked || out.PID != nil {
		h.t.Fatalf("locked it is %+v", out)
	}
}

// untouched checks that no VM is unlocked and nothing is left of one that was.
func (h *host) untouched() {
	h.t.Helper()
	for _, vm := range h.list() {
		if vm.State != api.Locked {
			h.t.Errorf("%s is %s", vm.Name, vm.State)
		}
	}
	h.nothingLeft()
}

// nothingLeft looks for disk servers, their directories and their locks.
func (h *host) nothingLeft() {
	h.t.Helper()
	if got := names(h.t, filepath.Join(h.dir, "run/vms")); len(got) > 0 {
		h.t.Errorf("left beside the agent's socket: %v", got)
	}
	if pids := h.diskServers(); len(pids) > 0 {
		h.t.Errorf("there are disk servers: %v", pids)
	}
	err := filepath.WalkDir(h.at(), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && image.FormatOf(path) == image.Raw && filepath.Ext(path) == ".img" {
			h.isFree(path)
		}
		return err
	})
	if err != nil {
		h.t.Error(err)
	}
}

// isFree checks that nobody has a disk locked.
func (h *host) isFree(path string) {
	h.t.Helper()
	withoutForks(func() {
		f, err := image.Open(path, image.FormatOf(path), image.ReadWrite)
		if err != nil {
			h.t.Error(err)
			return
		}
		f.Close()
	})
}

// image encrypts a small image of the datastore.
func (h *host) image(name string) (path string) {
	h.t.Helper()
	path = h.at(name)
	smallImage(h.t, path+".plain")
	defer os.Remove(path + ".plain")
	h.ok("encrypt", path+".plain", "--output", path)
	return path
}

// vm encrypts a VM with some disks into a folder of its name, and gives its descriptor.
func (h *host) vm(name string, nodes ...string) string {
	h.t.Helper()
	plain := h.t.TempDir()
	text := fmt.Sprintf("displayName = %q\nuuid.bios = \"56 4d 0b a1 %02x 22 33 44-55 66 77 88 99 aa bb cc\"\n", name, len(name))
	for i, node := range nodes {
		file := fmt.Sprintf("disk%d.img", i)
		smallImage(h.t, filepath.Join(plain, file))
		text += fmt.Sprintf("%s.fileName = %q\n", node, file)
	}
	write(h.t, filepath.Join(plain, name+".vmx"), []byte(text))
	h.ok("encrypt", filepath.Join(plain, name+".vmx"), "--output", h.at(name))
	return h.at(name, name+".vmx")
}

// copyVM copies a VM's folder: the copy has the same keys.
func (h *host) copyVM(descriptor, name string) string {
	h.t.Helper()
	from, to := filepath.Dir(descriptor), h.at(name)
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		h.t.Fatal(err)
	}
	path := filepath.Join(to, name+".vmx")
	if err := os.Rename(filepath.Join(to, filepath.Base(descriptor)), path); err != nil {
		h.t.Fatal(err)
	}
	h.edit(path, `displayName = ".*"`, fmt.Sprintf("displayName = %q", name))
	return path
}

// edit changes a descriptor.
func (h *host) edit(path, pattern, replacement string) {
	h.t.Helper()
	old := read(h.t, path)
	changed := regexp.MustCompile(pattern).ReplaceAll(old, []byte(replacement))
	if bytes.Equal(old, changed) {
		h.t.Fatalf("%s has no %s", path, pattern)
	}
	write(h.t, path, changed)
}

// TestAgent is the life of a VM at the agent, from power-on to power-off.
func TestAgent(t *testing.T) {
	t.Parallel()
	h := startHost(t)
	target := h.vm("web01", "scsi0:0", "nvme0:1")
	before := h.list()
	if len(before) != 1 || before[0].State != api.Locked || before[0].Since != nil || before[0].PID != nil || len(before[0].Disks) != 2 {
		t.Errorf("before it is unlocked: %+v", before)
	}
	vm := h.unlock(target)
	if vm.Name != "web01" || vm.Descriptor != target || !strings.HasPrefix(vm.UUID, "56 4d") || len(vm.Disks) != 2 || time.Since(*vm.Since) > time.Hour {
		t.Errorf("unlocked: %+v", vm)
	}
	for i, node := range []string{"scsi0:0", "nvme0:1"} {
		d := vm.Disks[i]
		if want := "nbd+unix:///" + node + "?socket=" + h.dir + "/run/vms/"; d.Node != node || !strings.HasPrefix(d.URI, want) {
			t.Errorf("disk %+v, want a URI like %s", d, want)
		}
		execute(t, exec.Command(testtool.Need(t, "nbdinfo"), d.URI))
		if out, ok := qemuIO(t, d.URI, "write -P 0x5a 4096 8192", "read -P 0x5a 4096 8192"); !ok {
			t.Error(out)
		}
	}
	if got := h.named("web01"); got.Disks[0].BytesWritten != 8192 || got.Disks[0].BytesRead < 8192 || got.Disks[0].Connections != 0 {
		t.Errorf("after some traffic: %+v", got)
	}
	h.ok("status", target)
	if again := h.unlock(target); *again.PID != *vm.PID || !again.Since.Equal(*vm.Since) {
		t.Errorf("a second unlock changed something: %+v", again)
	}
	h.lock(target)
	h.lock(target)
	h.untouched()
	out := t.TempDir() + "/dec"
	h.ok("decrypt", target, "--output", out)
	if data := read(t, out+"/disk1.img"); !bytes.Equal(data[4096:4096+8192], bytes.Repeat([]byte{0x5a}, 8192)) {
		t.Error("what was written is not on the disk")
	}
	h.ok("audit", "verify")
}

// TestListJSON: programs rely on the names.
func TestListJSON(t *testing.T) {
	t.Parallel()
	h := startHost(t)
	h.vm("web01", "scsi0:0")
	const locked = `{"vms":[{"name":"web01","uuid":"56 4d 0b a1 05 22 33 44-55 66 77 88 99 aa bb cc","descriptor":"DS/web01/web01.vmx",` +
		`"state":"locked","since":null,"pid":null,"disks":[{"node":"scsi0:0","uri":"","readOnly":false,"bytesRead":0,"bytesWritten":0,"connections":0}]}]}`
	const unlocked = `{"vms":[{"name":"web01","uuid":"56 4d 0b a1 05 22 33 44-55 66 77 88 99 aa bb cc","descriptor":"DS/web01/web01.vmx",` +
		`"state":"unlocked","since":"TIME","pid":N,"disks":[{"node":"scsi0:0","uri":"nbd+unix:///scsi0:0?socket=RUN/vms/ID/scsi0:0.sock",` +
		`"readOnly":true,"bytesRead":0,"bytesWritten":0,"connections":0}]}]}`
	general := func(text string) string {
		for pattern, name := range map[string]string{
			regexp.QuoteMeta(h.at()): "DS", regexp.QuoteMeta(filepath.Dir(h.socket())): "RUN", `vms/[0-9a-f]{16}/`: "vms/ID/",
			`"since":"[0-9T:.-]+Z"`: `"since":"TIME"`, `"pid":[0-9]+`: `"pid":N`,
		} {
			text = regexp.MustCompile(pattern).ReplaceAllString(text, name)
		}
		return strings.TrimSpace(text)
	}
	if got := general(h.ok("list", "--json")); got != locked {
		t.Errorf("locked:\n%s, not\n%s", got, locked)
	}
	h.unlock("web01", "--read-only")
	if got := general(h.ok("list", "--json")); got != unlocked {
		t.Errorf("unlocked:\n%s, not\n%s", got, unlocked)
	}
}

// TestListForPeople: the text has what there is to know, and drives no terminal.
func TestListForPeople(t *testing.T) {
	t.Parallel()
	h := startHost(t)
	if out := h.ok("list"); strings.Count(out, "\n") != 1 || !strings.HasPrefix(out, "VM ") {
		t.Errorf("without VMs:\n%s", out)
	}
	h.edit(h.vm("web01", "scsi0:0"), `"web01"`, `"web|1B[31m01"`)
	write(t, h.at("broken.vmx"), []byte("what is this?\n"))
	out := h.ok("unlock", h.at("web01/web01.vmx"))
	if lines := strings.Split(out, "\n"); lines[0] != "web?[31m01 unlocked" || !strings.HasPrefix(lines[1], "  scsi0:0  nbd+unix:///scsi0:0?socket=/") {
		t.Errorf("unlock says\n%s", out)
	}
	out = h.ok("list")
	for _, want := range []string{`(?m)^VM +STATE +SINCE +CONNECTIONS +READ +WRITTEN +DESCRIPTOR$`,
		`(?m)^web\?\[31m01 +unlocked +20..-..-.. ..:..:.. +0 +0 B +0 B +/.*/web01.vmx$`, `(?m)^broken.vmx +locked +/`, `broken.vmx names no disk`} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("no %s in\n%s", want, out)
		}
	}
	if out := h.ok("lock", h.at("web01/web01.vmx")); out != "web?[31m01 locked\n" {
		t.Errorf("lock says\n%s", out)
	}
}

// TestAgentFinds: each name that a VM has leads to it, if to no other.
func TestAgentFinds(t *testing.T) {
	h := startHost(t)
	target := h.vm("web01", "scsi0:0")
	disk := h.image("data.img")
	t.Chdir(h.at())
	for _, name := range []string{
		target, "web01/web01.vmx", "./web01/../web01/web01.vmx", "web01", // which is a folder here, too
		"56 4d 0b a1 05 22 33 44-55 66 77 88 99 aa bb cc", "564d0ba1-0522-3344-5566-778899aabbcc", "564D0BA1-0522-3344-5566-778899AABBCC",
	} {
		if vm := h.unlock(name); vm.Descriptor != target {
			t.Errorf("%s leads to %+v", name, vm)
		}
		h.lock(name)
	}
	uuid := ""
	for _, name := range []string{disk, "data.img", disk + ".vmx", "data.img.vmx"} {
		vm := h.unlock(name)
		if vm.Descriptor != disk+".vmx" || vm.Name != "data.img" {
			t.Errorf("%s leads to %+v", name, vm)
		}
		uuid = vm.UUID
		h.lock(name)
	}
	t.Chdir(t.TempDir())
	for _, name := range []string{"data.img", uuid} {
		if vm := h.unlock(name); vm.Name != "data.img" {
			t.Errorf("%s leads to %+v", name, vm)
		}
		h.lock(name)
	}
	h.copyVM(target, "web02")
	h.edit(h.at("web02/web02.vmx"), `"web02"`, `"web01"`)
	for _, verb := range []string{"unlock", "lock"} {
		h.fails(exitUsage, []string{"web01/web01.vmx", "web02/web02.vmx"}, verb, "web01")
		h.fails(exitFailure, []string{"web09", "vmcrypt list"}, verb, "web09")
		h.fails(exitFailure, []string{"web09.vmx", "no such file", "vmcrypt list"}, verb, h.at("web09.vmx"))
		h.fails(exitUsage, nil, verb)
		h.fails(exitUsage, nil, verb, "web01", "web02")
	}
	h.fails(exitTampered, []string{"plain.img"}, "unlock", h.at("plain.img"))
	h.untouched()
}

// TestAgentKindsOfDisks: read-only, VMDK, plain disks beside encrypted ones.
func TestAgentKindsOfDisks(t *testing.T) {
	t.Parallel()
	h := startHost(t)
	t.Run("read-only", func(t *testing.T) {
		h := &host{home: &home{t, h.home.dir}, dir: h.dir}
		target := h.vm("reader", "scsi0:0")
		before := sum(t, h.at("reader/disk0.img"))
		vm := h.unlock(target, "--read-only")
		if out, ok := qemuIO(t, vm.Disks[0].URI, "write 0 512"); ok || !vm.Disks[0].ReadOnly {
			t.Errorf("%+v\n%s", vm, out)
		}
		h.fails(exitInUse, []string{"unlocked already", "lock it"}, "unlock", target)
		h.ok("decrypt", target, "--output", t.TempDir()+"/x") // others may read
		h.lock(target)
		if sum(t, h.at("reader/disk0.img")) != before {
			t.Error("the disk was changed")
		}
	})
	t.Run("VMDK", func(t *testing.T) {
		h := &host{home: &home{t, h.home.dir}, dir: h.dir}
		plain := filepath.Join(t.TempDir(), "disk.vmdk")
		execute(t, exec.Command(testtool.Need(t, "qemu-img"), "create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", plain, "1M"))
		target := h.at("flat.vmdk")
		h.ok("encrypt", plain, "--output", target)
		vm := h.unlock(target)
		if out, ok := qemuIO(t, vm.Disks[0].URI, "write -P 7 64k 64k"); !ok {
			t.Error(out)
		}
		h.lock(target)
		out := filepath.Join(t.TempDir(), "out.vmdk")
		h.ok("decrypt", target, "--output", out)
		execute(t, exec.Command(testtool.Need(t, "qemu-io"), "-f", "vmdk", "-r", "-c", "read -P 7 64k 64k", out))
	})
	t.Run("plain beside encrypted", func(t *testing.T) {
		h := &host{home: &home{t, h.home.dir}, dir: h.dir}
		at := vm(t, threeDisks, "a.img", "b.img", "c.img")
		h.ok("encrypt", at("vm/vm.vmx"), "--disk", "scsi0:1", "--output", h.at("mixed"))
		vm := h.unlock(h.at("mixed/vm.vmx"))
		if len(vm.Disks) != 1 || vm.Disks[0].Node != "scsi0:1" {
			t.Errorf("%+v", vm.Disks)
		}
		h.isFree(h.at("mixed/a.img"))
		h.lock(vm.Name)
	})
	t.Run("all plain", func(t *testing.T) {
		h := &host{home: &home{t, h.home.dir}, dir: h.dir}
		at := vm(t, threeDisks, "a.img", "b.img", "c.img")
		if err := os.CopyFS(h.at("plain"), os.DirFS(at("vm"))); err != nil {
			t.Fatal(err)
		}
		h.fails(exitFailure, []string{"scsi0:0", "plain"}, "unlock", h.at("plain/vm.vmx"))
		for _, vm := range h.list() {
			if filepath.Dir(vm.Descriptor) == h.at("plain") {
				t.Errorf("the list has %+v", vm)
			}
		}
	})
	h.untouched()
}

// TestAgentAllOrNothing: what is wrong with one disk keeps all of them locked.
func TestAgentAllOrNothing(t *testing.T) {
	h := startHost(t)
	target := h.vm("vm", "scsi0:0", "scsi0:1", "scsi0:2")
	good := read(t, target)
	third := h.at("vm/disk2.img")
	refused := func(code int, words ...string) {
		t.Helper()
		h.fails(code, append(words, "scsi0:2"), "unlock", target)
		write(t, target, good)
	}
	f, err := image.Open(third, image.Raw, image.ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	refused(exitInUse, third)
	f.Close()
	h.edit(target, `(scsi0:2.vmcrypt.recipient0.kekID) = ".*"`, `$1 = "999"`)
	refused(exitKey, "999")
	h.edit(target, `(scsi0:2.vmcrypt.recipient0.alias) = ".*"`, `$1 = "elsewhere"`)
	refused(exitKey, "elsewhere")
	write(t, target, unfinished(t, good, "scsi0:2", vmx.StateRekeying))
	refused(exitUnfinished, "rekey")
	h.edit(target, `(scsi0:2.vmcrypt.mac) = "....`, `$1 = "AAAA`)
	refused(exitTampered)
	if err := os.Rename(third, third+".away"); err != nil {
		t.Fatal(err)
	}
	refused(exitFailure, "no such file")
	if err := os.Rename(third+".away", third); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(third, 32<<10); err != nil {
		t.Fatal(err)
	}
	refused(exitTampered, "bytes")
	h.untouched()
	for _, e := range h.audit() {
		if e.Result != "failure" || e.Reason == "" {
			t.Errorf("in the audit log: %+v", e)
		}
	}
}

// auditEntry is a line of the agent's audit log.
type auditEntry struct {
	Sequence                         int
	Time                             time.Time
	UID, PID                         int
	Action, Result, VM, UUID, Reason string
	Descriptor, Owner                string
	ReadOnly                         bool
	Keys                             []struct{ Node, DiskUUID, Alias, KEKID string }
}

func (h *host) audit() (entries []auditEntry) {
	h.t.Helper()
	h.ok("audit", "verify")
	for line := range bytes.Lines(read(h.t, filepath.Join(h.home.dir, "agent/audit.log"))) {
		entries = append(entries, parseJSON[auditEntry](h.t, string(line)))
	}
	return entries
}

// post sends a body to the agent as any HTTP client may.
func (h *host) post(path, body string) (status int, answer string) {
	h.t.Helper()
	return h.request(http.MethodPost, path, body)
}

func (h *host) request(method, path, body string) (status int, answer string) {
	h.t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", h.socket())
	}}}
	req, err := http.NewRequestWithContext(h.t.Context(), method, "http://agent"+path, strings.NewReader(body))
	if err != nil {
		h.t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		h.t.Fatal(err)
	}
	defer resp.Body.Close()
	var text bytes.Buffer
	if _, err := text.ReadFrom(resp.Body); err != nil {
		h.t.Fatal(err)
	}
	return resp.StatusCode, text.String()
}

// failureOf reads an answer that is an error.
func failureOf(t *testing.T, answer string) api.Error {
	t.Helper()
	var f struct{ Error *api.Error }
	if err := json.Unmarshal([]byte(answer), &f); err != nil || f.Error == nil || f.Error.Message == "" || f.Error.ExitCode == 0 {
		t.Fatalf("no error: %v in %q", errors.Join(err), answer)
	}
	return *f.Error
}
