package main

import (
	"encoding/binary"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/vmcrypt/vmcrypt/agent/api"
	"github.com/vmcrypt/vmcrypt/internal/testtool"
)

// TestOwner: what is unlocked for one guest is neither given to nor taken by another,
// over a restart of the agent, too.
func TestOwner(t *testing.T) {
	t.Parallel()
	h := startHost(t)
	vm := h.vm("web01", "scsi0:0")
	first := h.unlock(vm, "--owner", "libvirt:1")
	if again := h.unlock(vm, "--owner", "libvirt:1"); again.Owner != "libvirt:1" || *again.PID != *first.PID {
		t.Errorf("unlocked once more, it is %+v", again)
	}
	refused := func(args ...string) {
		t.Helper()
		if r := h.run(args...); r.code != exitInUse || !strings.Contains(r.stderr, "libvirt:1") {
			t.Errorf("%q: exit code %d, %s", args, r.code, r.stderr)
		}
	}
	for range 2 {
		refused("unlock", vm, "--owner", "libvirt:2")
		refused("lock", vm, "--owner", "libvirt:2", "--force")
		if got := h.named("web01"); got.State != api.Unlocked || got.Owner != "libvirt:1" || *got.PID != *first.PID {
			t.Errorf("then it is %+v", got)
		}
		h.stopAgent(os.Kill)
		h.startAgent()
	}
	// Who asks by hand has no part in it, but means it.
	if got := h.unlock(vm); got.Owner != "libvirt:1" {
		t.Errorf("unlocked by hand, too, it is %+v", got)
	}
	h.lock(vm, "--owner", "libvirt:1", "--force")
	h.lock(vm, "--owner", "libvirt:1", "--force")
	h.unlock(vm, "--owner", "libvirt:2")
	h.lock(vm)
	h.untouched()
}

// TestOwnerOfUnlocked: what was unlocked by hand is a guest's, once nobody else has it
// open.
func TestOwnerOfUnlocked(t *testing.T) {
	testtool.Long(t)
	t.Parallel()
	h := startHost(t)
	vm := h.vm("web01", "scsi0:0")
	h.unlock(vm)
	conn := connect(t, h.named("web01"))
	for _, args := range [][]string{{"unlock", vm, "--owner", "libvirt:1"}, {"lock", vm, "--owner", "libvirt:1", "--force"}} {
		if r := h.run(args...); r.code != exitInUse || !strings.Contains(r.stderr, "connect") {
			t.Errorf("%q: exit code %d, %s", args, r.code, r.stderr)
		}
	}
	conn.Close()
	eventually(t, "the client is gone", func() bool { return h.named("web01").Disks[0].Connections == 0 })
	if got := h.unlock(vm, "--owner", "libvirt:1"); got.Owner != "libvirt:1" {
		t.Errorf("unlocked for a guest, it is %+v", got)
	}
	h.stopAgent(os.Kill)
	h.startAgent()
	conn = connect(t, h.named("web01"))
	defer conn.Close()
	h.lock(vm, "--owner", "libvirt:1", "--force")
	h.untouched()
}

// TestOwnerAfterRestart: when a disk server was started again, the clients of the former
// one are about to come back. Until then the VM does not pass for unused.
func TestOwnerAfterRestart(t *testing.T) {
	t.Parallel()
	h := startHost(t)
	vm := h.vm("web01", "scsi0:0")
	for owner, refused := range map[string][]string{
		"":          {"unlock", vm, "--owner", "libvirt:1"},
		"libvirt:1": {"lock", vm},
	} {
		first := h.unlock(vm, "--owner", owner)
		if err := syscall.Kill(*first.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is started again", func() bool {
			again := h.named("web01")
			return again.State == api.Unlocked && *again.PID != *first.PID
		})
		h.fails(exitInUse, []string{"about to connect again", "--force"}, refused...)
		if got := h.named("web01"); got.State != api.Unlocked || got.Owner != owner {
			t.Errorf("then it is %+v", got)
		}
		h.lock(vm, "--owner", owner, "--force")
	}
	h.untouched()
}

func TestOwnerIsText(t *testing.T) {
	t.Parallel()
	h := startHost(t)
	for _, owner := range []string{"a\nb", strings.Repeat("x", 257)} {
		if r := h.run("unlock", h.at("none.vmx"), "--owner", owner); r.code != exitUsage || !strings.Contains(r.stderr, "printable") {
			t.Errorf("%q: exit code %d, %s", owner, r.code, r.stderr)
		}
	}
}

// connect opens the first disk of a VM, as QEMU does, by NBD_OPT_EXPORT_NAME.
func connect(t *testing.T, vm api.VM) net.Conn {
	t.Helper()
	uri, err := url.Parse(vm.Disks[0].URI)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("unix", uri.Query().Get("socket"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	option := binary.BigEndian.AppendUint32([]byte("\x00\x00\x00\x03IHAVEOPT\x00\x00\x00\x01"), uint32(len(vm.Disks[0].Node)))
	if _, err := conn.Write(append(option, vm.Disks[0].Node...)); err != nil {
		t.Fatal(err)
	}
	greeting := make([]byte, 18+10) // the server's, then size and flags of the disk
	if _, err := io.ReadFull(conn, greeting); err != nil {
		t.Fatal(err)
	}
	return conn
}
