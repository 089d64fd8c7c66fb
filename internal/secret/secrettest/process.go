package secrettest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
)

// Needle is something that is looked for.
type Needle struct {
	Name  string
	Bytes []byte // 8 at least
}

// InProcess gives a line for every place where the writable memory of another process
// holds a needle. Who can't look into it skips the test.
func InProcess(t *testing.T, pid int, needles []Needle) (found []string) {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Skipf("other processes can't be looked into: %v", err)
	}
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Skipf("other processes can't be looked into: %v", err)
	}
	defer memory.Close()
	h := newHaystack(memory, needles)
	for line := range strings.Lines(string(maps)) {
		var start, end uint64
		var access string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &start, &end, &access); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if !strings.HasPrefix(access, "rw") {
			continue
		}
		for _, name := range h.search(int64(start), int64(end)) {
			found = append(found, name+" in "+strings.TrimSpace(line))
		}
	}
	return found
}

// haystack is memory that is searched for many needles at once.
type haystack struct {
	memory  io.ReaderAt
	begins  [1 << 16]bool       // whether a needle begins with these two bytes
	needles map[uint64][]Needle // by their first eight
	longest int
}

func newHaystack(memory io.ReaderAt, needles []Needle) *haystack {
	h := &haystack{memory: memory, needles: map[uint64][]Needle{}}
	for _, n := range needles {
		h.begins[binary.LittleEndian.Uint16(n.Bytes)] = true
		first := binary.LittleEndian.Uint64(n.Bytes)
		h.needles[first] = append(h.needles[first], n)
		h.longest = max(h.longest, len(n.Bytes))
	}
	return h
}

// search gives the names of the needles from start up to end.
func (h *haystack) search(start, end int64) (found []string) {
	window, untouched := make([]byte, windowSize), make([]byte, windowSize)
	step := int64(windowSize - h.longest + 1) // windows overlap
	for at := start; at < end; at += step {
		n, _ := h.memory.ReadAt(window[:min(windowSize, end-at)], at) // unmapped by now: nothing
		if !bytes.Equal(window[:n], untouched[:n]) {                  // as most of it is
			found = append(found, h.in(window[:n])...)
		}
	}
	return found
}

func (h *haystack) in(p []byte) (found []string) {
	for i := 0; i+8 <= len(p); i++ {
		if !h.begins[binary.LittleEndian.Uint16(p[i:])] {
			continue
		}
		for _, n := range h.needles[binary.LittleEndian.Uint64(p[i:])] {
			if strings.HasPrefix(string(p[i:]), string(n.Bytes)) {
				found = append(found, n.Name)
			}
		}
	}
	return found
}
