package secrettest

import (
	"bytes"
	"runtime"
	"testing"

	"github.com/vmcrypt/vmcrypt/internal/secret"
)

func TestTraces(t *testing.T) {
	needle, err := secret.Random(32)
	if err != nil {
		t.Fatal(err)
	}
	defer needle.Destroy()
	if traces := Traces(t, needle); len(traces) != 0 {
		t.Errorf("found before it was copied: %q", traces)
	}
	leak := bytes.Clone(needle.Bytes())
	if traces := Traces(t, needle); len(traces) == 0 {
		t.Error("a copy on the heap is not found")
	}
	if traces := Remaining(t, needle); len(traces) == 0 {
		t.Error("a copy on the heap is taken for one that goes")
	}
	secret.Wipe(leak)
	if traces := Remaining(t, needle); len(traces) != 0 {
		t.Errorf("found after the copy was wiped: %q", traces)
	}
	runtime.KeepAlive(leak)
}
