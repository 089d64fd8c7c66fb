package testtool

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// nobody is the user and group without any rights.
const nobody = 65534

// Unprivileged tells a test that root's rights would spoil to go on. Where root
// runs the tests it runs this one again as nobody, has it end as that did, and
// says no.
func Unprivileged(t *testing.T) bool {
	t.Helper()
	if os.Geteuid() != 0 {
		return true
	}
	dir, err := os.MkdirTemp("", "unprivileged")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	out, err := asNobody(t.Name(), dir).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("as nobody: %v\n%s", err, out)
	}
	return false
}

// asNobody runs a test of this binary as nobody, whose folder for everything is
// dir. The binary lies in a folder that only root can enter, hence its path.
func asNobody(test, dir string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+test+"$", "-test.v")
	cmd.Env = append(os.Environ(), "TMPDIR="+dir, "HOME="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	return cmd
}
