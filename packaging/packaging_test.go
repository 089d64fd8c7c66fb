package packaging

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmcrypt/vmcrypt/internal/testtool"
)

// maxExposure is what systemd may say of a unit at most: 0 is best, and 10 worst.
const maxExposure = 2.5

var exposure = regexp.MustCompile(`Overall exposure level for \S+: ([0-9.]+)`)

// TestUnitsAreHardened also finds settings that systemd does not know.
func TestUnitsAreHardened(t *testing.T) {
	analyze := testtool.Need(t, "systemd-analyze")
	for _, unit := range []string{"vmcrypt-agent.service", "vmcrypt-kms.service"} {
		path := inPlace(t, unit)
		if out := run(t, analyze, "verify", "--man=no", path); strings.Contains(out, unit) {
			t.Errorf("%s: %s", unit, out)
		}
		m := exposure.FindStringSubmatch(run(t, analyze, "security", "--offline=true", "--no-pager", path))
		if m == nil {
			t.Fatalf("%s: systemd says nothing of it", unit)
		}
		if level, err := strconv.ParseFloat(m[1], 64); err != nil || level > maxExposure {
			t.Errorf("%s: exposure %s, %v", unit, m[1], err)
		}
		t.Logf("%s: exposure %s", unit, m[1])
	}
}

// inPlace is a copy of a unit that starts a program that is there.
func inPlace(t *testing.T, unit string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("systemd", unit))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), unit)
	text = bytes.ReplaceAll(text, []byte("/usr/bin/vmcrypt"), []byte("/bin/true"))
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestPackagesAreReproducible: the same sources give the same bytes in another folder, at
// another time, under another umask, on another host.
func TestPackagesAreReproducible(t *testing.T) {
	testtool.Long(t)
	const release = "0.1.0~same"
	elsewhere := copyOfSources(t)
	for _, format := range []string{"deb", "rpm"} {
		path := makePackage(t, "..", format, release)
		here := content(t, path)
		if rpm, err := exec.LookPath("rpm"); err == nil && format == "rpm" {
			if host := run(t, rpm, "-qp", "--queryformat", "%{BUILDHOST}", path); host != "localhost" {
				t.Errorf("the package tells of the host %q", host)
			}
		}
		time.Sleep(1100 * time.Millisecond) // times of files have seconds
		restore := umask(t, 0o077)
		there := content(t, makePackage(t, elsewhere, format, release))
		restore()
		if !bytes.Equal(here, there) {
			t.Errorf("two packages .%s of the same sources differ", format)
		}
	}
}

// copyOfSources copies what git has, or would take, to another folder, without the
// packager, which is not made twice.
func copyOfSources(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	script := `cd .. && git -c safe.directory='*' ls-files -z --cached --others --exclude-standard --deduplicate |
		xargs -0 ls -d 2>/dev/null | tar -cf - -T - | tar -xf - -C "$0" && mkdir -p "$0/bin" && cp bin/nfpm "$0/bin/"`
	if _, err := os.Stat("../bin/nfpm"); err != nil {
		run(t, "make", "-C", "..", "bin/nfpm")
	}
	run(t, "bash", "-c", script, dir)
	return dir
}

// TestLintian: Debian's checks of packages find nothing that is not explained.
func TestLintian(t *testing.T) {
	testtool.Long(t)
	lintian, err := exec.LookPath("lintian")
	if err != nil {
		t.Skip("lintian is not installed")
	}
	out, err := exec.Command(lintian, "--allow-root", "--fail-on", "error,warning", makePackage(t, "..", "deb", "0.1.0~lint")).CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func content(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// umask sets that of this process, and gives what sets it back.
func umask(t *testing.T, mask int) (restore func()) {
	t.Helper()
	former := syscall.Umask(mask)
	return func() { syscall.Umask(former) }
}

// TestVersions: what scripts/version.sh says of commits grows, as dpkg compares versions.
func TestVersions(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "scripts"), 0o700); err != nil {
		t.Fatal(err)
	}
	copyFile(t, "../scripts/version.sh", filepath.Join(dir, "scripts/version.sh"), 0o700)
	git := func(at, command string, args ...string) {
		cmd := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=a", "-c", "user.email=a@b", command}, args...)...)
		cmd.Env = append(os.Environ(), "GIT_COMMITTER_DATE="+at, "GIT_AUTHOR_DATE="+at)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %s: %v\n%s", command, err, out)
		}
	}
	version := func() string {
		return strings.TrimSpace(run(t, filepath.Join(dir, "scripts/version.sh")))
	}
	git("", "init", "-q")
	git("", "add", ".")
	git("2026-11-22T10:00:00Z", "commit", "-q", "-m", "first")
	all := []string{version()}
	git("2026-11-22T10:00:01Z", "commit", "-q", "--allow-empty", "-m", "second")
	all = append(all, version())
	git("2026-11-22T10:00:02Z", "tag", "v0.1.0-rc.1")
	all = append(all, version())
	git("2026-11-22T10:00:02Z", "commit", "-q", "--allow-empty", "-m", "third")
	git("2026-11-22T10:00:02Z", "tag", "v0.1.0")
	all = append(all, version())
	git("2026-11-22T10:00:03Z", "commit", "-q", "--allow-empty", "-m", "fourth")
	all = append(all, version(), "0.1.1")
	if all[2] != "0.1.0~rc.1" || all[3] != "0.1.0" || !strings.HasPrefix(all[0], "0.1.0~git20261122.100000.") {
		t.Errorf("%q", all)
	}
	dpkg, err := exec.LookPath("dpkg")
	if err != nil {
		t.Skip("no dpkg to compare versions")
	}
	for i := range len(all) - 1 {
		run(t, dpkg, "--compare-versions", all[i], "lt", all[i+1])
	}
}
