package testtool

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// recorder is a testing.TB that notes how a test would have ended.
type recorder struct {
	testing.TB
	ended string
}

func (r *recorder) Helper() {}

func (r *recorder) Skipf(format string, args ...any) { r.end("skip: " + fmt.Sprintf(format, args...)) }

func (r *recorder) Fatalf(format string, args ...any) { r.end("fail: " + fmt.Sprintf(format, args...)) }

func (r *recorder) end(how string) {
	r.ended = how
	runtime.Goexit()
}

// ending runs f as a test and returns how it ended, "" if f returned.
func ending(t *testing.T, f func(testing.TB)) string {
	r := &recorder{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(r)
	}()
	<-done
	return r.ended
}

func TestMissingToolSkipsAndNamesItsPackage(t *testing.T) {
	t.Setenv("VMCRYPT_TEST_REQUIRE_TOOLS", "")
	got := ending(t, func(tb testing.TB) { missing(tb, "qemu-img", "qemu-utils") })
	if want := "skip: qemu-img is missing: install Debian's qemu-utils to run this test"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestMissingToolFailsWhereToolsAreRequired(t *testing.T) {
	t.Setenv("VMCRYPT_TEST_REQUIRE_TOOLS", "1")
	got := ending(t, func(tb testing.TB) { missing(tb, "qemu-img", "qemu-utils") })
	if !strings.HasPrefix(got, "fail: qemu-img is missing: install Debian's qemu-utils") {
		t.Errorf("got %q", got)
	}
}

func TestLong(t *testing.T) {
	t.Setenv("VMCRYPT_TEST_LONG", "")
	if got := ending(t, Long); !strings.HasPrefix(got, "skip: ") {
		t.Errorf("got %q, want a skipped test", got)
	}
	t.Setenv("VMCRYPT_TEST_LONG", "1")
	if got := ending(t, Long); got != "" {
		t.Errorf("got %q, want the test to go on", got)
	}
}

func TestUnlistedNamesFail(t *testing.T) {
	for name, f := range map[string]func(testing.TB){
		"tool": func(tb testing.TB) { Need(tb, "no-such-tool") },
		"file": func(tb testing.TB) { NeedFile(tb, "/usr/include/stdlib.h", "gcc") },
	} {
		if got := ending(t, f); !strings.HasPrefix(got, "fail: ") || !strings.Contains(got, "packages.txt") {
			t.Errorf("%s: got %q", name, got)
		}
	}
}

func TestNeedLooksBesidePATH(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := os.Stat("/usr/sbin/mke2fs"); err != nil {
		t.Skip("no /usr/sbin/mke2fs here")
	}
	if got, want := Need(t, "mke2fs"), "/usr/sbin/mke2fs"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestUnprivileged: what goes on is not root, wherever the tests run.
func TestUnprivileged(t *testing.T) {
	if !Unprivileged(t) {
		return
	}
	path := filepath.Join(t.TempDir(), "closed")
	if err := os.WriteFile(path, nil, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := os.ReadFile(path); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("got %v", err)
	}
}

// TestFailingAsNobody is what the next test runs.
func TestFailingAsNobody(t *testing.T) {
	if os.Getenv("VMCRYPT_TEST_FAIL") == "1" {
		t.Error("as it should")
	}
}

func TestFailuresAreSeen(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can become nobody")
	}
	t.Setenv("VMCRYPT_TEST_FAIL", "1")
	out, err := asNobody("TestFailingAsNobody", os.TempDir()).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "as it should") {
		t.Errorf("%v: %s", err, out)
	}
}

func TestPackagesTxt(t *testing.T) {
	seen := map[string]bool{}
	for _, e := range entries() {
		if len(e.bring) == 0 {
			t.Errorf("%s brings nothing, so scripts/setup.sh would never install it", e.name)
		}
		for _, name := range append(e.bring, e.name+" (package)") {
			if seen[name] {
				t.Errorf("%s is listed twice", name)
			}
			seen[name] = true
			if strings.Contains(name, "/") && !filepath.IsAbs(name) {
				t.Errorf("%s is neither a program's name nor an absolute path", name)
			}
		}
	}
}

// The script and this package read the same file; this test keeps them
// reading it in the same way.
func TestSetupScriptReadsTheSameTable(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("bash is missing")
	}
	out, err := exec.Command(bash, "../../scripts/setup.sh", "--list", runtime.GOARCH).Output()
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, e := range entries() {
		if e.arch == "" || e.arch == runtime.GOARCH {
			want = append(want, e.name)
		}
	}
	if got := strings.Join(strings.Fields(string(out)), " "); got != strings.Join(want, " ") {
		t.Errorf("scripts/setup.sh reads %s, want %s", got, strings.Join(want, " "))
	}
}
