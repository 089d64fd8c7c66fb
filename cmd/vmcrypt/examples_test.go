package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/vmcrypt/vmcrypt/internal/testtool"
	"github.com/vmcrypt/vmcrypt/testimages"
)

// What the documents and the examples name: a VM, and where its sockets are.
const (
	exampleVM     = "/var/lib/libvirt/images/web01/web01.vmx"
	exampleFolder = "/run/vmcrypt/vms/0146bd2209c640d9"
)

const examplesFolder = "../../packaging/examples"

// TestExampleFolder: what the documents say of a folder's name is right.
func TestExampleFolder(t *testing.T) {
	t.Parallel()
	sum := sha256.Sum256([]byte(exampleVM))
	if got := "/run/vmcrypt/vms/" + hex.EncodeToString(sum[:8]); got != exampleFolder {
		t.Errorf("the folder of %s is %s", exampleVM, got)
	}
	for _, path := range []string{"../../docs/qemu.md", "../../docs/vhost-user-blk.md",
		examplesFolder + "/qemu/web01.env", examplesFolder + "/vhost-user-blk/web01.env"} {
		text := string(read(t, path))
		if strings.Count(text, "/run/vmcrypt/vms/") != strings.Count(text, exampleFolder) || !strings.Contains(text, exampleFolder) {
			t.Errorf("%s names another folder than %s", path, exampleFolder)
		}
	}
}

// TestExampleUnits has systemd find nothing wrong with the units.
func TestExampleUnits(t *testing.T) {
	t.Parallel()
	analyze := testtool.Need(t, "systemd-analyze")
	for _, program := range []string{"qemu-system-x86_64", "qemu-storage-daemon", "socat"} {
		testtool.Need(t, program)
	}
	dir := t.TempDir()
	write(t, filepath.Join(dir, "vmcrypt-agent.service"), []byte("[Service]\nExecStart=/bin/true\n"))
	for _, path := range exampleUnits(t) {
		unit := bytes.ReplaceAll(read(t, path), []byte("/usr/bin/vmcrypt"), []byte("/bin/true")) // it may not be installed
		to := filepath.Join(dir, filepath.Base(path))
		write(t, to, unit)
		if out := execute(t, exec.Command(analyze, "verify", "--man=no", "--recursive-errors=yes", to)); len(out) > 0 {
			t.Errorf("%s: %s", path, out)
		}
	}
}

func exampleUnits(t *testing.T) []string {
	t.Helper()
	units, err := filepath.Glob(examplesFolder + "/*/*.service")
	if err != nil || len(units) != 2 {
		t.Fatal(units, err)
	}
	return units
}

// exampleHost is a host with the VM of the examples, whose paths are others.
type exampleHost struct {
	*host
	descriptor, disk string
	paths            *strings.Replacer
}

func startExampleHost(t *testing.T, plain string) *exampleHost {
	t.Helper()
	h := &exampleHost{host: startHost(t)}
	h.descriptor, h.disk = h.guestVM(plain)
	h.paths = strings.NewReplacer(
		exampleVM, h.descriptor,
		exampleFolder, directoryOf(h.unlock(h.descriptor)),
		"/run/vmcrypt-vhost", filepath.Join(h.dir, "run/vmcrypt-vhost"),
		"/var/backups", h.dir,
		"accel=kvm", "accel=tcg", "-cpu host", "-cpu max",
	)
	h.lock(h.descriptor)
	return h
}

// program is how a program of an example is started here.
func (h *exampleHost) program(words []string) *exec.Cmd {
	h.t.Helper()
	switch name := filepath.Base(words[0]); name {
	case "vmcrypt":
		return h.command(h.t.Context(), words[1:]...)
	case "sh":
		return exec.CommandContext(h.t.Context(), words[0], words[1:]...)
	default:
		return exec.CommandContext(h.t.Context(), testtool.Need(h.t, name), words[1:]...)
	}
}

// run runs a program of an example, which must succeed.
func (h *exampleHost) run(words []string) {
	h.t.Helper()
	execute(h.t, h.program(words))
}

// section gives the commands that a section of a document begins with.
func (h *exampleHost) section(document, heading string) (commands [][]string) {
	h.t.Helper()
	_, text, _ := strings.Cut(string(read(h.t, "../../docs/"+document)), "\n## "+heading+"\n")
	_, text, _ = strings.Cut(text, "\n```sh\n")
	text, _, ok := strings.Cut(text, "```\n")
	if !ok {
		h.t.Fatalf("%s has no commands in %q", document, heading)
	}
	for line := range strings.Lines(strings.ReplaceAll(text, "\\\n", "")) {
		commands = append(commands, quotedWords(h.paths.Replace(line)))
	}
	return commands
}

// quotedWords splits a line as a shell and systemd do, where nothing is escaped but a
// double quote within such quotes.
func quotedWords(line string) (words []string) {
	for _, word := range regexp.MustCompile(`"(?:[^"\\]|\\.)*"|'[^']*'|[^\s"']+`).FindAllString(line, -1) {
		if quote := word[0]; quote == '"' || quote == '\'' {
			word = word[1 : len(word)-1]
			if quote == '"' {
				word = strings.ReplaceAll(word, `\"`, `"`)
			}
		}
		words = append(words, word)
	}
	return words
}

// unit is the example of a systemd unit, started by hand.
type unit struct {
	*exampleHost
	text        string
	variables   map[string]string
	specifiers  *strings.Replacer
	runtimeHere string // what /run is for it
}

// exampleUnit reads a unit and its environment.
func (h *exampleHost) exampleUnit(folder, name string) *unit {
	h.t.Helper()
	folder = filepath.Join(examplesFolder, folder)
	text := string(read(h.t, filepath.Join(folder, name+"@.service")))
	u := &unit{exampleHost: h, text: strings.ReplaceAll(text, "\\\n", ""), variables: map[string]string{}}
	u.runtimeHere = filepath.Join(h.dir, "run")
	u.specifiers = strings.NewReplacer("%i", "web01", "%n", name+"@web01.service", "%t", u.runtimeHere)
	if err := os.MkdirAll(filepath.Join(u.runtimeHere, name, "web01"), 0o700); err != nil {
		h.t.Fatal(err)
	}
	environment := strings.ReplaceAll(string(read(h.t, filepath.Join(folder, "web01.env"))), "\\\n", "")
	for _, m := range regexp.MustCompile(`(?m)^([A-Z]+)=(.*)$`).FindAllStringSubmatch(environment, -1) {
		u.variables[m[1]] = h.paths.Replace(strings.Trim(m[2], `"`))
	}
	return u
}

// words are those of a command of the unit, as systemd.service(5) makes them.
func (u *unit) words(key string) (words []string) {
	u.t.Helper()
	m := regexp.MustCompile(`(?m)^` + key + `=[-+]*(.*)$`).FindStringSubmatch(u.text)
	if m == nil {
		u.t.Fatalf("the unit has no %s", key)
	}
	for _, word := range quotedWords(m[1]) {
		if value, ok := u.variables[strings.TrimPrefix(word, "$")]; ok && word[0] == '$' {
			words = append(words, strings.Fields(value)...)
			continue
		}
		words = append(words, os.Expand(u.specifiers.Replace(word), func(name string) string { return u.variables[name] }))
	}
	return words
}

// do runs a command of the unit.
func (u *unit) do(key string) {
	u.t.Helper()
	u.run(u.words(key))
}

// bootImage makes the disk whose program says something, writes something and turns the
// machine off.
func bootImage(t *testing.T) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "boot.img")
	if err := testimages.Boot(path, 1); err != nil {
		t.Fatal(err)
	}
	return path
}

// hasWritten checks that the program of the disk, which is locked now, has run.
func (h *exampleHost) hasWritten(before []byte) {
	h.t.Helper()
	copy(before[512:], testimages.Marker)
	if !bytes.Equal(read(h.t, h.decryptedDisk(h.descriptor, h.disk)), before) {
		h.t.Error("the disk has other content than it should")
	}
}

// TestQEMUDocument runs the commands of docs/qemu.md.
func TestQEMUDocument(t *testing.T) {
	t.Parallel()
	testtool.Long(t)
	for _, tool := range []string{"qemu-system-x86_64", "nbdcopy"} {
		testtool.Need(t, tool)
	}
	plain := bootImage(t)
	h := startExampleHost(t, plain)

	commands := h.section("qemu.md", "Copies")
	for _, words := range commands {
		h.run(words)
	}
	if !bytes.Equal(read(t, filepath.Join(h.dir, "web01.img")), read(t, plain)) {
		t.Error("the copy has other content than the disk")
	}

	commands = h.section("qemu.md", "For reading only")
	h.run(commands[0])
	first, second := h.boot(commands[1]), h.boot(commands[1])
	for _, m := range []*machine{first, second} {
		if said := m.off(); !strings.Contains(said, testimages.Banner) || strings.Contains(said, testimages.Written) {
			t.Errorf("a machine that may only read said %q", said)
		}
	}
	h.run(commands[2])
	if !bytes.Equal(read(t, h.decryptedDisk(h.descriptor, h.disk)), read(t, plain)) {
		t.Error("who could only read has written")
	}

	commands = h.section("qemu.md", "One disk")
	h.run(commands[0])
	if said := h.boot(commands[1]).off(); !strings.Contains(said, testimages.Banner+testimages.Written) {
		t.Errorf("the machine said %q", said)
	}
	h.run(commands[2])
	h.hasWritten(read(t, plain))
}

// boot starts a machine as an example does, which needs no hardware for it.
func (h *exampleHost) boot(words []string) *machine {
	h.t.Helper()
	return start(h.t, h.program(words))
}

// TestQEMUUnit runs the commands of the unit of a VM in the order of systemd.
func TestQEMUUnit(t *testing.T) {
	t.Parallel()
	testtool.Long(t)
	for _, tool := range []string{"qemu-system-x86_64", "socat"} {
		testtool.Need(t, tool)
	}
	plain := filepath.Join(t.TempDir(), "plain.img")
	write(t, plain, bytes.Repeat([]byte("no boot sector. "), 1<<16))
	h := startExampleHost(t, plain)
	u := h.exampleUnit("qemu", "vmcrypt-vm")
	u.do("ExecStartPre")
	h.fails(exitInUse, []string{"systemd:vmcrypt-vm@web01.service"}, "unlock", "--owner", "another", h.descriptor)
	m := h.boot(u.words("ExecStart"))
	socket := filepath.Join(u.runtimeHere, "vmcrypt-vm/web01/qmp.sock")
	eventually(t, "QEMU listens", func() bool { _, err := os.Stat(socket); return err == nil })
	h.outlivesDiskServer(socket)

	stop := start(t, h.program(u.words("ExecStop")))
	stop.await("POWERDOWN") // there is no system that would heed it
	if err := m.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if said := m.off(); strings.Contains(said, "failed") || strings.Count(said, "read 65536/65536 bytes") != 2 {
		t.Errorf("QEMU says of the disk\n%s", said)
	}
	stop.off()
	u.do("ExecStopPost")
	h.untouched()
	u.do("ExecStopPost") // as when nothing was started
	if e := h.lastEntry(); e.Owner != "systemd:vmcrypt-vm@web01.service" {
		t.Errorf("the audit log ends with %+v", e)
	}
	h.isTrimmed(64<<10, 64<<10)
	if !bytes.Equal(read(t, h.decryptedDisk(h.descriptor, h.disk))[:64<<10], bytes.Repeat([]byte{0x5a}, 64<<10)) {
		t.Error("what was written is not on the disk")
	}
}

// outlivesDiskServer has QEMU write and trim, has the disk server die, and has QEMU read.
// How that went, it says on its standard output.
func (h *exampleHost) outlivesDiskServer(qmpSocket string) {
	h.t.Helper()
	io := func(command string) {
		h.t.Helper()
		qmp(h.t, qmpSocket, fmt.Sprintf("qemu-io -d /machine/peripheral-anon/device[0]/virtio-backend %q", command))
	}
	io("write -P 0x5a 0 64k")
	io("discard 64k 64k")
	io("flush")
	before := *h.named("guest").PID
	if err := syscall.Kill(before, syscall.SIGKILL); err != nil {
		h.t.Fatal(err)
	}
	io("read -P 0x5a 0 64k")
	io("read -P 0 64k 64k")
	if now := h.named("guest"); now.PID == nil || *now.PID == before {
		h.t.Errorf("its disk server is %+v", now)
	}
}

// qmp has QEMU's human monitor do something, and waits until it is done.
func qmp(t *testing.T, socket, command string) {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	line, err := json.Marshal(map[string]any{"execute": "human-monitor-command", "arguments": map[string]string{"command-line": command}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(conn, `{"execute":"qmp_capabilities"}%s`, line); err != nil {
		t.Fatal(err)
	}
	said := bufio.NewScanner(conn)
	for left := 2; left > 0; {
		if !said.Scan() || strings.Contains(said.Text(), `"error"`) {
			t.Fatalf("%s: %s, %v", command, said.Text(), said.Err())
		}
		if strings.Contains(said.Text(), `"return"`) {
			left--
		}
	}
}

// isTrimmed checks that a range of the disk is a hole in its file.
func (h *exampleHost) isTrimmed(offset, length int64) {
	h.t.Helper()
	for _, e := range extentsOf(h.t, h.disk) {
		if !e.Hole && e.Offset < offset+length && offset < e.Offset+e.Length {
			h.t.Errorf("%d bytes at %d are no hole", e.Length, e.Offset)
		}
	}
}

// What a Linux guest does with a disk over vhost-user-blk.
const vhostInit = `#!/busybox sh
/busybox mount -t devtmpfs dev /dev
exec </dev/ttyS0 >/dev/ttyS0 2>&1
for module in /modules/*; do /busybox insmod "$module" || exit; done
/busybox mount -t sysfs sys /sys
echo "cache: $(/busybox cat /sys/block/vda/cache_type)"
/busybox mount -t ext4 /dev/vda /disk || exit
echo 'written by the guest' >/disk/note
/busybox umount /disk || exit
echo 'guest is done'
/busybox poweroff -f
`

// TestVhostUserBlock has machines work on a disk over vhost-user-blk, by the commands of
// the unit and of docs/vhost-user-blk.md.
func TestVhostUserBlock(t *testing.T) {
	t.Parallel()
	testtool.Long(t)
	for _, tool := range []string{"qemu-system-x86_64", "qemu-storage-daemon", "mke2fs", "cpio"} {
		testtool.Need(t, tool)
	}
	kernel, initrd := linuxGuest(t, vhostInit)
	plain := filepath.Join(t.TempDir(), "plain.img")
	execute(t, exec.Command(testtool.Need(t, "mke2fs"), "-q", "-t", "ext4", plain, "16M"))
	h := startExampleHost(t, plain)
	u := h.exampleUnit("vhost-user-blk", "vmcrypt-vhost")
	u.do("ExecStartPre")
	daemon := start(t, h.program(u.words("ExecStart")))
	u.do("ExecStartPost")
	m := h.boot(append(h.section("vhost-user-blk.md", "QEMU")[0], "-no-reboot",
		"-kernel", kernel, "-initrd", initrd, "-append", guestCommandLine))
	said := m.off()
	if !strings.Contains(said, "guest is done") {
		t.Error("the guest is not done")
	}
	// A guest that flushes by itself, or need not.
	if !strings.Contains(said, "cache: write back") && !strings.Contains(u.text, "writethrough=on") {
		t.Error("what the guest writes is not sure to be on the disk")
	}
	if err := daemon.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	daemon.off()
	u.do("ExecStopPost")
	h.untouched()
	if note := h.ok("cat", h.descriptor, "/note"); note != "written by the guest\n" {
		t.Errorf("the note is %q", note)
	}
	h.checkVhostDocument(u)
}

// checkVhostDocument compares the commands of the document with those of the unit.
func (h *exampleHost) checkVhostDocument(u *unit) {
	h.t.Helper()
	unit := strings.Join(u.words("ExecStart")[1:], " ")
	document := strings.Join(h.section("vhost-user-blk.md", "Set up")[1][1:], " ")
	if unit != document {
		h.t.Errorf("the document starts the storage daemon with\n%s, the unit with\n%s", document, unit)
	}
}
