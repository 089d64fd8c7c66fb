// Package secrettest finds what is left of a key in the memory of a test.
package secrettest

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/vmcrypt/vmcrypt/internal/secret"
)

// windowSize is how many bytes are read and searched at a time.
const windowSize = 64 << 10

// Remaining is Traces for a key that should be gone. What is unreachable is erased
// when the collector finds that, which a stale word on some stack may put off: so it
// looks again for a while.
func Remaining(t *testing.T, needle *secret.Buffer) (traces []string) {
	t.Helper()
	for range 40 {
		if traces = Traces(t, needle); len(traces) == 0 {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return traces
}

// Traces collects garbage and gives a line for every place outside needle itself
// where the writable memory of this process holds the bytes of needle.
func Traces(t *testing.T, needle *secret.Buffer) []string {
	t.Helper()
	for range 3 { // what a pool lets go, and what is found unreachable later
		runtime.GC()
	}
	window, err := secret.New(windowSize)
	if err != nil {
		t.Fatal(err)
	}
	defer window.Destroy()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	memory, err := os.Open("/proc/self/mem")
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	var traces []string
	for line := range strings.Lines(string(maps)) {
		var start, end uint64
		var access string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &start, &end, &access); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if !strings.HasPrefix(access, "rw") {
			continue
		}
		for _, at := range search(memory, start, end, needle.Bytes(), window.Bytes()) {
			if !within(at, needle) && !within(at, window) {
				traces = append(traces, fmt.Sprintf("%#x of %s", at, strings.TrimSpace(line)))
			}
		}
	}
	return traces
}

// within reports whether address is one of b's.
func within(address uint64, b *secret.Buffer) bool {
	start := uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b.Bytes()))))
	return start <= address && address < start+uint64(b.Len())
}

// search gives the addresses of needle from start up to end.
func search(memory *os.File, start, end uint64, needle, window []byte) []uint64 {
	var found []uint64
	step := uint64(len(window) - len(needle) + 1) // windows overlap
	for at := start; at < end; at += step {
		n, _ := memory.ReadAt(window[:min(uint64(len(window)), end-at)], int64(at)) // unmapped by now: nothing
		for from := 0; ; {
			i := bytes.Index(window[from:n], needle)
			if i < 0 {
				break
			}
			found = append(found, at+uint64(from+i))
			from += i + 1
		}
	}
	return found
}
