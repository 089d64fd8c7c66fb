package diskserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/vmcrypt/vmcrypt/blockcrypt"
	"github.com/vmcrypt/vmcrypt/dek"
	"github.com/vmcrypt/vmcrypt/image"
	"github.com/vmcrypt/vmcrypt/internal/secret"
	"github.com/vmcrypt/vmcrypt/internal/testtool"
	"github.com/vmcrypt/vmcrypt/vmx"
)

// The test binary is another process where this variable names a role.
const roleVariable = "VMCRYPT_TEST_DISKSERVER_ROLE"

var roles = map[string]func() error{
	"server":  serveAsProcess,
	"starter": launchAndWait,
	"probe":   probe,
	"client":  clientAsProcess,
	"listen":  listenAsProcess,
}

const release = "1.2.3-test"

func TestMain(m *testing.M) {
	role, ok := roles[os.Getenv(roleVariable)]
	if !ok {
		os.Exit(m.Run())
	}
	if err := role(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func serveAsProcess() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer stop()
	return Run(ctx, release)
}

func roleCommand(role string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	cmd.Stderr = os.Stderr
	return cmd
}

// machine is a VM with disks of a repeated byte, each its own.
type machine struct {
	Start
	kek *secret.Buffer
}

const (
	testNodes = "scsi0:0 nvme0:1"
	testSize  = 2 << 20
)

// newMachine makes a VM and unlocks it as an agent does.
func newMachine(dir string) (*machine, error) {
	kek, err := secret.Random(kekSize)
	if err != nil {
		return nil, err
	}
	m := &machine{kek: kek, Start: Start{
		VM:         VM{Name: "büro", UUID: "56 4d 0b", Descriptor: filepath.Join(dir, "web01.vmx")},
		Directory:  filepath.Join(dir, "vm"),
		SocketUser: User{UID: uint32(os.Getuid()), GID: uint32(os.Getgid())},
	}}
	for i, node := range strings.Fields(testNodes) {
		if err := m.addDisk(dir, node, byte(i+1)); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// addDisk makes a disk full of content.
func (m *machine) addDisk(dir, node string, content byte) error {
	key, err := dek.New()
	if err != nil {
		return err
	}
	r := Record{
		State: vmx.StateEncrypted, DiskUUID: uuid.New(), Size: testSize, Cipher: vmx.CipherXTS,
		SectorSize: 512, Holes: string(blockcrypt.Preserve),
	}
	wrapped, err := dek.Wrap(key, m.kek, r.binding("kek-1"))
	if err != nil {
		return err
	}
	r.Recipients = []Recipient{{"Zürich", "kek-1", wrapped}}
	if r.MAC, err = dek.MAC(r.dekState(), key); err != nil {
		return err
	}
	path := filepath.Join(dir, strings.ReplaceAll(node, ":", "-")+".img")
	file, err := image.Create(path, testSize)
	if err != nil {
		return err
	}
	m.Disks = append(m.Disks, Unlocked{
		Disk: Disk{Node: node, Format: image.Raw, Path: path, DataPath: path, Record: r}, File: file, Key: key,
	})
	return m.Disks[len(m.Disks)-1].fill(content)
}

func (u *Unlocked) fill(content byte) error {
	cipher, err := blockcrypt.Engine{}.NewCipher(u.Key.Bytes(), u.Record.SectorSize)
	if err != nil {
		return err
	}
	defer cipher.Wipe()
	p := bytes.Repeat([]byte{content}, testSize)
	if err := cipher.Encrypt(p, p, 0); err != nil {
		return err
	}
	_, err = u.File.WriteAt(p, 0)
	return err
}

// closeFiles leaves the locks of the disks to the disk server.
func (m *machine) closeFiles() {
	for _, d := range m.Disks {
		d.File.Close()
	}
}

// lockUp ends what an agent has of the disks.
func (m *machine) lockUp() {
	m.closeFiles()
	for _, d := range m.Disks {
		d.Key.Destroy()
	}
}

func testMachine(t testing.TB) *machine {
	t.Helper()
	m, err := newMachine(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.lockUp()
		m.kek.Destroy()
	})
	return m
}

// launch starts a process that serves the machine, and ends it with the test. The
// channel is closed when it has ended.
func (m *machine) launch(t *testing.T) (*exec.Cmd, <-chan struct{}) {
	t.Helper()
	cmd := roleCommand("server")
	if err := Launch(t.Context(), cmd, &m.Start); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	ended := make(chan struct{})
	go func() {
		for syscall.Kill(pid, 0) == nil {
			time.Sleep(10 * time.Millisecond)
		}
		close(ended)
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		waitFor(t, ended)
	})
	return cmd, ended
}

// waitFor waits for something that has to happen.
func waitFor(t *testing.T, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("it does not happen")
	}
}

func connect(t *testing.T, directory string) *Client {
	t.Helper()
	c, err := Connect(t.Context(), directory)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// qemuIO has QEMU do something with a served disk.
func (m *machine) qemuIO(t *testing.T, node, command string, flags ...string) {
	t.Helper()
	uri := "nbd+unix:///" + node + "?socket=" + filepath.Join(m.Directory, node+socketSuffix)
	flags = append(flags, "-f", "raw", "-c", command, uri)
	out, err := exec.Command(testtool.Need(t, "qemu-io"), flags...).CombinedOutput()
	if err != nil || bytes.Contains(out, []byte("failed")) || bytes.Contains(out, []byte("rror")) {
		t.Fatalf("qemu-io %q: %v\n%s", command, err, out)
	}
}

// inUse reports whether somebody keeps us from a disk.
func (u *Unlocked) inUse(t *testing.T) bool {
	t.Helper()
	f, err := image.Open(u.Path, image.Raw, image.ReadOnly)
	if err == nil {
		f.Close()
	} else if !errors.Is(err, image.ErrInUse) {
		t.Fatal(err)
	}
	return err != nil
}

// unused checks that neither disks nor sockets are in use, nor there.
func (m *machine) unused(t *testing.T) {
	t.Helper()
	for _, d := range m.Disks {
		if d.inUse(t) {
			t.Errorf("disk %s is still in use", d.Node)
		}
	}
	entries, err := os.ReadDir(m.Directory)
	if err != nil || len(entries) > 0 {
		t.Errorf("left in the directory: %v, %v", entries, err)
	}
	if _, err := Connect(t.Context(), m.Directory); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("connect: %v", err)
	}
}

// launchAndWait is a starter that waits to be killed.
func launchAndWait() error {
	m, err := newMachine(os.Args[1])
	if err != nil {
		return err
	}
	if err := Launch(context.Background(), roleCommand("server"), &m.Start); err != nil {
		return err
	}
	fmt.Println("ready")
	select {}
}

// clientAsProcess sends a line to the control socket and prints what comes back.
func clientAsProcess() error {
	conn, err := net.Dial("unix", os.Args[1])
	if err != nil {
		return err
	}
	defer conn.Close()
	fmt.Fprintln(conn, `{"version":1,"op":"status"}`)
	var reply [4096]byte
	n, err := conn.Read(reply[:])
	os.Stdout.Write(reply[:n])
	return err
}

// listenAsProcess pretends to be a disk server.
func listenAsProcess() error {
	l, err := net.Listen("unix", os.Args[1])
	if err != nil {
		return err
	}
	fmt.Println("ready")
	_, err = l.Accept()
	return err
}
