package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmcrypt/vmcrypt/internal/testtool"
)

// The test binary is vmcrypt itself where this variable is set, so that tests run
// real processes.
const actAsVMCrypt = "VMCRYPT_TEST_ACT_AS_VMCRYPT"

func TestMain(m *testing.M) {
	if os.Getenv(actAsVMCrypt) == "1" {
		main()
	}
	testtool.RunMoreAtOnce()
	os.Exit(m.Run())
}

// withoutForks does what opens disks in this process, where other tests run beside it.
// A process that is forked meanwhile would keep the disks' locks until it executes its
// program. It must not be nested.
func withoutForks(do func()) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	do()
}

// home is a place with a configuration and a key manager of its own.
type home struct {
	t   *testing.T
	dir string
}

// newHome makes a home as "vmcrypt init" does.
func newHome(t *testing.T) *home {
	t.Helper()
	h := emptyHome(t)
	h.ok("init")
	return h
}

func emptyHome(t *testing.T) *home {
	return &home{t: t, dir: filepath.Join(t.TempDir(), "home")}
}

// result is what a run of vmcrypt left.
type result struct {
	stdout, stderr string
	code           int
}

func (h *home) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	cmd.Env = append(os.Environ(), actAsVMCrypt+"=1", "VMCRYPT_HOME="+h.dir)
	return cmd
}

func (h *home) run(args ...string) result {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), 5*time.Minute)
	defer cancel()
	return h.finish(h.command(ctx, args...))
}

func (h *home) finish(cmd *exec.Cmd) result {
	h.t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		h.t.Fatal(err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// ok runs vmcrypt, which must succeed, and returns its standard output.
func (h *home) ok(args ...string) string {
	h.t.Helper()
	r := h.run(args...)
	if r.code != exitDone {
		h.t.Fatalf("vmcrypt %s: exit code %d\n%s", strings.Join(args, " "), r.code, r.stderr)
	}
	return r.stdout
}

// fails runs vmcrypt, which must end with code, and say all the words on its
// standard error.
func (h *home) fails(code int, words []string, args ...string) {
	h.t.Helper()
	r := h.run(args...)
	if r.code != code {
		h.t.Fatalf("vmcrypt %s: exit code %d, want %d\n%s", strings.Join(args, " "), r.code, code, r.stderr)
	}
	for _, word := range words {
		if !strings.Contains(r.stderr, word) {
			h.t.Errorf("vmcrypt %s: the error says nothing of %q:\n%s", strings.Join(args, " "), word, r.stderr)
		}
	}
}

func parseJSON[T any](t *testing.T, text string) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
	return v
}

func sum(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, f); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(hash.Sum(nil))
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// names lists what is in a folder, temporary files included.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// unchanged runs do, which must leave the names in a folder as they are.
func unchanged(t *testing.T, dir string, do func()) {
	t.Helper()
	before := names(t, dir)
	do()
	if after := names(t, dir); !slices.Equal(before, after) {
		t.Errorf("%s: %v became %v", dir, before, after)
	}
}

// smallImage makes a disk image of 64 KiB that is not all the same.
func smallImage(t *testing.T, path string) {
	t.Helper()
	data := make([]byte, 64<<10)
	for i := range data {
		data[i] = byte(i>>9) ^ byte(i)
	}
	write(t, path, data)
}
