package main

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gemalto/kmip-go/kmip14"
	"golang.org/x/sys/unix"

	"github.com/vmcrypt/vmcrypt/agent"
	"github.com/vmcrypt/vmcrypt/agent/api"
	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
	"github.com/vmcrypt/vmcrypt/internal/testtool"
)

// TestUnlockAmidConversion: while one runs the disk is in use, and once it was killed it
// has to be finished.
func TestUnlockAmidConversion(t *testing.T) {
	t.Parallel()
	h := startHost(t)
	plain, disk := filepath.Join(t.TempDir(), "plain"), h.at("disk.img")
	holedImage(t, plain, 8<<20)
	h.ok("encrypt", plain, "--output", disk)
	cmd := h.command(t.Context(), "rekey", disk, "--deep", "--zone", "4096")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the conversion begins", func() bool { return bytes.Contains(read(t, disk+".vmx"), []byte("rekeying")) })
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	serve := []string{"serve", disk, "--socket", filepath.Join(h.dir, "socket")}
	h.fails(exitInUse, []string{disk, "in use"}, "unlock", disk)
	h.fails(exitInUse, []string{disk, "in use"}, serve...)
	if vm := h.named("disk.img"); vm.State != api.Locked || !strings.Contains(vm.Problem, "rekeying") {
		t.Errorf("listed as %+v", vm)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	h.fails(exitUnfinished, []string{"rekey --deep", disk}, "unlock", disk)
	h.fails(exitUnfinished, []string{"rekey --deep", disk}, serve...)
	h.untouched()
	h.ok("rekey", disk, "--deep")
	h.unlock(disk)
	h.fails(exitInUse, []string{disk}, "rekey", disk, "--deep")
	h.lock(disk)
}

// TestUnlockHonoursQEMU: what another QEMU has open, on this host or another, is not
// unlocked; and what is unlocked, no other QEMU opens.
func TestUnlockHonoursQEMU(t *testing.T) {
	t.Parallel()
	h := startHost(t)
	disk := h.image("disk.img")
	leave := openInQEMU(t, disk)
	h.fails(exitInUse, []string{disk, "power the VM off"}, "unlock", disk)
	h.fails(exitInUse, []string{disk}, "unlock", disk, "--read-only")
	leave()
	vm := h.unlock(disk)
	for _, tool := range [][]string{{"qemu-io", "-f", "raw", "-c", "read 0 512"}, {"qemu-img", "map", "-f", "raw"}} {
		out, err := exec.Command(testtool.Need(t, tool[0]), append(tool[1:], disk)...).CombinedOutput()
		if err == nil || !bytes.Contains(out, []byte("lock")) {
			t.Errorf("%s: %v\n%s", tool[0], err, out)
		}
	}
	h.lock(vm.Name)
}

// TestLockWithClients: a guest's disks are not taken away from it, unless that is said.
func TestLockWithClients(t *testing.T) {
	testtool.Long(t)
	t.Parallel() // it waits a lot
	h := startHost(t)
	vm := h.unlock(h.image("disk.img"))
	stop := connected(t, vm.Disks[0].URI)
	eventually(t, "it is connected", func() bool { return h.named("disk.img").Disks[0].Connections == 1 })
	h.fails(exitInUse, []string{"disk.img", "1 connections", "--force"}, "lock", "disk.img")
	if out, ok := qemuIO(t, vm.Disks[0].URI, "read 0 512"); !ok {
		t.Errorf("after a lock that was refused:\n%s", out)
	}
	h.lock("disk.img", "--force")
	stop()
	h.untouched()

	vm = h.unlock("disk.img")
	stop = connected(t, vm.Disks[0].URI)
	eventually(t, "it is connected", func() bool { return h.named("disk.img").Disks[0].Connections == 1 })
	locked := make(chan result, 1)
	go func() { locked <- h.run("lock", "disk.img") }()
	stop() // the lock waits for it
	if r := <-locked; r.code != exitDone {
		t.Errorf("lock: exit code %d\n%s", r.code, r.stderr)
	}
	h.untouched()
}

// TestLockIsGivenUp: a lock whose client does not wait for the guest to go takes no
// disks away from it.
func TestLockIsGivenUp(t *testing.T) {
	testtool.Long(t)
	t.Parallel() // it waits a lot
	h := startHost(t)
	vm := h.unlock(h.image("disk.img"))
	connected(t, vm.Disks[0].URI)
	eventually(t, "it is connected", func() bool { return h.named("disk.img").Disks[0].Connections == 1 })
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err := h.client().Lock(ctx, api.LockRequest{VM: "disk.img"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a lock that was given up ends with %v", err)
	}
	h.fails(exitInUse, []string{"1 connections"}, "lock", "disk.img") // after what the first one did
	if now := h.named("disk.img"); now.State != api.Unlocked || *now.PID != *vm.PID {
		t.Errorf("it was %+v, and is %+v", vm, now)
	}
	h.lock("disk.img", "--force")
	h.untouched()
}

// TestLockOfNoVM: who locks by a wrong path must not think that the VM is locked.
func TestLockOfNoVM(t *testing.T) {
	t.Parallel()
	h := startHost(t)
	target := h.vm("web01", "scsi0:0")
	h.unlock(target)
	smallImage(t, h.at("plain.img"))
	write(t, h.at("plain.vmx"), []byte("scsi0:0.fileName = \"plain.img\"\n"))
	for path, word := range map[string]string{
		h.at("web01"): "unknown VM", h.at("web01/disk0.img"): "unknown VM", h.at("nothing.img"): "unknown VM",
		h.at("nowhere/x"): "unknown VM", h.at("plain.img"): "unknown VM", h.at("plain.vmx"): "no encrypted disk",
	} {
		h.fails(exitFailure, []string{path, word}, "lock", path)
		h.fails(exitFailure, []string{path, word}, "lock", path, "--force")
		if status, answer := h.request(http.MethodGet, "/v1/vm?vm="+path, ""); status == http.StatusOK || !strings.Contains(answer, word) {
			t.Errorf("%s: status %d: %s", path, status, answer)
		}
	}
	if vm := h.named("web01"); vm.State != api.Unlocked {
		t.Errorf("then it is %+v", vm)
	}
	if err := os.Rename(h.at("web01"), h.at("moved")); err != nil {
		t.Fatal(err)
	}
	if status, answer := h.request(http.MethodGet, "/v1/vm?vm="+target, ""); status != http.StatusOK || !strings.Contains(answer, `"unlocked"`) {
		t.Errorf("status %d: %s", status, answer)
	}
	h.lock(target) // its files are out of reach, and that is no matter
	h.untouched()
}

// connected has QEMU keep a served disk open.
func connected(t *testing.T, uri string) (stop func()) {
	t.Helper()
	cmd := exec.Command(testtool.Need(t, "qemu-io"), "-f", "raw", uri)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop = func() {
		in.Close()
		_ = cmd.Wait() // the disk may be gone
	}
	t.Cleanup(stop)
	return stop
}

// TestUnlockWithoutKey: the exit code tells a key manager that is down from a key that
// is gone.
func TestUnlockWithoutKey(t *testing.T) {
	t.Parallel()
	h, kms := startHostWithKMS(t)
	target := h.vm("web01", "scsi0:0")
	kms.down()
	h.fails(exitNoKeyManager, []string{kms.address, "kms status"}, "unlock", target)
	status, answer := h.post("/v1/unlock", `{"vm":"web01"}`)
	if f := failureOf(t, answer); status != 503 || f.ExitCode != exitNoKeyManager || f.Hint == "" {
		t.Errorf("status %d: %s", status, answer)
	}
	kms.up()
	id := parseJSON[agent.Status](t, h.ok("status", "--json", target)).Disks[0].Recipients[0].KEKID
	h.kmip(kmip14.OperationRevoke, kmipwire.RevokeRequest{
		UniqueIdentifier: id,
		RevocationReason: kmipwire.RevocationReason{RevocationReasonCode: kmip14.RevocationReasonCodeCessationOfOperation},
	})
	h.kmip(kmip14.OperationDestroy, kmipwire.DestroyRequest{UniqueIdentifier: id})
	h.fails(exitKey, []string{id, "destroyed"}, "unlock", target)
	h.untouched()
}

// TestUnlockStaysInDatastores: neither a path nor a link leads the agent out of them.
func TestUnlockStaysInDatastores(t *testing.T) {
	t.Parallel()
	h := startHost(t)
	target := h.vm("web01", "scsi0:0")
	outside := filepath.Join(h.dir, "outside")
	if err := os.CopyFS(outside, os.DirFS(filepath.Dir(target))); err != nil {
		t.Fatal(err)
	}
	refused := func(path string) {
		t.Helper()
		for _, verb := range []string{"unlock", "lock"} {
			if verb == "unlock" || !strings.HasSuffix(path, "disk.vmx") { // a lock does not look at disks
				h.fails(exitFailure, []string{"not in a datastore", "symbolic link"}, verb, path)
			}
		}
	}
	refused(filepath.Join(outside, "web01.vmx"))
	refused(h.at("../outside/web01.vmx"))
	refused(h.at())
	refused("/etc/passwd")
	refused("/")
	link := func(to, from string) {
		t.Helper()
		if err := os.Symlink(to, from); err != nil {
			t.Fatal(err)
		}
	}
	link(outside, h.at("folder"))
	refused(h.at("folder/web01.vmx"))
	link("web01", h.at("inside")) // what does not lead out could be turned
	refused(h.at("inside/web01.vmx"))
	link("web01/web01.vmx", h.at("link.vmx"))
	refused(h.at("link.vmx"))

	status, answer := h.post("/v1/unlock", `{"vm":"/etc/passwd"}`)
	if f := failureOf(t, answer); status != 403 || f.ExitCode != exitFailure {
		t.Errorf("status %d: %s", status, answer)
	}
	good := read(t, target)
	for _, name := range []string{"../../outside/disk0.img", filepath.Join(outside, "disk0.img"), "link.img"} {
		if name == "link.img" {
			link("disk0.img", h.at("web01/link.img"))
		}
		write(t, h.at("web01/disk.vmx"), bytes.Replace(good, []byte(`"disk0.img"`), []byte(`"`+name+`"`), 1))
		refused(h.at("web01/disk.vmx"))
	}

	plain := filepath.Join(t.TempDir(), "disk.vmdk")
	execute(t, exec.Command(testtool.Need(t, "qemu-img"), "create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", plain, "1M"))
	disk := h.at("disk.vmdk")
	h.ok("encrypt", plain, "--output", disk)
	if err := os.Rename(h.at("disk-flat.vmdk"), filepath.Join(outside, "flat")); err != nil {
		t.Fatal(err)
	}
	link(filepath.Join(outside, "flat"), h.at("disk-flat.vmdk"))
	h.fails(exitFailure, []string{"disk-flat.vmdk", "not in a datastore", "symbolic link"}, "unlock", disk)
	h.untouched()
	for _, vm := range h.list() {
		if strings.Contains(vm.Descriptor, "folder") || strings.Contains(vm.Descriptor, "link.vmx") {
			t.Errorf("the list follows links: %s", vm.Descriptor)
		}
	}
}

// TestUnlockOddFiles: what is no file is not opened, and keeps nobody waiting.
func TestUnlockOddFiles(t *testing.T) {
	t.Parallel()
	h := startHost(t)
	target := h.vm("web01", "scsi0:0")
	odd := map[string]func(path string) error{
		"pipe":   func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"folder": func(path string) error { return os.Mkdir(path, 0o700) },
		"zero":   func(path string) error { return unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))) },
		"tty":    func(path string) error { return unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(5, 0))) },
		"socket": func(path string) error { return unix.Mknod(path, unix.S_IFSOCK|0o600, 0) },
		"sparse": func(path string) error {
			f, err := os.Create(path)
			if err != nil {
				return err
			}
			defer f.Close()
			return f.Truncate(1 << 40)
		},
	}
	good := read(t, target)
	for kind, make := range odd {
		descriptor, disk := h.at(kind+".vmx"), h.at("web01", kind)
		err := make(descriptor)
		if err == nil {
			err = make(disk)
		}
		if err != nil {
			t.Logf("no %s: %v", kind, err)
			continue
		}
		for _, path := range []string{descriptor, disk} {
			if r := h.run("unlock", path); r.code != exitTampered || !strings.Contains(r.stderr, kind) {
				t.Errorf("%s: exit code %d\n%s", path, r.code, r.stderr)
			}
		}
		write(t, h.at("web01/disk.vmx"), bytes.Replace(good, []byte(`"disk0.img"`), []byte(`"`+kind+`"`), 1))
		if r := h.run("unlock", h.at("web01/disk.vmx")); r.code == exitDone || !strings.Contains(r.stderr, kind) {
			t.Errorf("a disk that is a %s: exit code %d\n%s", kind, r.code, r.stderr)
		}
	}
	h.unlock(target)
	h.lock(target)
	h.untouched()
}
