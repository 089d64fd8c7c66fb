package main

import (
	"bufio"
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vmcrypt/vmcrypt/internal/testtool"
)

// TestBadTargets: a clear error that names the file, the right exit code, and
// nothing new in the folder.
func TestBadTargets(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	smallImage(t, at("disk.img"))
	h.ok("encrypt", at("disk.img"), "--output", at("enc.img"))
	h.ok("encrypt", at("disk.img"), "--output", at("short.img"))
	if err := os.Truncate(at("short.img"), 32<<10); err != nil {
		t.Fatal(err)
	}
	for _, link := range []string{"loop.img", "loop.vmx"} {
		if err := os.Symlink(link, at(link)); err != nil {
			t.Fatal(err)
		}
	}
	write(t, at("odd.img"), make([]byte, 1000))
	write(t, at("empty.img"), nil)
	smallImage(t, at("disk.qcow2"))
	write(t, at("nodisk.vmx"), []byte("displayName = \"x\"\n"))
	write(t, at("sparse.vmdk"), []byte("KDMV and so on"))
	if err := syscall.Mkfifo(at("pipe.img"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name  string
		code  int
		words []string
		args  []string
	}{
		{"no image", exitFailure, []string{"none.img"}, []string{"encrypt", at("none.img")}},
		{"no descriptor", exitTampered, []string{"none.vmx"}, []string{"decrypt", at("none.vmx")}},
		{"a folder", exitFailure, []string{dir, "folder"}, []string{"encrypt", dir}},
		{"a pipe", exitFailure, []string{"pipe.img", "named pipe"}, []string{"encrypt", at("pipe.img")}},
		{"symlink loop", exitFailure, []string{"loop.img", "symbolic links"}, []string{"encrypt", at("loop.img")}},
		{"descriptor loop", exitTampered, []string{"loop.vmx", "symbolic links"}, []string{"encrypt", at("loop.vmx")}},
		{"no whole sectors", exitFailure, []string{"odd.img", "512"}, []string{"encrypt", at("odd.img")}},
		{"empty", exitFailure, []string{"empty"}, []string{"encrypt", at("empty.img")}},
		{"no disks", exitTampered, []string{"nodisk.vmx"}, []string{"encrypt", at("nodisk.vmx")}},
		{"sparse VMDK", exitFailure, []string{"sparse.vmdk", "qemu-img convert"}, []string{"encrypt", at("sparse.vmdk"), "--output", at("out.vmdk")}},
		{"already encrypted", exitFailure, []string{"enc.img", "already encrypted"}, []string{"encrypt", at("enc.img")}},
		{"plain", exitTampered, []string{"disk.img.vmx is missing"}, []string{"decrypt", at("disk.img")}},
		{"cut short", exitTampered, []string{"short.img", "32768", "65536"}, []string{"decrypt", at("short.img")}},
		{"unknown alias", exitKey, []string{"elsewhere", "local"}, []string{"encrypt", at("disk.img"), "--kms", "elsewhere"}},
		{"unknown KEK", exitKey, []string{"no-such-key"}, []string{"encrypt", at("disk.img"), "--kek", "no-such-key"}},
		{"qcow2", exitFailure, []string{"disk.qcow2", "qemu-img"}, []string{"encrypt", at("disk.qcow2")}},
		{"bad sector size", exitUsage, []string{"1024"}, []string{"encrypt", at("disk.img"), "--sector-size", "1024"}},
		{"bad hole policy", exitUsage, []string{"keep"}, []string{"encrypt", at("disk.img"), "--holes", "keep"}},
		{"bad format", exitUsage, []string{"qcow2"}, []string{"encrypt", at("disk.img"), "--format", "qcow2"}},
		{"unknown flag", exitUsage, []string{"frobnicate"}, []string{"encrypt", at("disk.img"), "--frobnicate"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			h := &home{t, h.dir}
			unchanged(t, dir, func() {
				h.fails(test.code, test.words, append([]string{test.args[0], "--output", at("out.img")}, test.args[1:]...)...)
			})
		})
	}
}

func TestUsage(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	for _, args := range [][]string{
		{"frobnicate"}, {"kms", "frobnicate"}, {"encrypt"}, {"status"}, {"status", "a", "b"}, {"cat", "x"},
		{"rekey", "disk.img"}, {"encrypt", "disk.img", "--zone", "1000"}, {"kms", "backup"},
		{"encrypt", "disk.img", "--output", "x", "--abort"}, {"decrypt", "disk.img", "--output", "x", "--zone", "4096"}, {"init", "now"}, {"--nonsense"}, {"encrypt", "--sector-size", "x"},
	} {
		h.fails(exitUsage, []string{"vmcrypt"}, args...)
	}
	for _, args := range [][]string{{}, {"--help"}, {"encrypt", "--help"}, {"kms"}, {"kms", "serve", "--help"}, {"--version"}} {
		if h.ok(args...) == "" {
			t.Errorf("%v prints nothing", args)
		}
	}
}

func TestExistingOutputIsKept(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	smallImage(t, at("disk.img"))
	h.ok("encrypt", at("disk.img"), "--output", at("enc.img"))
	for _, existing := range []string{"out", "out.vmx"} {
		write(t, at(existing), []byte("precious"))
		unchanged(t, dir, func() {
			h.fails(exitFailure, []string{existing}, "encrypt", at("disk.img"), "--output", at("out"))
		})
		if string(read(t, at(existing))) != "precious" {
			t.Errorf("%s was overwritten", existing)
		}
		os.Remove(at(existing))
	}
	write(t, at("out"), []byte("precious"))
	h.fails(exitFailure, []string{"out"}, "decrypt", at("enc.img"), "--output", at("out"))
	h.fails(exitFailure, []string{"no folder", "no-such-folder"}, "decrypt", at("enc.img"), "--output", at("no-such-folder/out"))
}

func TestNoPermission(t *testing.T) {
	if !testtool.Unprivileged(t) {
		return
	}
	h := newHome(t)
	path := filepath.Join(t.TempDir(), "disk.img")
	smallImage(t, path)
	if err := os.Chmod(path, 0); err != nil {
		t.Fatal(err)
	}
	h.fails(exitFailure, []string{"disk.img", "permission"}, "encrypt", path, "--output", path+".enc")
}

func TestNoSpaceLeft(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can mount a small file system")
	}
	h := newHome(t)
	small := filepath.Join(t.TempDir(), "small")
	if err := os.Mkdir(small, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", small, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("mount a tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(small, syscall.MNT_DETACH) })
	path := filepath.Join(t.TempDir(), "disk.img")
	write(t, path, make([]byte, 4<<20))
	h.fails(exitFailure, []string{"no space left", "make room"}, "encrypt", path, "--output", filepath.Join(small, "enc.img"))
	if left := names(t, small); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	full := filepath.Join(small, "full.img")
	write(t, full, make([]byte, 1<<20-8192)) // what is left takes a lock, but no descriptor
	if err := os.WriteFile(filepath.Join(small, "rest"), make([]byte, 64<<10), 0o600); err == nil {
		t.Fatal("there is room")
	}
	r := h.run("encrypt", full)
	if r.code != exitFailure || !strings.HasSuffix(r.stderr, ": make room\n") {
		t.Errorf("exit code %d, %s", r.code, r.stderr)
	}
}

// openInQEMU has QEMU open a disk until it is told to leave.
func openInQEMU(t *testing.T, path string) (leave func()) {
	t.Helper()
	qemu := exec.Command(testtool.Need(t, "qemu-io"), "-f", "raw", path)
	in, err := qemu.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := qemu.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := qemu.Start(); err != nil {
		t.Fatal(err)
	}
	leave = sync.OnceFunc(func() {
		in.Close()
		if err := qemu.Wait(); err != nil {
			t.Errorf("qemu-io: %v", err)
		}
	})
	t.Cleanup(leave)
	if _, err := io.WriteString(in, "length\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return leave
}

func TestDiskInUse(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	path := filepath.Join(t.TempDir(), "disk.img")
	smallImage(t, path)
	openInQEMU(t, path)
	h.fails(exitInUse, []string{"disk.img", "in use"}, "encrypt", path, "--output", path+".enc")
	if got := h.ok("status", path); !strings.Contains(got, "plain") {
		t.Errorf("status of a disk in use: %q", got)
	}
}

// TestInterrupted ends an encryption half-way, as Ctrl-C does.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	testHalfWay(t, func(cmd *exec.Cmd, out io.ReadCloser) {
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Error(err)
		}
		go func() { _, _ = io.Copy(io.Discard, out) }()
	})
}

// TestNobodyReads closes the pipe that an encryption writes its progress to.
func TestNobodyReads(t *testing.T) {
	t.Parallel()
	testHalfWay(t, func(_ *exec.Cmd, out io.ReadCloser) { out.Close() })
}

// testHalfWay disturbs an encryption that would take long, and expects it to end
// and to leave nothing behind.
func testHalfWay(t *testing.T, disturb func(*exec.Cmd, io.ReadCloser)) {
	t.Helper()
	h := newHome(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "disk.img")
	write(t, path, nil)
	if err := os.Truncate(path, 8<<30); err != nil { // all hole, so that fill takes long
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := h.command(ctx, "encrypt", path, "--holes", "fill", "--json", "--output", path+".enc")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || !strings.Contains(line, `"progress"`) {
		t.Fatalf("%q, %v", line, err)
	}
	disturb(cmd, out)
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != exitFailure {
		t.Errorf("%v, want exit code %d", err, exitFailure)
	}
	if got := names(t, dir); len(got) != 1 {
		t.Errorf("left behind: %v", got)
	}
}

// TestKeyManagersThatAreNone: nothing at the address, or something else.
func TestKeyManagersThatAreNone(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	path := filepath.Join(t.TempDir(), "disk.img")
	smallImage(t, path)
	for name, answer := range map[string]func(net.Conn){
		"closes":  func(net.Conn) {},
		"garbage": func(c net.Conn) { _, _ = c.Write(make([]byte, 4096)); _, _ = io.Copy(io.Discard, c) },
		"http":    func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n") },
	} {
		t.Run(name, func(t *testing.T) {
			h := &home{t, h.dir}
			address := serve(t, answer)
			h.addAlias("odd", address)
			h.fails(exitNoKeyManager, []string{"odd", address}, "encrypt", path, "--kms", "odd", "--output", path+".enc")
			h.fails(exitNoKeyManager, []string{"odd"}, "kms", "status", "odd")
		})
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	h.addAlias("odd", l.Addr().String())
	h.fails(exitNoKeyManager, []string{"odd", "refused"}, "encrypt", path, "--kms", "odd", "--output", path+".enc")
}

// serve answers each connection until the test ends, and returns the address.
func serve(t *testing.T, answer func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); answer(c) }()
		}
	}()
	return l.Addr().String()
}

// addAlias configures a second alias at an address, with the certificates of the
// first.
func (h *home) addAlias(alias, address string) {
	h.t.Helper()
	h.configure(alias, address, "client.pem", "client.key", "ca.pem")
}

func (h *home) configure(alias, address, cert, key, ca string) {
	h.t.Helper()
	path := filepath.Join(h.dir, "config.yaml")
	text, _, _ := strings.Cut(string(read(h.t, path)), "\n  "+alias+":\n")
	write(h.t, path, []byte(text+"\n  "+alias+":\n    servers:\n      - address: "+address+
		"\n    clientCert: "+cert+"\n    clientKey: "+key+"\n    ca: "+ca+"\n"))
}

func TestBadConfiguration(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	path := filepath.Join(h.dir, "config.yaml")
	good := string(read(t, path))
	for name, test := range map[string]struct{ text, word string }{
		"unknown key":    {good + "colour: red\n", `unknown key "colour"`},
		"no YAML":        {"defaultAlias: [", "config.yaml"},
		"wrong type":     {"aliases: 7\n", "config.yaml: line 1"},
		"no servers":     {"aliases:\n  a: {}\n", "at least one"},
		"default alias":  {"defaultAlias: x\n", "defaultAlias"},
		"VM of a server": {"aliases:\n  a:\n    servers: [{address: \"a:1\", vm: web01}]\n", "neither a UUID nor"},
		"UUID of a VM":   {"aliases:\n  a:\n    servers: [{address: \"a:1\", vm: 564d0b11}]\n", "neither a UUID nor"},
		"no unit":        {"aliases:\n  a:\n    hedgeAfter: 2\n    servers: [{address: \"a:1\"}]\n", "config.yaml:3: 2 is a time without a unit: want 2s"},
		"half a key":     {"aliases:\n  a:\n    maxRate: 0.5\n    servers: [{address: \"a:1\"}]\n", "config.yaml:3: maxRate: 0.5 is no whole number"},
		"engine":         {"engine: fast\n", "engine"},
	} {
		t.Run(name, func(t *testing.T) {
			write(t, path, []byte(test.text))
			(&home{t, h.dir}).fails(exitFailure, []string{path, test.word}, "kms", "status")
		})
	}
	h.fails(exitFailure, []string{"none.yaml", "vmcrypt init"}, "kms", "status", "--config", "none.yaml")
}
