package packaging

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmcrypt/vmcrypt/internal/testtool"
)

// TestInstall does with the package what testdata/install.sh says, in a Debian that is
// made for it and that systemd boots.
func TestInstall(t *testing.T) {
	testtool.Long(t)
	if os.Geteuid() != 0 {
		t.Skip("only root can boot another Debian")
	}
	testtool.Need(t, "systemd-nspawn")
	root := bareDebian(t)
	for name, release := range map[string]string{"old.deb": "0.1.0~test1", "new.deb": "0.1.0~test2"} {
		copyFile(t, makePackage(t, "..", "deb", release), filepath.Join(root, name), 0o644)
	}
	copyFile(t, "testdata/install.sh", filepath.Join(root, "install.sh"), 0o755)
	atBoot(t, root)
	options := blockDevice(t)

	began := time.Now()
	out := boot(t, root, options...)
	result, _ := os.ReadFile(filepath.Join(root, "result"))
	if !strings.Contains(string(result), "\n== ") || !strings.HasSuffix(strings.TrimSpace(string(result)), " done") {
		t.Fatalf("%s\n%s", tail(string(result), 120), tail(out, 20))
	}
	t.Logf("%v from boot to power off", time.Since(began).Round(time.Second))
	for line := range strings.Lines(string(result)) {
		if strings.HasPrefix(line, "== ") {
			t.Log(strings.TrimSpace(line))
		}
	}
}

// bareDebian is a folder with what systemd and fio need, and no more.
func bareDebian(t *testing.T) string {
	t.Helper()
	program := testtool.Need(t, "mmdebstrap")
	root := filepath.Join(t.TempDir(), "root")
	run(t, program, "--variant=minbase", "--include=systemd,systemd-sysv,dbus,fio,man-db", "bookworm", root)
	return root
}

// atBoot has install.sh run when systemd has booted, and the machine powered off then.
func atBoot(t *testing.T, root string) {
	t.Helper()
	unit := `[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/install.sh
LimitMEMLOCK=infinity
ExecStopPost=/bin/systemctl poweroff --no-block
StandardOutput=file:/result
StandardError=inherit
`
	folder := filepath.Join(root, "etc/systemd/system")
	if err := os.WriteFile(filepath.Join(folder, "install.service"), []byte(unit), 0o600); err != nil {
		t.Fatal(err)
	}
	// It has not to be waited for before the boot is complete: the target is its own.
	wants := filepath.Join(folder, "default.target.wants")
	if err := os.MkdirAll(wants, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../install.service", filepath.Join(wants, "install.service")); err != nil {
		t.Fatal(err)
	}
}

// boot runs the machine until it powers off.
func boot(t *testing.T, root string, options ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "../scripts/isolate.sh", append([]string{"testdata/boot.sh", root}, options...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Logf("boot: %v", err)
	}
	return string(out)
}

// blockDevice gives the machine a block device, where there are any to be had.
func blockDevice(t *testing.T) []string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 32<<20); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", path).Output()
	device := strings.TrimSpace(string(out))
	if err != nil || device == "" {
		t.Logf("no block device: losetup: %v", err)
		return nil
	}
	t.Cleanup(func() { run(t, "losetup", "--detach", device) })
	return []string{"--bind=" + device + ":/dev/vmcrypt"}
}

// makePackage packages the sources in a folder as a release, and gives the file.
func makePackage(t *testing.T, folder, format, release string) string {
	t.Helper()
	cmd := exec.Command("make", "--no-print-directory", format)
	cmd.Dir = folder
	cmd.Env = append(os.Environ(), "PACKAGE_VERSION="+release, "SOURCE_DATE_EPOCH=1700000000")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make %s: %v\n%s", format, err, out)
	}
	made, err := filepath.Glob(filepath.Join(folder, "dist/vmcrypt_"+release+"_*."+format))
	if err != nil || len(made) != 1 {
		t.Fatalf("made %v, %v", made, err)
	}
	t.Cleanup(func() { os.Remove(made[0]) })
	return made[0]
}

func copyFile(t *testing.T, from, to string, mode os.FileMode) {
	t.Helper()
	text, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, text, mode); err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, tail(string(out), 40))
	}
	return string(out)
}

func tail(text string, lines int) string {
	all := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return fmt.Sprintln(strings.Join(all[max(0, len(all)-lines):], "\n"))
}
