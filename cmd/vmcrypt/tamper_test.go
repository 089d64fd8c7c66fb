package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/vmcrypt/vmcrypt/agent"
)

// vmcryptValue finds the values of a descriptor's vmcrypt keys.
var vmcryptValue = regexp.MustCompile(`(?m)^[^ ]*\.vmcrypt\.([^ ]*) = "(.*)"$`)

// TestEveryFlippedBitIsRefused flips each bit of each value of a record or, unless
// tests may be long, one of each byte. It runs in this process, since it takes
// thousands of decryptions.
func TestEveryFlippedBitIsRefused(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	dir := t.TempDir()
	image, encrypted := filepath.Join(dir, "disk.img"), filepath.Join(dir, "enc.img")
	smallImage(t, image)
	h.ok("encrypt", image, "--output", encrypted)
	descriptor := encrypted + ".vmx"
	good := read(t, descriptor)
	found := vmcryptValue.FindAllSubmatchIndex(good, -1)
	if len(found) != 11 {
		t.Fatalf("%d values, want 11", len(found))
	}
	decrypt := h.inProcess(t)
	long := os.Getenv("VMCRYPT_TEST_LONG") == "1"
	codes := map[int]int{}
	for _, m := range found {
		key := string(good[m[2]:m[3]])
		for at := m[4]; at < m[5]; at++ {
			for bit := range 8 {
				if !long && bit != at%8 {
					continue
				}
				bad := bytes.Clone(good)
				bad[at] ^= 1 << bit
				write(t, descriptor, bad)
				code := decrypt(encrypted, filepath.Join(dir, "out"))
				codes[code]++
				if !allowed(key, code) {
					t.Errorf("%s: %q became %q: exit code %d", key, good[m[4]:m[5]], bad[m[4]:m[5]], code)
				}
			}
		}
	}
	if got := fmt.Sprint(names(t, dir)); got != "[disk.img enc.img enc.img.vmx]" {
		t.Errorf("left behind: %s", got)
	}
	if codes[exitTampered] == 0 || codes[exitKey] == 0 {
		t.Errorf("exit codes and how often: %v", codes)
	}
	write(t, descriptor, good)
	if code := decrypt(encrypted, filepath.Join(dir, "out")); code != exitDone {
		t.Errorf("the undamaged descriptor: exit code %d", code)
	}
}

// allowed says which exit codes a change of a value may end with: 5, or 4 where
// it no longer leads to the key.
func allowed(key string, code int) bool {
	leads := strings.HasSuffix(key, ".alias") || strings.HasSuffix(key, ".kekID")
	return code == exitTampered || leads && code == exitKey
}

// inProcess returns a function that decrypts in this process and gives the exit
// code.
func (h *home) inProcess(t *testing.T) func(target, output string) int {
	t.Helper()
	e := h.environment()
	return func(path, output string) int {
		var err error
		withoutForks(func() {
			var target *agent.Target
			if target, err = agent.Open(path, ""); err == nil {
				_, err = e.host().Decrypt(context.Background(), target, agent.DecryptOptions{Output: output})
			}
		})
		if err == nil {
			return exitDone
		}
		return exitCode(err)
	}
}

func TestTruncatedDescriptor(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	dir := t.TempDir()
	image, encrypted := filepath.Join(dir, "disk.img"), filepath.Join(dir, "enc.img")
	smallImage(t, image)
	h.ok("encrypt", image, "--output", encrypted)
	good := read(t, encrypted+".vmx")
	decrypt := h.inProcess(t)
	whole := len(bytes.TrimRight(good, "\"\n"))
	for n := range whole {
		write(t, encrypted+".vmx", good[:n])
		if code := decrypt(encrypted, filepath.Join(dir, "out")); code != exitTampered {
			t.Errorf("cut to %d of %d bytes: exit code %d", n, len(good), code)
		}
	}
	if err := os.Remove(encrypted + ".vmx"); err != nil {
		t.Fatal(err)
	}
	h.fails(exitTampered, []string{"enc.img.vmx is missing"}, "decrypt", encrypted, "--output", filepath.Join(dir, "out"))
	h.fails(exitTampered, []string{"marked as encrypted"}, "encrypt", encrypted, "--output", filepath.Join(dir, "out"))
}

func TestSwappedKeys(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"a", "b"} {
		smallImage(t, at(name))
	}
	write(t, at("vm.vmx"), []byte("scsi0:0.fileName = \"a\"\nscsi0:1.fileName = \"b\"\n"))
	h.ok("encrypt", at("vm.vmx"), "--output", at("enc"))
	good := string(read(t, at("enc/vm.vmx")))
	refused := func(descriptor string, words ...string) {
		t.Helper()
		write(t, at("enc/vm.vmx"), []byte(descriptor))
		unchanged(t, dir, func() {
			h.fails(exitTampered, words, "decrypt", at("enc/vm.vmx"), "--output", at("out"))
		})
	}

	keys := regexp.MustCompile(`recipient0\.key = "(.*)"`).FindAllStringSubmatch(good, -1)
	refused(swap(good, keys[0][1], keys[1][1]))
	refused(swap(good, "scsi0:0.vmcrypt", "scsi0:1.vmcrypt"), "is disk")
}

func swap(s, a, b string) string {
	return strings.NewReplacer(a, b, b, a).Replace(s)
}

func TestFutureVersion(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	dir := t.TempDir()
	image, encrypted := filepath.Join(dir, "disk.img"), filepath.Join(dir, "enc.img")
	smallImage(t, image)
	h.ok("encrypt", image, "--output", encrypted)
	descriptor := strings.Replace(string(read(t, encrypted+".vmx")), `version = "1"`, `version = "2"`, 1)
	write(t, encrypted+".vmx", []byte(descriptor))
	h.fails(exitTampered, []string{"version", "release"}, "decrypt", encrypted, "--output", filepath.Join(dir, "out"))
	h.fails(exitTampered, []string{"version"}, "status", encrypted)
}
