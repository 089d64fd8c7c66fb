package diskserver

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmcrypt/vmcrypt/dek"
	"github.com/vmcrypt/vmcrypt/image"
	"github.com/vmcrypt/vmcrypt/internal/secret"
	"github.com/vmcrypt/vmcrypt/internal/secret/secrettest"
	"github.com/vmcrypt/vmcrypt/internal/testtool"
)

// nobody is the user and group without any rights.
const nobody = 65534

// The life of a disk server, with its disks in the hand of QEMU.
func TestServes(t *testing.T) {
	m := testMachine(t)
	m.Disks[1].File.Close()
	var err error
	if m.Disks[1].File, err = image.Open(m.Disks[1].Path, image.Raw, image.ReadOnly); err != nil {
		t.Fatal(err)
	}
	m.Disks[1].ReadOnly = true
	cmd, ended := m.launch(t)
	m.closeFiles()
	if !m.Disks[0].inUse(t) {
		t.Error("the disk is free while it is served")
	}
	m.qemuIO(t, "scsi0:0", "read -P 1 0 2M")
	m.qemuIO(t, "nvme0:1", "read -P 2 0 2M", "-r")
	m.qemuIO(t, "scsi0:0", "write -P 7 1M 4k")

	client := connect(t, m.Directory)
	st, err := client.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if st.VM != m.VM || st.PID != cmd.Process.Pid || st.Release != release || time.Since(st.Since).Abs() > time.Hour {
		t.Errorf("status: %+v", st)
	}
	first, second := st.Disks[0], st.Disks[1]
	if first.Node != "scsi0:0" || first.Socket != m.Directory+"/scsi0:0.sock" || first.ReadOnly || !second.ReadOnly ||
		first.BytesRead < 2<<20 || first.BytesWritten != 4096 || second.BytesWritten != 0 {
		t.Errorf("status of the disks: %+v", st.Disks)
	}

	failed, err := client.Stop(t.Context())
	if err != nil || len(failed) > 0 {
		t.Fatalf("stop: %v, %v", failed, err)
	}
	m.unused(t)
	waitFor(t, ended)
	checkContent(t, &m.Disks[0], 1<<20, 7)
	checkContent(t, &m.Disks[0], 1<<20+4096, 1)
}

// checkContent decrypts the byte at an offset of a disk that is not served.
func checkContent(t *testing.T, u *Unlocked, offset int64, want byte) {
	t.Helper()
	file, err := image.Open(u.Path, image.Raw, image.ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	key, err := secret.New(dek.Size)
	if err != nil {
		t.Fatal(err)
	}
	copy(key.Bytes(), u.Key.Bytes())
	s := &server{}
	handed, err := file.Handover()
	if err != nil {
		t.Fatal(err)
	}
	file.Close()
	readOnly := u.Disk
	readOnly.ReadOnly = true
	plain, err := s.open(&readOnly, handed, key)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	defer key.Destroy()
	var got [1]byte
	if _, err := plain.ReadAt(got[:], offset); err != nil || got[0] != want {
		t.Errorf("byte %d is %d, not %d: %v", offset, got[0], want, err)
	}
}

// Other programs are refused the disk, though the agent is no more.
func TestOutlivesItsStarter(t *testing.T) {
	dir := t.TempDir()
	m := &machine{Start: Start{Directory: filepath.Join(dir, "vm")}}
	starter := roleCommand("starter", dir)
	out, err := starter.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := starter.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	starter.Process.Kill()
	_ = starter.Wait() // it was killed
	if line != "ready\n" {
		t.Fatalf("the starter said %q", line)
	}

	client := connect(t, m.Directory)
	st, err := client.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	process, err := os.FindProcess(st.PID)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { process.Kill() })
	for _, sig := range []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGPIPE} {
		if err := process.Signal(sig); err != nil {
			t.Fatal(err)
		}
	}
	description, err := client.Describe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m.qemuIO(t, "scsi0:0", "read -P 1 0 1M")
	for _, d := range description.Disks {
		m.Disks = append(m.Disks, Unlocked{Disk: d})
		refusedByQEMU(t, d.Path)
	}

	if err := process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		if _, err = client.Status(t.Context()); err != nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err == nil {
		t.Fatal("it serves on")
	}
	m.unused(t)
}

func refusedByQEMU(t *testing.T, path string) {
	t.Helper()
	for _, args := range [][]string{{"qemu-img", "map", "-f", "raw", path}, {"qemu-io", "-f", "raw", "-c", "read 0 512", path}} {
		out, err := exec.Command(testtool.Need(t, args[0]), args[1:]...).CombinedOutput()
		if err == nil || !bytes.Contains(out, []byte("lock")) {
			t.Errorf("%v: %v\n%s", args, err, out)
		}
	}
}

// What a lost descriptor held can be written again, and the KEK of another key
// manager opens the disk.
func TestSavesWhatWasLost(t *testing.T) {
	m := testMachine(t)
	m.launch(t)
	client := connect(t, m.Directory)
	got, err := client.Describe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := &Description{VM: m.VM, Disks: []Disk{m.Disks[0].Disk, m.Disks[1].Disk}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("described\n%+v, not\n%+v", got, want)
	}
	other, err := secret.Random(kekSize)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Destroy()
	for _, d := range m.Disks {
		recipient, err := client.Rewrap(t.Context(), d.Node, "Genève", "kek-2", other)
		if err != nil {
			t.Fatal(err)
		}
		key, err := dek.Unwrap(recipient.WrappedKey, other, d.Record.binding("kek-2"))
		if err != nil {
			t.Fatal(err)
		}
		if !key.Equal(d.Key) || recipient.Alias != "Genève" || recipient.KEKID != "kek-2" {
			t.Errorf("rewrapped %s: %+v", d.Node, recipient)
		}
		key.Destroy()
	}
	_, err = client.Rewrap(t.Context(), "scsi9:9", "a", "b", other)
	if refused := (*Error)(nil); !errors.As(err, &refused) || refused.Code != CodeNoDisk {
		t.Errorf("rewrap of no disk: %v", err)
	}
}

func TestNoKeyStaysWithTheStarter(t *testing.T) {
	m := testMachine(t)
	m.launch(t)
	for _, d := range m.Disks {
		if traces := secrettest.Traces(t, d.Key); len(traces) > 0 {
			t.Errorf("disk %s: %v", d.Node, traces)
		}
	}
}

func TestReplacesADeadServer(t *testing.T) {
	m := testMachine(t)
	if os.Getuid() == 0 {
		m.SocketUser = User{nobody, nobody}
	}
	cmd, ended := m.launch(t)
	cmd.Process.Kill()
	waitFor(t, ended)
	if entries, _ := os.ReadDir(m.Directory); len(entries) != 3 {
		t.Fatalf("it did not leave its sockets: %v", entries)
	}
	m.launch(t)
	m.qemuIO(t, "scsi0:0", "read -P 1 0 1M")
}

// What the process refuses, the starter hears, and all is as before.
func TestLaunchFails(t *testing.T) {
	for name, test := range map[string]struct {
		spoil func(m *machine)
		want  string
	}{
		"key": {func(m *machine) { m.Disks[0].Key.Bytes()[5] ^= 1 }, "tampered"},
		"equal halves": {func(m *machine) {
			d := &m.Disks[0]
			copy(d.Key.Bytes()[32:], d.Key.Bytes()[:32])
			d.Record.MAC, _ = dek.MAC(d.Record.dekState(), d.Key)
		}, "equal"},
		"size":      {func(m *machine) { m.Disks[1].Record.Size += 512 }, "tampered"},
		"read-only": {func(m *machine) { m.Disks[1].ReadOnly = true }, "mode"},
		"directory": {func(m *machine) { m.Directory += "/missing/vm" }, "no such file"},
		"long path": {func(m *machine) { m.Directory += strings.Repeat("x", 100) }, "107 bytes"},
		"engine":    {func(m *machine) { m.Engine = "enigma" }, "enigma"},
		"no disks":  {func(m *machine) { m.Disks = nil }, "no disks"},
		"lock that is a link": {func(m *machine) {
			_ = os.Symlink("/etc/motd", m.Directory+lockSuffix)
		}, "symbolic links"},
	} {
		t.Run(name, func(t *testing.T) {
			m := testMachine(t)
			test.spoil(m)
			cmd := roleCommand("server")
			cmd.Stderr = nil
			err := Launch(t.Context(), cmd, &m.Start)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("launch: %v", err)
			}
			if err == nil || cmd.ProcessState == nil {
				t.Error("the process lives")
				cmd.Process.Kill()
			}
		})
	}
}

// Two servers of one directory would take each other's sockets away.
func TestOneServerPerDirectory(t *testing.T) {
	m := testMachine(t)
	m.launch(t)
	other := testMachine(t)
	other.Directory = m.Directory
	cmd := roleCommand("server")
	cmd.Stderr = nil
	if err := Launch(t.Context(), cmd, &other.Start); err == nil || !strings.Contains(err.Error(), "another disk server") {
		t.Errorf("launch: %v", err)
	}
	connect(t, m.Directory)
}

func TestLaunchNotices(t *testing.T) {
	m := testMachine(t)
	if err := Launch(t.Context(), exec.Command("true"), &m.Start); err == nil || !strings.Contains(err.Error(), "ended") {
		t.Errorf("a program that ends: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := Launch(ctx, exec.Command("sleep", "60"), &m.Start); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a program that says nothing: %v", err)
	}
	if err := Launch(t.Context(), exec.Command("/missing"), &m.Start); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no program: %v", err)
	}
}

// startByHand is Launch without the answer.
func (m *machine) startByHand(t *testing.T) (*exec.Cmd, *launch) {
	t.Helper()
	cmd := roleCommand("server")
	cmd.Stderr = nil
	l, err := newLaunch(cmd, &m.Start)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.close)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	l.closeTheirs()
	return cmd, l
}

func TestExitCode(t *testing.T) {
	for name, end := range map[string]func(m *machine, cmd *exec.Cmd) error{
		"stop": func(m *machine, _ *exec.Cmd) error {
			_, err := connect(t, m.Directory).Stop(t.Context())
			return err
		},
		"SIGTERM": func(_ *machine, cmd *exec.Cmd) error { return cmd.Process.Signal(syscall.SIGTERM) },
	} {
		m := testMachine(t)
		cmd, l := m.startByHand(t)
		if err := l.talk(t.Context(), &m.Start); err != nil {
			t.Fatal(err)
		}
		if err := end(m, cmd); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		m.closeFiles()
		m.unused(t)
	}
}

// A process that nobody knows of does not keep the keys.
func TestStarterIsGone(t *testing.T) {
	m := testMachine(t)
	cmd, l := m.startByHand(t)
	l.answer.Close()
	if err := m.send(l.start); err != nil {
		t.Fatal(err)
	}
	l.start.Close()
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 1 {
		t.Error(err)
	}
	m.closeFiles()
	m.unused(t)
}

// Without what the agent hands over it says what is missing.
func TestRunByHand(t *testing.T) {
	cmd := roleCommand("server")
	cmd.Stderr = nil
	out, err := exec.Command("env", cmd.Env[len(cmd.Env)-1], os.Args[0]).CombinedOutput()
	if err == nil || !bytes.Contains(out, []byte("the agent starts this")) {
		t.Errorf("%v\n%s", err, out)
	}
}

// The sockets are for QEMU's user, control is for root.
func TestOwners(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give sockets away")
	}
	m := testMachine(t)
	m.SocketUser = User{nobody, nobody}
	m.launch(t)
	m.closeFiles()
	for name, want := range map[string]string{
		"":             "drwx------ 65534 65534",
		"scsi0:0.sock": "Srw------- 65534 65534",
		"control.sock": "Srw------- 0 0",
	} {
		info, err := os.Stat(filepath.Join(m.Directory, name))
		if err != nil {
			t.Fatal(err)
		}
		st := info.Sys().(*syscall.Stat_t)
		if got := fmt.Sprintf("%v %d %d", info.Mode(), st.Uid, st.Gid); got != want {
			t.Errorf("%q: %s, not %s", name, got, want)
		}
	}
	// It can remove its sockets from a directory that is not its own.
	if failed, err := connect(t, m.Directory).Stop(t.Context()); err != nil || len(failed) > 0 {
		t.Errorf("stop: %v, %v", failed, err)
	}
	m.unused(t)
}

// asNobody runs a role as nobody.
func asNobody(role string, args ...string) *exec.Cmd {
	cmd := roleCommand(role, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	return cmd
}

func TestPeers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can be two users")
	}
	m := testMachine(t)
	m.launch(t)
	control := filepath.Join(m.Directory, controlSocket)
	for path := control; path != "/"; path = filepath.Dir(path) {
		if err := os.Chmod(path, 0o777); err != nil {
			t.Fatal(err)
		}
		if path == os.TempDir() {
			break
		}
	}
	out, _ := asNobody("client", control).Output()
	if !bytes.Contains(out, []byte(CodeDenied)) {
		t.Errorf("to nobody the server said %q", out)
	}
	if err := os.Remove(control); err != nil {
		t.Fatal(err)
	}
	impostor := asNobody("listen", control)
	said, err := impostor.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := impostor.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = impostor.Wait() }() // it has nothing to say
	defer impostor.Process.Kill()
	if line, _ := bufio.NewReader(said).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the impostor said %q", line)
	}
	if _, err := Connect(t.Context(), m.Directory); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("connect to an impostor: %v", err)
	}
}

// A socket that was moved leads to another VM.
func TestMovedSocket(t *testing.T) {
	m, other := testMachine(t), testMachine(t)
	m.launch(t)
	other.launch(t)
	err := os.Rename(filepath.Join(m.Directory, controlSocket), filepath.Join(other.Directory, controlSocket))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Connect(t.Context(), other.Directory); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("connect: %v", err)
	}
}
