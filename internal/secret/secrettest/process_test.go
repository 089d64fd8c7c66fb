package secrettest

import (
	"bytes"
	"encoding/hex"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// TestScheduleOf: the example of FIPS 197, appendix A.3, and the way back of C.3.
func TestScheduleOf(t *testing.T) {
	unhex := func(text string) []byte {
		b, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	a3 := ScheduleOf("A.3", unhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4"))
	c3 := ScheduleOf("C.3", unhex("000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"))
	for name, want := range map[string]string{
		"A.3, half 1":                  "603deb1015ca71be2b73aef0857d7781",
		"A.3, half 2 in words":         "072c351fd708613ba310982df4df1409",
		"A.3, round key 2":             "9ba354118e6925afa51a8b5f2067fcde",
		"A.3, round key 14":            "fe4890d1e6188d0b046df344706c631e",
		"C.3, round key 13 to decrypt": "34f1d1ffbfceaa2ffce9e25f2558016e",
		"C.3, half 2 to decrypt":       "1a1f181d1e1b1c191217101516131411",
	} {
		i := slices.IndexFunc(append(a3, c3...), func(n Needle) bool { return n.Name == name })
		if i < 0 {
			t.Errorf("no %s", name)
			continue
		}
		if got := append(a3, c3...)[i].Bytes; !bytes.Equal(got, unhex(want)) {
			t.Errorf("%s is %x, not %s", name, got, want)
		}
	}
}

// TestInProcess finds what another process has in its environment.
func TestInProcess(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	cmd.Env = append(os.Environ(), "NEEDLE=somewhere in the haystack")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait() //nolint:errcheck // it is killed
	defer cmd.Process.Kill()
	found := InProcess(t, cmd.Process.Pid, []Needle{{"it", []byte("where in the hay")}, {"another", []byte("where in the hey")}})
	if len(found) == 0 || !strings.HasPrefix(found[0], "it in ") {
		t.Errorf("found %q", found)
	}
	for _, line := range found {
		if strings.HasPrefix(line, "another") {
			t.Error(line)
		}
	}
}
