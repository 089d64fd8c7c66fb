package main

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmcrypt/vmcrypt/image"
	"github.com/vmcrypt/vmcrypt/internal/testtool"
	"github.com/vmcrypt/vmcrypt/vmx"
)

// serving is a running "vmcrypt serve".
type serving struct {
	t      *testing.T
	uri    string
	cmd    *exec.Cmd
	stderr bytes.Buffer
	ended  chan struct{}
}

// hang is longer than anything here takes.
const hang = time.Minute

// serve starts "vmcrypt serve", which must listen.
func (h *home) serve(args ...string) *serving {
	h.t.Helper()
	s := &serving{t: h.t, ended: make(chan struct{})}
	s.cmd = h.command(context.Background(), append([]string{"serve", "--json"}, args...)...)
	s.cmd.Stderr = &s.stderr
	stdout, err := s.cmd.StdoutPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	first := make(chan string, 1)
	go s.attend(stdout, first)
	h.t.Cleanup(func() {
		_ = s.cmd.Process.Kill() // it may have ended
		<-s.ended
	})
	select {
	case line := <-first:
		s.listens(line)
	case <-time.After(hang):
		h.t.Fatal("vmcrypt serve does not listen")
	}
	return s
}

// attend hands over the first line, and waits for the end.
func (s *serving) attend(stdout io.Reader, first chan<- string) {
	r := bufio.NewReader(stdout)
	line, _ := r.ReadString('\n')
	first <- line
	_, _ = io.Copy(io.Discard, r)
	_ = s.cmd.Wait() // how it ended is in cmd
	close(s.ended)
}

func (s *serving) listens(line string) {
	s.t.Helper()
	if line == "" {
		<-s.ended
		s.t.Fatalf("%v: %v\n%s", s.cmd.Args, s.cmd.ProcessState, s.stderr.String())
	}
	event := parseJSON[struct{ Type, URI string }](s.t, line)
	if event.Type != "listening" {
		s.t.Fatalf("it says %q first", line)
	}
	s.uri = event.URI
}

// wait waits for the end, and gives the exit code.
func (s *serving) wait() int {
	s.t.Helper()
	select {
	case <-s.ended:
	case <-time.After(hang):
		s.t.Fatal("vmcrypt serve does not end")
	}
	return s.cmd.ProcessState.ExitCode()
}

// stop ends it as an administrator does; all must be well.
func (s *serving) stop() {
	s.t.Helper()
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // if it ended, that shows
	if code := s.wait(); code != exitDone {
		s.t.Fatalf("exit code %d\n%s", code, s.stderr.String())
	}
}

// socketIn gives a path for a socket. Those of a test's own folder may be too long.
func socketIn(t *testing.T, name string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, name)
}

// encryptedImage makes a small image and its encrypted copy, and gives their paths.
func (h *home) encryptedImage(flags ...string) (plain, encrypted string) {
	h.t.Helper()
	dir := h.t.TempDir()
	plain, encrypted = filepath.Join(dir, "plain.img"), filepath.Join(dir, "disk.img")
	smallImage(h.t, plain)
	h.ok(append([]string{"encrypt", plain, "--output", encrypted}, flags...)...)
	return plain, encrypted
}

// qemuIO has QEMU work on a served disk, and tells whether it could.
func qemuIO(t *testing.T, uri string, commands ...string) (output string, ok bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), hang)
	defer cancel()
	args := []string{"-f", "raw", uri}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	out, err := exec.CommandContext(ctx, testtool.Need(t, "qemu-io"), args...).CombinedOutput()
	bad := bytes.Contains(out, []byte("failed")) || bytes.Contains(out, []byte("rror"))
	return string(out), err == nil && !bad
}

// TestServe has QEMU change a disk. What it wrote is on the disk, and in the disk's
// file only encrypted.
func TestServe(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	for name, flags := range map[string][]string{"512": nil, "4096": {"--sector-size", "4096", "--holes", "fill"}} {
		t.Run(name, func(t *testing.T) {
			h := &home{t, h.dir}
			plain, encrypted := h.encryptedImage(flags...)
			socket := socketIn(t, "disk.sock")
			s := h.serve(encrypted, "--socket", socket)
			checkSocket(t, socket)
			if want := "nbd+unix:///scsi0:0?socket=" + socket; s.uri != want {
				t.Errorf("served at %q, want %q", s.uri, want)
			}
			if out, ok := qemuIO(t, s.uri, "write -P 0x5a 5000 3000", "read -P 0x5a 5000 3000"); !ok {
				t.Fatal(out)
			}
			h.fails(exitInUse, []string{encrypted, "in use"}, "cat", encrypted, "/x")
			s.stop()
			if got := names(t, filepath.Dir(socket)); len(got) > 0 {
				t.Errorf("it left %v", got)
			}
			want := read(t, plain)
			copy(want[5000:], bytes.Repeat([]byte{0x5a}, 3000))
			checkContent(t, h, encrypted, want)
			if bytes.Contains(read(t, encrypted), bytes.Repeat([]byte{0x5a}, 16)) {
				t.Error("what was written stands in the file")
			}
		})
	}
}

// checkSocket looks that only its owner can connect.
func checkSocket(t *testing.T, path string) {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("the socket is %v, %v", info, err)
	}
}

// checkContent decrypts an image, which must be what is wanted.
func checkContent(t *testing.T, h *home, encrypted string, want []byte) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "decrypted")
	h.ok("decrypt", encrypted, "--output", out)
	if !bytes.Equal(read(t, out), want) {
		t.Error("the disk has other content than it should")
	}
}

// TestServeReadOnly: nobody changes the disk, and several may read it.
func TestServeReadOnly(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	plain, encrypted := h.encryptedImage()
	before := sum(t, encrypted)
	s := h.serve(encrypted, "--socket", socketIn(t, "a"), "--read-only")
	other := h.serve(encrypted, "--socket", socketIn(t, "b"), "--read-only")
	for _, at := range []string{s.uri, other.uri} {
		if out, ok := qemuIO(t, at, "write 0 512"); ok {
			t.Errorf("QEMU wrote:\n%s", out)
		}
	}
	info := execute(t, exec.Command(testtool.Need(t, "nbdinfo"), "--json", "--no-content", s.uri))
	exports := parseJSON[struct {
		Exports []struct {
			Name     string `json:"export-name"`
			Size     int64  `json:"export-size"`
			ReadOnly bool   `json:"is_read_only"`
		}
	}](t, string(info)).Exports
	if len(exports) != 1 || exports[0].Name != "scsi0:0" || exports[0].Size != 64<<10 || !exports[0].ReadOnly {
		t.Errorf("nbdinfo sees %+v", exports)
	}
	checkContent(t, h, encrypted, read(t, plain))
	h.fails(exitInUse, nil, "serve", encrypted, "--socket", socketIn(t, "c"))
	s.stop()
	other.stop()
	if sum(t, encrypted) != before {
		t.Error("the disk was changed")
	}
}

// TestServeOddNames: the URI leads to whatever socket there is.
func TestServeOddNames(t *testing.T) {
	t.Parallel()
	nbdinfo := testtool.Need(t, "nbdinfo")
	h := newHome(t)
	_, encrypted := h.encryptedImage()
	for _, name := range []string{"a b", "50%41", "q?x=1&y=2#z", "a+b", "@abstract", "Plattengröße", "x\"'\\y"} {
		socket := socketIn(t, name)
		s := h.serve(encrypted, "--socket", socket)
		checkSocket(t, socket)
		execute(t, exec.Command(nbdinfo, s.uri))
		if out, ok := qemuIO(t, s.uri, "read 0 512"); !ok {
			t.Errorf("%s: %s", s.uri, out)
		}
		u, err := url.Parse(s.uri)
		if err != nil || u.Query().Get("socket") != socket {
			t.Errorf("%s, %v: want %s", s.uri, err, socket)
		}
		s.stop()
	}
}

// TestServeRelativeSocket: clients may run in another folder, and a name that begins
// with @ is a file's all the same.
func TestServeRelativeSocket(t *testing.T) {
	h := newHome(t)
	_, encrypted := h.encryptedImage()
	socket := socketIn(t, "@here")
	t.Chdir(filepath.Dir(socket))
	s := h.serve(encrypted, "--socket", "@here")
	checkSocket(t, socket)
	if want := "nbd+unix:///scsi0:0?socket=" + filepath.Dir(socket) + "/%40here"; s.uri != want {
		t.Errorf("served at %s, want %s", s.uri, want)
	}
	s.stop()
}

// TestServeForPeople: the URI is in the text, too.
func TestServeForPeople(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	_, encrypted := h.encryptedImage()
	socket := socketIn(t, "s")
	cmd := h.command(t.Context(), "serve", encrypted, "--socket", socket)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || !strings.HasSuffix(line, " nbd+unix:///scsi0:0?socket="+socket+"\n") {
		t.Errorf("it says %q, %v", line, err)
	}
	_ = cmd.Process.Signal(os.Interrupt) // if it ended, that shows
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// TestServeUsage: what can't be meant is refused before anything is done.
func TestServeUsage(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	at := vm(t, threeDisks, "a.img", "b.img", "c.img")
	h.ok("encrypt", at("vm/vm.vmx"), "--output", at("enc"))
	target, socket := at("enc/vm.vmx"), socketIn(t, "s")
	for _, c := range []struct{ word, args string }{
		{"--socket", target},
		{"107", target + " --disk scsi0:0 --socket /" + strings.Repeat("x", 107)},
		{"several", target + " --socket " + socket},
		{"scsi0:9", target + " --disk scsi0:9 --socket " + socket},
		{"one disk", target + " --disk scsi0:0 --disk scsi0:1 --socket " + socket},
		{"TARGET", "--socket " + socket},
	} {
		h.fails(exitUsage, []string{c.word}, append([]string{"serve"}, strings.Fields(c.args)...)...)
	}
	s := h.serve(target, "--disk", "scsi0:1", "--socket", socket)
	if !strings.HasPrefix(s.uri, "nbd+unix:///scsi0:1?") {
		t.Error(s.uri)
	}
	s.stop()
}

// TestServeRefuses: what is no encrypted disk, or not only ours, is not served, and
// no socket is left.
func TestServeRefuses(t *testing.T) {
	h := newHome(t)
	plain, encrypted := h.encryptedImage()
	socket := socketIn(t, "s")
	refused := func(code int, words []string, target string) {
		t.Helper()
		h.fails(code, words, "serve", target, "--socket", socket)
		if got := names(t, filepath.Dir(socket)); len(got) > 0 {
			t.Errorf("it left %v", got)
		}
	}
	refused(exitTampered, []string{plain, "plain"}, plain) // or a descriptor is lost
	at := vm(t, threeDisks[:strings.Index(threeDisks, "\n")+1], "a.img")
	refused(exitFailure, []string{"scsi0:0", "plain"}, at("vm/vm.vmx"))

	f, err := image.Open(encrypted, image.Raw, image.ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	refused(exitInUse, []string{encrypted}, encrypted)
	f.Close()

	descriptor := encrypted + ".vmx"
	write(t, descriptor, unfinished(t, read(t, descriptor), "scsi0:0", vmx.StateRekeying))
	refused(exitUnfinished, []string{encrypted, "rekey"}, encrypted)
}

// TestServeNotInPlaceOf: what is at the socket's path stays, unless it is a socket
// that a dead server left.
func TestServeNotInPlaceOf(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	_, encrypted := h.encryptedImage()
	_, second := h.encryptedImage()
	path := socketIn(t, "s")
	refused := func(words ...string) {
		t.Helper()
		unchanged(t, filepath.Dir(path), func() {
			h.fails(exitFailure, append(words, path), "serve", encrypted, "--socket", path)
		})
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	write(t, path, []byte("a file"))
	refused("no socket")
	if err := os.Symlink("nowhere", path); err != nil {
		t.Fatal(err)
	}
	refused("no socket")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	refused("no socket")
	datagrams, err := net.ListenPacket("unixgram", path)
	if err != nil {
		t.Fatal(err)
	}
	defer datagrams.Close()
	refused("can't be told")

	s := h.serve(second, "--socket", path)
	h.fails(exitFailure, []string{path, "listens"}, "serve", encrypted, "--socket", path)
	if out, ok := qemuIO(t, s.uri, "read 0 512"); !ok {
		t.Error(out)
	}
	if err := s.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	s.wait()
	checkSocket(t, path) // it is still there
	h.serve(encrypted, "--socket", path).stop()
}

// TestServeFlushFails: who ends it hears that what was written may be lost.
func TestServeFlushFails(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	_, encrypted := h.encryptedImage()
	cmd := h.command(t.Context(), "serve", encrypted, "--socket", socketIn(t, "s"))
	r, w := io.Pipe()
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = w, &stderr
	go func() {
		_, _ = bufio.NewReader(r).ReadString('\n') // if that fails, the process has ended
		_ = cmd.Process.Signal(syscall.SIGTERM)    // likewise
	}()
	flushed := false
	supervise(t, cmd, func(c fileCall) verdict {
		if c.path == encrypted && (c.name == "fsync" || c.name == "fdatasync") {
			flushed = true
			return failed(unix.EIO)
		}
		return verdict{}
	})
	if code := cmd.ProcessState.ExitCode(); code != exitFailure || !flushed || !strings.Contains(stderr.String(), "flush") {
		t.Errorf("exit code %d, flushed: %v\n%s", code, flushed, stderr.String())
	}
}
