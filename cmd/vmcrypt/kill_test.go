package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vmcrypt/vmcrypt/agent"
)

// killNumber is what a variable of the environment says, or else the given number.
func killNumber(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// killRounds is how often a conversion is killed.
func killRounds(t *testing.T) int {
	t.Helper()
	if os.Getenv("VMCRYPT_TEST_LONG") == "1" {
		return killNumber(t, "VMCRYPT_KILL_ROUNDS", 300)
	}
	return killNumber(t, "VMCRYPT_KILL_ROUNDS", 12)
}

// TestKilled kills conversions at random moments, again and again, until each has
// come to its end, and then compares every byte. A kill counts if the disk was
// amid the conversion.
func TestKilled(t *testing.T) {
	k := newKiller(t)
	left, ended := killRounds(t), 0
	for begun := time.Now(); left > 0; ended++ {
		k.begin()
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
	t.Logf("%d kills amid %d times encrypt, rekey and decrypt, %d of them while going back; by bytes of a zone: %v",
		killRounds(t), ended, k.backward, k.kills)
}

// killer kills conversions of a disk.
type killer struct {
	*home
	random      *rand.Rand
	dir         string
	plain, disk string
	zone        int
	flags       []string    // of encrypt
	backward    int         // kills while a conversion went back
	kills       map[int]int // by zone
}

func newKiller(t *testing.T) *killer {
	seed := killNumber(t, "VMCRYPT_KILL_SEED", rand.Int())
	t.Logf("VMCRYPT_KILL_SEED=%d", seed)
	return &killer{home: newHome(t), random: rand.New(rand.NewPCG(uint64(seed), 0)), dir: t.TempDir(), kills: map[int]int{}}
}

// killSizes are those of disks of which conversions with a zone last for some
// hundred milliseconds. With the larger zones, data go past the page cache.
var killSizes = map[int]int64{4096: 1 << 20, 64 << 10: 16 << 20, 1 << 20: 64 << 20}

// begin makes another disk and says how it is to be encrypted.
func (k *killer) begin() {
	k.t.Helper()
	k.zone = []int{4096, 64 << 10, 1 << 20}[k.random.IntN(3)]
	holes := []string{"preserve", "fill"}[k.random.IntN(2)]
	sector := []string{"512", "4096"}[k.random.IntN(2)]
	k.flags = []string{"--holes", holes, "--sector-size", sector}
	k.t.Logf("--zone %d %v", k.zone, k.flags)
	k.plain, k.disk = filepath.Join(k.dir, fmt.Sprint("plain", k.zone)), filepath.Join(k.dir, "disk.img")
	if _, err := os.Stat(k.plain); err != nil {
		holedImage(k.t, k.plain, killSizes[k.zone])
	}
	if err := os.RemoveAll(k.disk); err != nil {
		k.t.Fatal(err)
	}
	copyFile(k.t, k.disk, k.plain)
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
		abort := at == amid && left > 0 && k.random.IntN(4) == 0
		complete := k.runFor(k.patience(left), command, abort)
		after := state(k.t, k.disk)
		switch {
		case complete && !abort:
			return left
		case after.State == amid:
			left = max(left-1, 0)
			k.kills[k.zone]++
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
	return time.Duration(50+k.random.IntN(250)) * time.Millisecond
}

// runFor runs a conversion, kills it after some time, and tells whether it had
// come to an end by then.
func (k *killer) runFor(limit time.Duration, command string, abort bool) bool {
	k.t.Helper()
	args := []string{command, k.disk, "--zone", strconv.Itoa(k.zone)}
	switch command {
	case "encrypt":
		args = append(args, k.flags...)
	case "rekey":
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
