package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vmcrypt/vmcrypt/agent/api"
	"github.com/vmcrypt/vmcrypt/internal/testtool"
)

// killsOfAgent is how often the agent is killed.
const killsOfAgent = 10

// TestAgentIsKilled kills the agent while a guest writes and checks: the guest notices
// nothing.
func TestAgentIsKilled(t *testing.T) {
	t.Parallel() // it waits a lot
	testtool.Need(t, "fio")
	h := startHost(t)
	plain := filepath.Join(t.TempDir(), "plain")
	holedImage(t, plain, 8<<20)
	h.ok("encrypt", plain, "--output", h.at("disk.img"))
	vm := h.unlock("disk.img")
	stop := guest(t, vm.Disks[0].URI)
	eventually(t, "the guest writes", func() bool { return h.named("disk.img").Disks[0].BytesWritten > 0 })
	for range killsOfAgent {
		time.Sleep(100 * time.Millisecond) // anything may be under way
		h.stopAgent(os.Kill)
		h.startAgent()
		if got := h.named("disk.img"); got.State != api.Unlocked || *got.PID != *vm.PID || !got.Since.Equal(*vm.Since) {
			t.Fatalf("after a restart it is %+v", got)
		}
	}
	stop()
	h.lock("disk.img")
	h.untouched()
	adopted := 0
	for _, e := range h.audit() {
		if e.Action == "adopt" && e.Result == "success" && e.VM == "disk.img" {
			adopted++
		}
	}
	if adopted != killsOfAgent {
		t.Errorf("the audit log tells of %d adoptions, not %d", adopted, killsOfAgent)
	}
}

// guest writes a served disk, and checks what is on it, again and again until it is
// stopped. All must be well.
func guest(t *testing.T, uri string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*hang)
	done, ended := make(chan struct{}), make(chan struct{})
	fio, dir := testtool.Need(t, "fio"), t.TempDir() // for its notes
	go func() {
		defer close(ended)
		for {
			cmd := exec.CommandContext(ctx, fio, "--name=guest", "--ioengine=nbd", "--uri="+uri, "--rw=randrw", "--bsrange=512-64k",
				"--blockalign=512", "--iodepth=8", "--size=8m", "--loops=3", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1")
			cmd.Dir = dir
			if out, err := cmd.CombinedOutput(); err != nil || bytes.Contains(out, []byte("verify:")) {
				t.Errorf("fio: %v\n%s", err, out)
			}
			select {
			case <-done:
				return
			default:
			}
		}
	}()
	stop = sync.OnceFunc(func() {
		close(done)
		<-ended
		cancel()
	})
	t.Cleanup(stop)
	return stop
}

// TestAgentStops: who stops the agent stops no VM.
func TestAgentStops(t *testing.T) {
	t.Parallel()
	h := startHost(t)
	h.vm("a", "scsi0:0")
	h.vm("bb", "scsi0:0", "scsi0:1")
	a, b := h.unlock("a"), h.unlock("bb", "--read-only")
	for _, signal := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
		h.stopAgent(signal)
		if out, ok := qemuIO(t, a.Disks[0].URI, "write 0 512"); !ok {
			t.Error(out)
		}
		h.fails(exitFailure, []string{"no agent answers", "vmcrypt agent"}, "list")
		h.startAgent()
		for _, vm := range []api.VM{a, b} {
			if got := h.unlock(vm.Descriptor, fmt.Sprintf("--read-only=%t", vm.Disks[0].ReadOnly)); *got.PID != *vm.PID {
				t.Errorf("%s has another disk server", vm.Name)
			}
		}
	}
	h.lock("a")
	h.stopAgent(os.Kill)
	h.startAgent()
	if h.named("a").State != api.Locked || h.named("bb").State != api.Unlocked {
		t.Errorf("after a restart: %+v", h.list())
	}
	h.lock("bb")
	h.untouched()
}

// TestDiskServerDies: the agent, or the next one, starts another on the same sockets.
func TestDiskServerDies(t *testing.T) {
	testtool.Long(t)
	t.Parallel() // it waits a lot
	h := startHost(t)
	target := h.vm("web01", "scsi0:0", "scsi0:1")
	vm := h.unlock(target)
	if out, ok := qemuIO(t, vm.Disks[1].URI, "write -P 9 0 4096"); !ok {
		t.Fatal(out)
	}
	died := func(alive bool) {
		t.Helper()
		if !alive {
			h.stopAgent(syscall.SIGTERM)
		}
		if err := syscall.Kill(*vm.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		h.gone(*vm.PID)
		if !alive {
			h.startAgent()
		}
		var now api.VM
		eventually(t, "it is unlocked again", func() bool { now = h.named("web01"); return now.State == api.Unlocked })
		if *now.PID == *vm.PID || now.Disks[0].URI != vm.Disks[0].URI || now.Disks[1].URI != vm.Disks[1].URI {
			t.Errorf("it was %+v, and is %+v", vm, now)
		}
		if out, ok := qemuIO(t, vm.Disks[1].URI, "read -P 9 0 4096"); !ok {
			t.Error(out)
		}
		vm = now
	}
	for _, alive := range []bool{true, true, false} {
		died(alive)
	}
	h.lock(target)
	h.untouched()
	h.checkRestarts(3)
}

// checkRestarts looks for restarts in the audit log, each after a fresh unlock.
func (h *host) checkRestarts(want int) {
	h.t.Helper()
	n := 0
	for _, e := range h.audit() {
		if e.Action != "restart" {
			continue
		}
		if e.UID != os.Getuid() || len(e.Keys) == 0 || e.Keys[0].KEKID == "" || (e.Result == "released") == (n%2 == 1) {
			h.t.Errorf("a restart: %+v", e)
		}
		n++
	}
	if n != 2*want {
		h.t.Errorf("%d entries of restarts, not %d", n, 2*want)
	}
}

// keyManager is a key manager with a wire to it that can be cut.
type keyManager struct {
	t       *testing.T
	address string // of the wire
	behind  string // what it leads to
	hangs   atomic.Bool

	mu       sync.Mutex
	listener net.Listener
	ends     []net.Conn
}

// startHostWithKMS makes a host whose agent asks a key manager over TCP.
func startHostWithKMS(t *testing.T, more ...string) (*host, *keyManager) {
	t.Helper()
	h := newHost(t, more...)
	k := &keyManager{t: t, address: "127.0.0.1:0", behind: h.serveKMS()}
	k.up()
	t.Cleanup(k.down)
	config := filepath.Join(h.home.dir, "config.yaml")
	h.edit(config, `defaultAlias: local`, `defaultAlias: remote`)
	h.edit(config, `(?m)^aliases:$`, "aliases:\n  remote: {servers: [{address: '"+k.address+"'}], clientCert: client.pem, clientKey: client.key, ca: ca.pem, timeout: 10s}")
	h.startAgent()
	return h, k
}

// up has the key manager answer.
func (k *keyManager) up() {
	k.t.Helper()
	l, err := net.Listen("tcp", k.address)
	if err != nil {
		k.t.Fatal(err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.listener, k.address = l, l.Addr().String()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			k.keep(conn)
			if !k.hangs.Load() {
				go k.forward(conn)
			}
		}
	}()
}

func (k *keyManager) keep(conn net.Conn) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ends = append(k.ends, conn)
}

func (k *keyManager) forward(conn net.Conn) {
	there, err := net.Dial("tcp", k.behind)
	if err != nil {
		conn.Close()
		return
	}
	k.keep(there)
	go func() {
		_, _ = io.Copy(there, conn) // it ends when one of them does
		there.Close()
	}()
	_, _ = io.Copy(conn, there) // likewise
	conn.Close()
}

// down has it refuse connections.
func (k *keyManager) down() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.listener.Close()
	for _, conn := range k.ends {
		conn.Close()
	}
	k.ends = nil
}

// connections tells how many there were since it was up.
func (k *keyManager) connections() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.ends)
}

// TestDiskServerDiesWithoutKeyManager: the agent goes on trying, says why, and a lock
// ends that.
func TestDiskServerDiesWithoutKeyManager(t *testing.T) {
	testtool.Long(t)
	t.Parallel() // it waits a lot
	h, kms := startHostWithKMS(t)
	h.vm("web01", "scsi0:0")
	kill := func() {
		t.Helper()
		vm := h.unlock("web01")
		kms.down()
		if err := syscall.Kill(*vm.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the agent says why", func() bool {
			now := h.named("web01")
			return now.State == api.Restarting && now.PID == nil && strings.Contains(now.Problem, kms.address)
		})
	}
	kill()
	if out := h.ok("list"); !strings.Contains(out, "restarting") || !strings.Contains(out, kms.address) {
		t.Errorf("the list says\n%s", out)
	}
	h.fails(exitNoKeyManager, []string{kms.address}, "unlock", "web01")
	kms.up()
	eventually(t, "it is unlocked again", func() bool { return h.named("web01").State == api.Unlocked })

	kill()
	h.lock("web01")
	kms.up()
	h.untouched()

	kill()
	kms.up()
	h.unlock("web01") // who asks need not wait for the next attempt

	kill()
	h.stopAgent(syscall.SIGTERM)
	h.startAgent()
	if vm := h.named("web01"); vm.State != api.Restarting || vm.UUID == "" {
		t.Errorf("the next agent says %+v", vm)
	}
	h.lock("web01")
	h.untouched()
	h.ok("audit", "verify")
}

// TestLockNeedsNoKeyManager: one that hangs keeps no lock waiting.
func TestLockNeedsNoKeyManager(t *testing.T) {
	h, kms := startHostWithKMS(t)
	h.vm("web01", "scsi0:0")
	vm := h.unlock("web01")
	kms.down()
	kms.hangs.Store(true)
	kms.up()
	if err := syscall.Kill(*vm.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the agent asks for the key", func() bool { return kms.connections() > 0 })
	begun := time.Now()
	h.lock("web01")
	if took := time.Since(begun); took > 5*time.Second { // the key manager has 10 s to begin
		t.Errorf("the lock waited for the key manager: %v", took)
	}
	h.untouched()
}

// TestDiskServerOutOfReach: QEMU's user can keep the agent from asking a disk server,
// and not from ending it.
func TestDiskServerOutOfReach(t *testing.T) {
	testtool.Long(t)
	t.Parallel() // it waits a lot
	if os.Getuid() != 0 {
		t.Skip("only root sees where a disk server works")
	}
	h := startHost(t)
	target := h.vm("web01", "scsi0:0")
	for name, restart := range map[string]bool{"the same agent": false, "the next agent": true} {
		vm := h.unlock(target)
		directory := filepath.Dir(strings.TrimPrefix(vm.Disks[0].URI, "nbd+unix:///scsi0:0?socket="))
		if err := os.Remove(filepath.Join(directory, "control.sock")); err != nil {
			t.Fatal(err)
		}
		if restart {
			h.stopAgent(os.Kill)
			h.startAgent()
			if last := h.lastEntry(); last.Action != "adopt" || last.Descriptor != target {
				t.Errorf("the audit log ends with %+v", last)
			}
		}
		if now := h.named("web01"); now.State != api.Unlocked || now.Problem == "" || now.UUID != vm.UUID {
			t.Errorf("%s: listed as %+v", name, now)
		}
		h.fails(exitInUse, []string{"does not answer", "lock it"}, "unlock", target)
		h.lockSilent("web01")
		h.gone(*vm.PID)
		h.untouched()
	}
}

// TestForgottenDiskServer: lock ends what nobody knows of any more.
func TestForgottenDiskServer(t *testing.T) {
	testtool.Long(t)
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("only root sees where a disk server works")
	}
	h := startHost(t)
	target := h.vm("web01", "scsi0:0")
	vm := h.unlock(target)
	h.stopAgent(os.Kill)
	notes, err := filepath.Glob(filepath.Join(h.dir, "run/vms/*.json"))
	if err != nil || len(notes) != 1 {
		t.Fatal(notes, err)
	}
	for _, path := range []string{notes[0], strings.TrimSuffix(notes[0], ".json") + "/control.sock"} {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	h.startAgent()
	h.fails(exitInUse, nil, "unlock", target)
	h.lockSilent(target)
	h.gone(*vm.PID)
	h.untouched()
}

// lockSilent locks a VM whose disk server does not answer: that has to be forced, and
// nobody can say that all was flushed.
func (h *host) lockSilent(vm string) {
	h.t.Helper()
	h.fails(exitInUse, []string{"does not answer", "--force"}, "lock", vm)
	if len(h.diskServers()) == 0 {
		h.t.Error("a lock that was refused ended the disk server")
	}
	h.fails(exitFailure, []string{"locked, but", "may be lost", "did not tell whether it flushed"}, "lock", vm, "--force")
	if last := h.lastEntry(); last.Action != "lock" || last.Result != "failure" || !strings.Contains(last.Reason, "may be lost") {
		h.t.Errorf("the audit log ends with %+v", last)
	}
}

func (h *host) lastEntry() auditEntry {
	h.t.Helper()
	entries := h.audit()
	if len(entries) == 0 {
		h.t.Fatal("the audit log is empty")
	}
	return entries[len(entries)-1]
}

// TestNoteIsLost: an agent that ended before it wrote one, or a note that is damaged,
// leaves nothing behind that the next one does not know.
func TestNoteIsLost(t *testing.T) {
	t.Parallel()
	h := startHost(t)
	target := h.vm("web01", "scsi0:0")
	vm := h.unlock(target, "--read-only")
	note := filepath.Dir(strings.TrimPrefix(vm.Disks[0].URI, "nbd+unix:///scsi0:0?socket=")) + ".json"
	for _, text := range []string{"", "{", `{"boot":"another"}`} {
		h.stopAgent(os.Kill)
		write(t, note, []byte(text))
		h.startAgent()
		if got := h.unlock(target, "--read-only"); *got.PID != *vm.PID {
			t.Errorf("with the note %q it has another disk server", text)
		}
		if !bytes.Contains(read(t, note), []byte(target)) {
			t.Errorf("the note %q stays", text)
		}
	}
	h.lock(target)
	h.untouched()
}

// TestReboot: after one, nothing is unlocked that nobody asked for.
func TestReboot(t *testing.T) {
	t.Parallel()
	h := startHost(t)
	target := h.vm("web01", "scsi0:0")
	vm := h.unlock(target)
	h.stopAgent(os.Kill)
	if err := syscall.Kill(*vm.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	h.gone(*vm.PID)
	notes, err := filepath.Glob(filepath.Join(h.dir, "run/vms/*.json"))
	if err != nil || len(notes) != 1 {
		t.Fatal(notes, err)
	}
	h.edit(notes[0], `"boot":"[^"]+"`, `"boot":"the one before"`)
	h.startAgent()
	h.untouched()
}

// TestDiskServerHangs: one that does not end when asked to is ended by force.
func TestDiskServerHangs(t *testing.T) {
	t.Parallel()     // it waits a lot
	testtool.Long(t) // half a minute of patience
	h := startHost(t)
	target := h.vm("web01", "scsi0:0")
	vm := h.unlock(target)
	if err := syscall.Kill(*vm.PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if now := h.named("web01"); now.State != api.Unlocked || now.Problem == "" {
		t.Errorf("while it hangs it is listed as %+v", now)
	}
	h.lockSilent(target)
	h.gone(*vm.PID)
	h.untouched()
}

// TestClientGoesAway: an unlock that nobody waits for any more unlocks nothing.
func TestClientGoesAway(t *testing.T) {
	t.Parallel() // it waits a lot
	h, kms := startHostWithKMS(t)
	target := h.vm("web01", "scsi0:0")
	kms.down()
	kms.hangs.Store(true)
	kms.up()
	unlock := func() *exec.Cmd {
		t.Helper()
		before := kms.connections()
		cmd := h.command(t.Context(), "unlock", target)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the agent asks for the key", func() bool { return kms.connections() > before })
		return cmd
	}
	cmd := unlock()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	eventually(t, "the unlock ends", func() bool {
		entries := h.audit()
		return len(entries) == 1 && entries[0].Result == "failure"
	})
	h.untouched()
	if os.Getenv("VMCRYPT_TEST_LONG") != "1" { // it takes 10 s
		return
	}
	cmd = unlock()
	h.stopAgent(syscall.SIGTERM)
	_ = cmd.Wait() // what it hears, nobody can promise
	kms.hangs.Store(false)
	h.startAgent()
	h.untouched()
}
