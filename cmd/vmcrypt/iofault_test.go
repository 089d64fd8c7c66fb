package main

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmcrypt/vmcrypt/agent"
	"github.com/vmcrypt/vmcrypt/blockcrypt"
)

// TestIOFaults has each system call on a disk and on what lies beside it fail in
// turn, or a sample of them, while the disk is converted in place. The command ends
// well, or says that it has changed nothing, or how to go on; and then each sector
// gets right, forward or backward.
func TestIOFaults(t *testing.T) {
	for _, place := range faultyPlaces() {
		for _, f := range faultyConversions {
			t.Run(place.name+"/"+f.name, func(t *testing.T) {
				t.Parallel()
				f.home = newHome(t)
				f.prepare(place.dir(t))
				f.tryAll(place.oneIn)
			})
		}
	}
}

// faultyPlace is a file system to meet faults on.
type faultyPlace struct {
	name  string
	dir   func(*testing.T) string
	oneIn int // how many of the faults are met
}

// faultyPlaces are memory, where a sync takes no time, and in long tests the one of
// other tests, too.
func faultyPlaces() []faultyPlace {
	if os.Getenv("VMCRYPT_TEST_LONG") == "1" {
		return []faultyPlace{{"memory", inMemory, 1}, {"disk", (*testing.T).TempDir, 50}}
	}
	return []faultyPlace{{"memory", inMemory, 40}}
}

func inMemory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "vmcrypt-test")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// faulty is a conversion in place that meets faults.
type faulty struct {
	*home
	name    string
	command string
	amid    string // the state of the disk while it is not finished
	begun   bool   // it was killed before
	abort   bool

	plain, disk string
	begin       string // holds copies of what is beside the disk when the command begins
	met         int    // faults
}

var faultyConversions = []faulty{
	{name: "encrypt", command: "encrypt", amid: agent.StateEncrypting},
	{name: "encrypt on", command: "encrypt", amid: agent.StateEncrypting, begun: true},
	{name: "encrypt back", command: "encrypt", amid: agent.StateEncrypting, begun: true, abort: true},
	{name: "decrypt", command: "decrypt", amid: agent.StateDecrypting},
	{name: "rekey", command: "rekey", amid: agent.StateRekeying},
	{name: "rekey back", command: "rekey", amid: agent.StateRekeying, begun: true, abort: true},
}

// fault is what goes wrong with a call.
type fault string

const (
	badIO   fault = "EIO"
	dead    fault = "EIO from then on"
	noSpace fault = "ENOSPC"
	torn    fault = "EIO after half of it"
	short   fault = "half of it"
	killed  fault = "killed before it"
)

// faultsOf are those that a call can meet.
func faultsOf(call string) []fault {
	switch call {
	case "pwrite":
		return []fault{badIO, dead, noSpace, torn, short, killed}
	case "write", "fallocate", "ftruncate", "fsetxattr", "renameat":
		return []fault{badIO, dead, noSpace, killed}
	case "fsync", "unlinkat", "fremovexattr", "fchmod":
		return []fault{badIO, dead, killed}
	case "openat":
		return []fault{badIO, noSpace}
	}
	return []fault{badIO}
}

// mustSay tells the calls that may not fail unnoticed: those that change a file, or
// make that durable. Another call can show that there was nothing to remove.
func mustSay(call string) bool {
	return call != "unlinkat" && slices.Contains(faultsOf(call), dead)
}

// callSite is the nth time that a system call is made on a file. All runs of a
// command have the same ones, in one order or another.
type callSite struct {
	call, file string
	nth        int
}

// prepare makes the disk as it is when the command begins, with four steps to go.
func (f *faulty) prepare(dir string) {
	f.t.Helper()
	f.plain, f.begin = filepath.Join(dir, "plain"), filepath.Join(dir, "begin")
	f.disk = filepath.Join(dir, "vm", "disk.img")
	for _, folder := range []string{f.folder(), f.begin} {
		if err := os.Mkdir(folder, 0o700); err != nil {
			f.t.Fatal(err)
		}
	}
	holedImage(f.t, f.plain, 448<<10)
	copyFile(f.t, f.disk, f.plain)
	if f.command != "encrypt" {
		f.ok("encrypt", f.disk)
	}
	if f.begun {
		f.beKilled()
	}
	copyFolder(f.t, f.begin, f.folder())
}

// beKilled leaves the disk amid the conversion, with records of two steps.
func (f *faulty) beKilled() {
	f.t.Helper()
	first := *f
	first.abort = false
	first.run(callSite{"fsync", "disk.img", 3}, killed)
	if s := state(f.t, f.disk); s.State != f.amid {
		f.t.Fatalf("%+v", s)
	}
}

func (f *faulty) folder() string { return filepath.Dir(f.disk) }

// copyFolder makes the files in a folder those of another one, marks included.
func copyFolder(t *testing.T, to, from string) {
	t.Helper()
	for _, name := range names(t, to) {
		if err := os.Remove(filepath.Join(to, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range names(t, from) {
		copyFile(t, filepath.Join(to, name), filepath.Join(from, name))
		copyMark(t, filepath.Join(to, name), filepath.Join(from, name))
	}
}

func copyMark(t *testing.T, to, from string) {
	t.Helper()
	const mark = "user.vmcrypt.disk"
	value := make([]byte, 100)
	n, err := unix.Getxattr(from, mark, value)
	if err == nil {
		err = unix.Setxattr(to, mark, value[:n], 0)
	}
	if err != nil && err != unix.ENODATA && err != unix.ENOTSUP {
		t.Fatal(err)
	}
}

// tryAll meets one in so many faults.
func (f *faulty) tryAll(oneIn int) {
	f.t.Helper()
	tried := 0
	sites := f.sites()
	nth := rand.IntN(oneIn)
	for _, at := range sites {
		for _, wrong := range faultsOf(at.call) {
			if nth++; nth%oneIn == 0 {
				tried++
				f.try(at, wrong)
			}
		}
	}
	f.t.Logf("%d calls; met %d of %d faults", len(sites), f.met, tried)
	if f.met < tried*9/10 {
		f.t.Error("runs of the same command make other calls")
	}
}

// sites are the calls of a run without faults.
func (f *faulty) sites() (sites []callSite) {
	f.t.Helper()
	code, said := f.supervised(func(at callSite, _ fileCall) verdict {
		sites = append(sites, at)
		return verdict{}
	})
	if code != exitDone {
		f.t.Fatalf("exit code %d: %s", code, said)
	}
	return sites
}

// supervised runs the command, with a judge of its calls in the disk's folder.
func (f *faulty) supervised(judge func(callSite, fileCall) verdict) (code int, said string) {
	f.t.Helper()
	cmd := f.home.command(f.t.Context(), f.arguments()...)
	cmd.Env = append(cmd.Env, "GODEBUG=asyncpreemptoff=1") // a signal would have a call begin anew
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	count := map[callSite]int{}
	supervise(f.t, cmd, func(c fileCall) verdict {
		name, err := filepath.Rel(f.folder(), c.path)
		if err != nil || !filepath.IsLocal(name) {
			return verdict{}
		}
		if isTemporary(name) {
			name = "temporary"
		}
		at := callSite{call: c.name, file: name}
		count[at]++
		at.nth = count[at]
		return judge(at, c)
	})
	return cmd.ProcessState.ExitCode(), stderr.String()
}

func isTemporary(name string) bool { return strings.HasSuffix(name, ".vmcrypt-tmp") }

func (f *faulty) arguments() []string {
	args := []string{f.command, f.disk, "--zone", "65536"} // so that much goes past the page cache
	if f.command == "rekey" {
		args = append(args, "--deep")
	}
	if f.abort {
		args = append(args, "--abort")
	}
	return args
}

// run runs the command with a fault.
func (f *faulty) run(site callSite, wrong fault) (code int, said string) {
	f.t.Helper()
	gone := false
	return f.supervised(func(at callSite, c fileCall) verdict {
		switch {
		case at == site:
			f.met++
			gone = wrong == dead
			return f.fail(c, wrong)
		case gone:
			return failed(unix.EIO)
		}
		return verdict{}
	})
}

func (f *faulty) fail(c fileCall, wrong fault) verdict {
	switch wrong {
	case noSpace:
		return failed(unix.ENOSPC)
	case killed:
		_ = unix.Kill(int(c.pid), unix.SIGKILL)
	case torn, short:
		n, err := c.writePart()
		if err != nil {
			f.t.Error(err)
		}
		if wrong == short {
			return verdict{done: true, n: n}
		}
	}
	return failed(unix.EIO)
}

// try has the command meet a fault, and ends what it leaves.
func (f *faulty) try(at callSite, wrong fault) {
	f.t.Helper()
	copyFolder(f.t, f.folder(), f.begin)
	code, said := f.run(at, wrong)
	err := f.check(code, said)
	if err == nil {
		err = f.finish(code)
	}
	if code == exitDone && wrong != short && mustSay(at.call) {
		err = errors.New("it says nothing of that")
	}
	if err == nil {
		err = f.checkNames(wrong == killed || wrong == dead)
	}
	if err != nil {
		f.t.Errorf("%s of %s, time %d: %s: exit code %d: %s\n%v", at.call, at.file, at.nth, wrong, code, said, err)
	}
}

// check compares what a run says with what it did.
func (f *faulty) check(code int, said string) error {
	now, err := f.state()
	if err != nil {
		return fmt.Errorf("status: %w", err)
	}
	ended := now == f.end(f.abort)
	switch {
	case code == -1:
	case code == exitDone && !ended, code == exitUnfinished && now != f.amid:
		return fmt.Errorf("the disk is %s", now)
	case code == exitUnfinished && !strings.Contains(said, finishCommand(&agent.Unfinished{Target: f.disk, State: f.amid})):
		return errors.New("it does not say how to go on")
	case code == exitDone, code == exitUnfinished:
	case ended && strings.Contains(said, "come to its end"):
	case f.changed():
		return fmt.Errorf("something has changed, and the disk is %s", now)
	}
	return nil
}

// state is that of the disk, as status has it.
func (f *faulty) state() (string, error) {
	t, err := agent.Open(f.disk, "")
	if err != nil {
		return "", err
	}
	s, err := t.Status(nil)
	if err != nil {
		return "", err
	}
	return s.Disks[0].State, nil
}

// end is the state that a command leads to.
func (f *faulty) end(abort bool) string {
	if f.command == "rekey" || (f.command == "encrypt") != abort {
		return agent.StateEncrypted
	}
	return agent.StatePlain
}

// changed tells whether a file that says anything is not as it was when the
// command began.
func (f *faulty) changed() bool {
	meaningless := func(name string) bool { return isLock(name) || isTemporary(name) }
	was := slices.DeleteFunc(names(f.t, f.begin), meaningless)
	is := slices.DeleteFunc(names(f.t, f.folder()), meaningless)
	if !slices.Equal(was, is) {
		return true
	}
	return slices.ContainsFunc(is, func(name string) bool {
		return sum(f.t, filepath.Join(f.begin, name)) != sum(f.t, filepath.Join(f.folder(), name))
	})
}

func isLock(name string) bool { return strings.HasSuffix(name, ".vmcrypt-lock") }

// finish brings a disk that is not finished to its end, now and then to the other
// one, and compares every byte.
func (f *faulty) finish(code int) error {
	now, err := f.state()
	if err != nil {
		return err
	}
	abort, back := f.abort, false
	if now == f.amid && rand.IntN(4) == 0 {
		abort, back = !abort, true
	}
	if now == f.amid || code != exitDone && !f.changed() {
		withoutForks(func() { err = f.convertHere(abort) })
	}
	if now, _ = f.state(); err == nil && now != f.end(abort) {
		return fmt.Errorf("run again with --abort=%t, the disk is %s", abort, now)
	}
	if err != nil && !(back && errors.Is(err, agent.ErrState)) { // there may be nothing to turn
		return fmt.Errorf("run again with --abort=%t: %w", abort, err)
	}
	if now == agent.StateEncrypted {
		f.isEncrypted(f.disk, "scsi0:0", f.plain)
	} else {
		same(f.t, f.disk, f.plain)
	}
	return nil
}

// convertHere runs the command in this process.
func (f *faulty) convertHere(abort bool) error {
	t, err := agent.Open(f.disk, "")
	if err != nil {
		return err
	}
	h, o := f.environment().host(), agent.InPlace{Abort: abort}
	switch f.command {
	case "encrypt":
		_, err = h.Encrypt(f.t.Context(), t, agent.EncryptOptions{
			InPlace: o, Alias: "local", SectorSize: 512, Holes: blockcrypt.Preserve,
		})
	case "decrypt":
		_, err = h.Decrypt(f.t.Context(), t, agent.DecryptOptions{InPlace: o})
	case "rekey":
		_, err = h.Rekey(f.t.Context(), t, agent.RekeyOptions{InPlace: o, Alias: "local"})
	}
	return err
}

// checkNames looks at what is left beside a finished disk. A process that was
// killed, or could remove nothing, leaves its temporary file.
func (f *faulty) checkNames(temporary bool) error {
	for _, name := range names(f.t, f.folder()) {
		switch {
		case name == "disk.img", isLock(name), temporary && isTemporary(name):
		case name == "disk.img.vmx" && state(f.t, f.disk).State == agent.StateEncrypted:
		default:
			return fmt.Errorf("%s is left behind", name)
		}
	}
	return nil
}
