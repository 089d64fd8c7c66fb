package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmcrypt/vmcrypt/agent/api"
	"github.com/vmcrypt/vmcrypt/internal/testtool"
)

// nobody is the user and group without any rights.
const nobody = 65534

// These groups of Debian stand for the agent's; the third has no name.
const viewGroup, operateGroup, adminGroup = "games", "news", "30003"

const groupsConfig = "  groups: {view: " + viewGroup + ", operate: " + operateGroup + ", admin: '" + adminGroup + "'}"

// as runs a command as nobody with these groups, the first being its own. The test
// binary lies in a folder that only root can enter.
func (h *host) as(groups []string, args ...string) result {
	h.t.Helper()
	cmd := exec.Command("/proc/self/exe", append(args, "--socket", h.socket())...)
	cmd.Env = []string{actAsVMCrypt + "=1", "HOME=/nonexistent", "PATH=" + os.Getenv("PATH")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: nobodyIn(h.t, groups...)}
	return h.finish(cmd)
}

func nobodyIn(t *testing.T, groups ...string) *syscall.Credential {
	t.Helper()
	c := &syscall.Credential{Uid: nobody, Gid: nobody}
	for i, name := range groups {
		if g, err := user.LookupGroup(name); err == nil {
			name = g.Gid
		}
		id, err := strconv.ParseUint(name, 10, 32)
		if err != nil {
			t.Skipf("there is no group %s", name)
		}
		if i == 0 {
			c.Gid = uint32(id)
		} else {
			c.Groups = append(c.Groups, uint32(id))
		}
	}
	return c
}

// TestAgentAccess: groups decide who may do what.
func TestAgentAccess(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("only root can be other users")
	}
	h := startHost(t, groupsConfig)
	target := h.vm("web01", "scsi0:0")
	many := []string{"65534"}
	for i := range 300 { // more than a first guess has room for
		many = append(many, strconv.Itoa(40000+i))
	}
	for _, c := range []struct {
		name          string
		groups        []string
		view, operate bool
	}{
		{"stranger", nil, false, false},
		{"stranger in many groups", many, false, false},
		{"viewer", []string{"65534", viewGroup}, true, false},
		{"viewer by its own group", []string{viewGroup}, true, false},
		{"key administrator", []string{"65534", adminGroup}, true, false},
		{"operator", []string{"65534", operateGroup}, true, true},
		{"operator by its own group", []string{operateGroup, viewGroup}, true, true},
		{"operator in many groups", append(many, operateGroup), true, true},
	} {
		check := func(may bool, group string, args ...string) {
			t.Helper()
			r := h.as(c.groups, args...)
			denied := r.code == exitFailure && strings.Contains(r.stderr, "permission denied: user 65534 is not in the group "+group) &&
				strings.Contains(r.stderr, "log in again")
			if may != (r.code == exitDone) || !may && !denied {
				t.Errorf("%s: %v: exit code %d\n%s", c.name, args, r.code, r.stderr)
			}
		}
		check(c.view, viewGroup, "list")
		check(c.operate, operateGroup, "unlock", target)
		check(c.operate, operateGroup, "lock", target)
	}
	h.untouched()
	for _, e := range h.audit() {
		if e.UID != nobody || e.PID == 0 || e.Result == "failure" {
			t.Errorf("in the audit log: %+v", e)
		}
	}
}

// TestOperatorNeedsNoConfiguration: root's agent is found without one.
func TestOperatorNeedsNoConfiguration(t *testing.T) {
	t.Parallel()
	h := emptyHome(t)
	cmd := h.command(t.Context(), "list")
	cmd.Env = []string{actAsVMCrypt + "=1", "HOME=" + t.TempDir(), "XDG_RUNTIME_DIR=" + t.TempDir()}
	if os.Getuid() == 0 {
		if _, err := os.Stat("/etc/vmcrypt"); err == nil {
			t.Skip("this host has a configuration")
		}
	}
	if r := h.finish(cmd); r.code == exitFailure && !strings.Contains(r.stderr, "/run/vmcrypt/agent.sock") {
		t.Errorf("exit code %d\n%s", r.code, r.stderr)
	}
}

// TestAgentAPI has any HTTP client talk to the agent.
func TestAgentAPI(t *testing.T) {
	t.Parallel()
	h := startHost(t)
	target := h.vm("web01", "scsi0:0")
	curl := testtool.Need(t, "curl")
	ask := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(curl, append([]string{"-sS", "--unix-socket", h.socket()}, args...)...).Output()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	vm := parseJSON[api.VM](t, ask("http://agent/v1/unlock", "-d", `{"vm":"web01"}`))
	if vm.State != api.Unlocked || vm.Descriptor != target {
		t.Errorf("unlock: %+v", vm)
	}
	one := parseJSON[api.VM](t, ask("-G", "http://agent/v1/vm", "--data-urlencode", "vm="+target))
	if list := parseJSON[api.List](t, ask("http://agent/v1/vms")); len(list.VMs) != 1 || *list.VMs[0].PID != *vm.PID || *one.PID != *vm.PID {
		t.Errorf("%+v, and one is %+v", list, one)
	}
	if locked := parseJSON[api.VM](t, ask("http://agent/v1/lock", "-d", `{"vm":"web01","force":true}`)); locked.State != api.Locked {
		t.Errorf("lock: %+v", locked)
	}
	self := parseJSON[api.Agent](t, ask("http://agent/v1/agent"))
	if self.PID != h.agent.Process.Pid || self.Release != version || len(self.Datastores) != 1 || time.Since(self.Since) > time.Hour {
		t.Errorf("the agent is %+v", self)
	}
	if text := ask("http://agent/v1/openapi.yaml"); text != string(api.OpenAPI) {
		t.Error("it gives another description of itself")
	}
}

// TestAgentBadRequests: whatever is sent, the answer says what is wrong with it.
func TestAgentBadRequests(t *testing.T) {
	t.Parallel()
	h := startHost(t)
	h.vm("web01", "scsi0:0")
	for _, c := range []struct {
		method, path, body string
		status, code       int
		words              string
	}{
		{"POST", "/v1/unlock", ``, 400, exitUsage, "EOF"},
		{"POST", "/v1/unlock", `{}`, 400, exitUsage, "name a VM"},
		{"POST", "/v1/unlock", `{"vm":"web01","readonly2":true}`, 400, exitUsage, "readonly2"},
		{"POST", "/v1/unlock", `{"vm":"web01"}{}`, 400, exitUsage, "more than one"},
		{"POST", "/v1/unlock", `{"vm":7}`, 400, exitUsage, "vm"},
		{"POST", "/v1/unlock", `"web01"`, 400, exitUsage, "string"},
		{"POST", "/v1/unlock", "\xff\x00", 400, exitUsage, "invalid"},
		{"POST", "/v1/lock", `{"vm":"` + strings.Repeat("x", 70<<10) + `"}`, 400, exitUsage, "too large"},
		{"POST", "/v1/lock", strings.Repeat("[", 60<<10), 400, exitUsage, "depth"},
		{"POST", "/v1/unlock", `{"vm":"` + strings.Repeat("x", 60<<10) + `"}`, 404, exitFailure, "unknown VM"},
		{"POST", "/v1/unlock", `{"vm":"/` + strings.Repeat("x/", 20<<10) + `"}`, 403, exitFailure, "not in a datastore"},
		{"POST", "/v1/unlock", `{"vm":"` + h.at() + `/a\u0000b.vmx"}`, 422, exitTampered, "invalid argument"},
		{"GET", "/v1/vm", "", 400, exitUsage, "name a VM"},
		{"GET", "/v1/vm?vm=web09", "", 404, exitFailure, "web09"},
		{"GET", "/v1/unlock", "", 404, exitFailure, "no GET /v1/unlock"},
		{"POST", "/v1/vms", "", 404, exitFailure, "no POST /v1/vms"},
		{"DELETE", "/v1/vm", "", 404, exitFailure, "openapi.yaml"},
		{"GET", "/", "", 404, exitFailure, "openapi.yaml"},
	} {
		status, answer := h.request(c.method, c.path, c.body)
		if f := failureOf(t, answer); status != c.status || f.ExitCode != c.code || !strings.Contains(f.Message, c.words) {
			t.Errorf("%s %s %.40q: status %d, exit code %d\n%.300s", c.method, c.path, c.body, status, f.ExitCode, f.Message)
		}
	}
	h.untouched()
}

// TestHostileClients: who sends too much or nothing at all, or no HTTP, is cut off.
func TestHostileClients(t *testing.T) {
	t.Parallel()
	h := startHost(t)
	send := func(text string, more bool) (answer string) {
		t.Helper()
		conn, err := net.Dial("unix", h.socket())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(hang)); err != nil {
			t.Fatal(err)
		}
		_, err = io.WriteString(conn, text)
		for junk := strings.Repeat("x", 64<<10); more && err == nil; {
			_, err = io.WriteString(conn, junk)
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%.40q: it takes for ever", text)
		}
		said, err := io.ReadAll(conn)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%.40q: it waits for ever", text)
		}
		return string(said)
	}
	if got := send("GET /v1/vms HTTP/1.1\r\nHost: agent\r\nX: "+strings.Repeat("x", 100<<10)+"\r\n\r\n", false); !strings.HasPrefix(got, "HTTP/1.1 431") {
		t.Errorf("many headers: %.100q", got)
	}
	if got := send("\x00\x01\x02\r\n\r\n", false); !strings.HasPrefix(got, "HTTP/1.1 400") {
		t.Errorf("no HTTP: %.100q", got)
	}
	send("GET /v1/vms HTTP/1.1\r\nHost: ", true)
	send("POST /v1/unlock HTTP/1.1\r\nHost: agent\r\nContent-Length: 999999999999\r\n\r\n", true)
	send("POST /v1/unlock HTTP/1.1\r\nHost: agent\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n", true)
	if os.Getenv("VMCRYPT_TEST_LONG") == "1" { // 10 s each
		send("GET /v1/vms HT", false)
		send("POST /v1/unlock HTTP/1.1\r\nHost: agent\r\nContent-Length: 20\r\n\r\n{\"vm\":", false)
	}
	h.untouched()
}

const strangersSocket = "VMCRYPT_TEST_AGENT_SOCKET"

// TestManyStrangers: a user without rights can't keep others from the agent.
func TestManyStrangers(t *testing.T) {
	if socket := os.Getenv(strangersSocket); socket != "" {
		beMany(t, socket)
		return
	}
	if os.Getuid() != 0 {
		t.Skip("only root can be other users")
	}
	h := startHost(t, groupsConfig)
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestManyStrangers$", "-test.v")
	cmd.Env = append(os.Environ(), strangersSocket+"="+h.socket(), "TMPDIR=/tmp")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: nobodyIn(t)}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait() //nolint:errcheck // what it says counts
	defer in.Close()
	scanner := bufio.NewScanner(out)
	said := ""
	for !strings.Contains(said, "are open") && scanner.Scan() {
		said = scanner.Text()
	}
	if !strings.HasSuffix(said, "8 are open") {
		t.Errorf("of a stranger's connections %q", said)
	}
	if open := len(names(t, fmt.Sprintf("/proc/%d/fd", h.agent.Process.Pid))); open > 50 {
		t.Errorf("the agent has %d files open", open)
	}
	h.list()
	if r := h.as([]string{viewGroup}, "list"); r.code != exitDone { // of the same user, but with rights
		t.Errorf("a viewer is kept out: exit code %d\n%s", r.code, r.stderr)
	}
	in.Close()
	eventually(t, "its places are free again", func() bool {
		return strings.Contains(h.as(nil, "list").stderr, "permission denied")
	})
}

// beMany makes connections until told to end, and says how many stay.
func beMany(t *testing.T, socket string) {
	var conns []net.Conn
	for range 2000 {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	open := 0
	for _, conn := range conns {
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Millisecond)) // if it fails, so does the read
		if _, err := conn.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
			open++
		}
	}
	fmt.Printf("%d are open\n", open)
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// TestOneAgent: a second one leaves the first alone, and takes the place of a dead one.
func TestOneAgent(t *testing.T) {
	t.Parallel()
	h := startHost(t)
	h.fails(exitFailure, []string{"an agent is running already", h.socket(), "vmcrypt list"}, "agent")
	h.list()
	h.stopAgent(os.Kill)
	if _, err := os.Lstat(h.socket()); err != nil {
		t.Fatalf("it left no socket: %v", err)
	}
	h.startAgent()
	h.list()
	h.stopAgent(syscall.SIGTERM)

	if err := os.Remove(h.socket()); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	write(t, h.socket(), []byte("somebody's file"))
	h.fails(exitFailure, []string{h.socket(), "no socket"}, "agent")
	if got := string(read(t, h.socket())); got != "somebody's file" {
		t.Errorf("in its place is %q", got)
	}
	if err := os.Remove(h.socket()); err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(h.dir, "run/vms")
	if err := os.Chmod(folder, 0o777); err != nil {
		t.Fatal(err)
	}
	h.fails(exitFailure, []string{folder, "others"}, "agent")
}

// TestAgentConfiguration: what is wrong with it is said before anything is done.
func TestAgentConfiguration(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	path := filepath.Join(h.home.dir, "config.yaml")
	good := read(t, path)
	for change, words := range map[[2]string][]string{
		{`datastores: .*`, `datastores: []`}:                           {path, "datastores"},
		{`datastores: .*`, `datastores: ["/"]`}:                        {path + ":", "datastores", "any file"},
		{`qemuUser: .*`, `qemuUser: no-such-user`}:                     {path, "qemuUser", "no-such-user"},
		{`qemuUser: .*`, `quemuUser: root`}:                            {path + ":", "quemuUser"},
		{`socket: .*`, `socket: ../` + strings.Repeat("x", 99)}:        {"xxx", "may have 107"},
		{`socket: .*`, `socket: ../` + strings.Repeat("x", 60) + "/a"}: {"xxx/vms/", "may have 107"},
	} {
		write(t, path, good)
		h.edit(path, change[0], change[1])
		h.fails(exitFailure, words, "agent")
	}
}
