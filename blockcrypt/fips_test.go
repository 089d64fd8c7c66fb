//go:build !purego

package blockcrypt

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// TestFIPSMode runs this test binary again in Go's FIPS 140 mode, where only Go's
// own module may encrypt.
func TestFIPSMode(t *testing.T) {
	if os.Getenv("VMCRYPT_TEST_FIPS") != "" {
		for _, e := range Engines() {
			if missing := e.Missing(); (missing == "") != (e.Name() == "crypto-aes") {
				t.Errorf("%s: %q", e.Name(), missing)
			}
		}
		if e := fastest(t); e.Name() != "crypto-aes" {
			t.Errorf("%s is the fastest", e.Name())
		}
		return
	}
	c := exec.Command(os.Args[0], "-test.run=^TestFIPSMode$")
	c.Env = append(os.Environ(), "VMCRYPT_TEST_FIPS=1", "GODEBUG=fips140=on")
	out, err := c.CombinedOutput()
	if errors.Is(err, syscall.ENOEXEC) {
		t.Skip("this test runs in an emulator, which cannot start another")
	}
	if err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
