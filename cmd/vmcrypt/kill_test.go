package main

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vmcrypt/vmcrypt/agent"
)

// killRounds is how often a conversion is killed.
func killRounds(t *testing.T) int {
	t.Helper()
	if text := os.Getenv("VMCRYPT_KILL_ROUNDS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if os.Getenv("VMCRYPT_TEST_LONG") == "1" {
		return 300
	}
	return 12
}

// TestKilled kills conversions at random moments, again and again, until each has
// come to its end, and then compares every byte. A kill counts if the disk was
// amid the conversion.
func TestKilled(t *testing.T) {
	t.Parallel()
	k := newKiller(t)
	left, ended := killRounds(t), 0
	for begun := time.Now(); left > 0; ended++ {
		left = k.convert("encrypt", agent.StateEncrypting, left)
		k.isEncrypted(k.disk, "scsi0:0", k.plain)
		left = k.convert("rekey", agent.StateRekeying, left)
		k.isEncrypted(k.disk, "scsi0:0", k.plain)
		left = k.convert("decrypt", agent.StateDecrypting, left)
		if sum(t, k.disk) != sum(t, k.plain) {
			t.Fatal("the disk did not come back")
		}
		if time.Since(begun) > 15*time.Minute {
			t.Fatalf("%d kills to go, which is too slow", left)
		}
	}
	t.Logf("%d kills amid %d times encrypt, rekey and decrypt, %d of them while going back", killRounds(t), ended, k.backward)
}

// killer kills conversions of a disk.
type killer struct {
	*home
	plain, disk string
	backward    int // kills while a conversion went back
}

func newKiller(t *testing.T) *killer {
	dir := t.TempDir()
	k := &killer{home: newHome(t), plain: filepath.Join(dir, "plain"), disk: filepath.Join(dir, "disk.img")}
	holedImage(t, k.plain, 2<<20)
	copyFile(t, k.disk, k.plain)
	return k
}

// convert runs a conversion until it has come to its end, and kills it on the way
// up to a number of times. It returns how many kills are left. Now and then it has
// a conversion go back, and forward again.
func (k *killer) convert(command, amid string, left int) int {
	k.t.Helper()
	before := state(k.t, k.disk).State
	for {
		at := state(k.t, k.disk).State
		if at != amid && at != before {
			return left // it was killed when it had come to its end
		}
		abort := at == amid && left > 0 && rand.IntN(4) == 0
		complete := k.runFor(k.patience(left), command, abort)
		after := state(k.t, k.disk)
		switch {
		case complete && !abort:
			return left
		case after.State == amid:
			left = max(left-1, 0)
			if after.Conversion.Direction == agent.DirectionBackward {
				k.backward++
			}
		}
	}
}

// patience is how long a conversion may run.
func (k *killer) patience(left int) time.Duration {
	if left == 0 {
		return time.Minute
	}
	return time.Duration(50+rand.IntN(250)) * time.Millisecond
}

// runFor runs a conversion, kills it after some time, and tells whether it had
// come to an end by then.
func (k *killer) runFor(limit time.Duration, command string, abort bool) bool {
	k.t.Helper()
	args := []string{command, k.disk, "--zone", "4096"}
	if command == "rekey" {
		args = append(args, "--deep")
	}
	if abort {
		args = append(args, "--abort")
	}
	cmd := k.command(k.t.Context(), args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		k.t.Fatal(err)
	}
	timer := time.AfterFunc(limit, func() { cmd.Process.Kill() })
	_ = cmd.Wait()
	timer.Stop()
	code, said := cmd.ProcessState.ExitCode(), stderr.String()
	// Once all sectors are as before, or none is, a conversion can't be turned.
	turned := strings.Contains(said, "was aborted") || strings.Contains(said, "too late to abort")
	if code > 0 && !(code == exitFailure && turned) {
		k.t.Fatalf("%v: exit code %d\n%s", args, code, said)
	}
	return code == exitDone
}
