package kek

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
)

// testMemory looks for a key in all of this process's memory. The key manager
// must be another process.
func testMemory(t *testing.T, c *Cluster) {
	key, err := c.Create(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	hidden := make([]byte, keySize) // not to be found itself
	for i, b := range key.Material.Bytes() {
		hidden[i] = ^b
	}
	if n := count(t, hidden); n != 1 {
		t.Errorf("%d copies of a key in use, want 1", n)
	}
	key.Destroy()
	if n := count(t, hidden); n != 0 {
		t.Errorf("%d copies of a key after Destroy, want 0", n)
	}
}

// count tells how often the complement of hidden lies in writable memory.
func count(t *testing.T, hidden []byte) int {
	t.Helper()
	mem, err := os.Open("/proc/self/mem")
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for lines := bufio.NewScanner(bytes.NewReader(maps)); lines.Scan(); {
		var low, high uint64
		var mode string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &low, &high, &mode); err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(mode, "rw") {
			found += countIn(io.NewSectionReader(mem, int64(low), int64(high-low)), hidden)
		}
	}
	return found
}

// countIn looks for the complement of hidden. What it reads it complements at
// once and wipes in the end, not to count its own buffer.
func countIn(r io.Reader, hidden []byte) int {
	found, kept := 0, 0
	buf := make([]byte, 1<<20)
	defer clear(buf)
	for {
		n, err := r.Read(buf[kept:])
		for i := kept; i < kept+n; i++ {
			buf[i] = ^buf[i]
		}
		have := buf[:kept+n]
		found += bytes.Count(have, hidden)
		if n == 0 || err != nil {
			return found
		}
		kept = copy(buf, have[len(have)-min(len(have), len(hidden)-1):])
	}
}
