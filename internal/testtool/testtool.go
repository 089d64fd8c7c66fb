// Package testtool finds the programs and files from outside the module that
// some tests compare vmcrypt with: QEMU, e2fsprogs, PyKMIP, real disk images.
//
// A test asks with [Need] or [NeedFile] before it does anything else. Where
// the thing is missing the test is skipped with the name of the Debian package
// that brings it, so that "go test ./..." passes on a bare machine. When
// VMCRYPT_TEST_REQUIRE_TOOLS=1 is set, as "make test" does after it installed
// everything, the test fails instead, so that no comparison is lost unseen.
package testtool

import (
	_ "embed"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// packagesTxt is also read by scripts/setup.sh.
//
//go:embed packages.txt
var packagesTxt string

// Need returns the path of tool, a program named in packages.txt. It looks in
// PATH and, since a user's PATH often lacks them, in /usr/sbin and /sbin.
func Need(t testing.TB, tool string) string {
	t.Helper()
	debianPackage := packageOf(tool)
	if debianPackage == "" {
		t.Fatalf("no package is known for %s: add it to internal/testtool/packages.txt", tool)
	}
	path, ok := lookPath(tool)
	if !ok {
		missing(t, tool, debianPackage)
	}
	return path
}

// NeedFile returns path, a file that debianPackage brings according to
// packages.txt.
func NeedFile(t testing.TB, path, debianPackage string) string {
	t.Helper()
	if packageOf(path) != debianPackage {
		t.Fatalf("%s is not listed for %s in internal/testtool/packages.txt: add it", path, debianPackage)
	}
	if _, err := os.Stat(path); err != nil {
		missing(t, path, debianPackage)
	}
	return path
}

// Long skips a test that takes many seconds or gigabytes, unless
// VMCRYPT_TEST_LONG=1 is set, as "make test" does.
func Long(t testing.TB) {
	t.Helper()
	if os.Getenv("VMCRYPT_TEST_LONG") != "1" {
		t.Skipf("a long test: set VMCRYPT_TEST_LONG=1 to run it")
	}
}

// RunMoreAtOnce is for the TestMain of a package most of whose tests wait for other
// processes, or for the disk: of those with t.Parallel, twice as many run at a time as
// there are processors, unless the flags say how many.
func RunMoreAtOnce() {
	flag.Parse()
	told := false
	flag.Visit(func(f *flag.Flag) { told = told || f.Name == "test.parallel" || f.Name == "test.cpu" })
	if !told {
		_ = flag.Set("test.parallel", strconv.Itoa(2*runtime.GOMAXPROCS(0))) // it is a number
	}
}

// missing ends the test: skipped, or failed where every tool is required.
func missing(t testing.TB, name, debianPackage string) {
	t.Helper()
	arch, limited := onlyOn(debianPackage)
	if limited && arch != runtime.GOARCH {
		t.Skipf("%s comes with Debian's %s, which exists for %s only", name, debianPackage, arch)
	}
	if os.Getenv("VMCRYPT_TEST_REQUIRE_TOOLS") == "1" {
		t.Fatalf("%s is missing: install Debian's %s (scripts/setup.sh test does)", name, debianPackage)
	}
	t.Skipf("%s is missing: install Debian's %s to run this test", name, debianPackage)
}

func lookPath(tool string) (string, bool) {
	if path, err := exec.LookPath(tool); err == nil {
		return path, true
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, tool)); err == nil {
			return path, true
		}
	}
	return "", false
}

// entry is a line of packages.txt.
type entry struct {
	arch  string // "" where the package exists for every architecture
	name  string
	bring []string
}

func entries() []entry {
	var all []entry
	for line := range strings.Lines(packagesTxt) {
		if f := strings.Fields(line); len(f) > 0 && f[0] != "#" {
			all = append(all, parseEntry(f))
		}
	}
	return all
}

func parseEntry(fields []string) entry {
	var e entry
	if strings.HasPrefix(fields[0], "[") {
		e.arch = strings.Trim(fields[0], "[]")
		fields = fields[1:]
	}
	e.name, e.bring = fields[0], fields[1:]
	return e
}

// packageOf returns the Debian package of a program or file, "" if unknown.
func packageOf(name string) string {
	for _, e := range entries() {
		if slices.Contains(e.bring, name) {
			return e.name
		}
	}
	return ""
}

func onlyOn(debianPackage string) (arch string, limited bool) {
	for _, e := range entries() {
		if e.name == debianPackage {
			return e.arch, e.arch != ""
		}
	}
	return "", false
}
