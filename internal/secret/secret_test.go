package secret

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

const sample = "sixteen key byte"

func sampleBuffer(t *testing.T) *Buffer {
	t.Helper()
	b, err := Take([]byte(sample))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Destroy)
	return b
}

// holder has a Buffer in every way a struct can.
type holder struct {
	Name   string
	Key    *Buffer
	Value  Buffer
	hidden *Buffer
	inline Buffer
}

func sampleHolder(t *testing.T) holder {
	b := sampleBuffer(t)
	return holder{Name: "disk", Key: b, Value: *b, hidden: b, inline: *b}
}

// refuseLeak fails if s shows the sample key in any spelling a printer uses.
func refuseLeak(t *testing.T, s string) {
	t.Helper()
	decimal := strings.Trim(fmt.Sprint([]byte(sample)[:4]), "[]")
	for _, leak := range []string{
		sample[:4], hex.EncodeToString([]byte(sample[:4])), strings.ToUpper(hex.EncodeToString([]byte(sample[:4]))),
		decimal, strings.ReplaceAll(decimal, " ", ", "), "0x73, 0x69", "c2l4dGVl",
	} {
		if strings.Contains(s, leak) {
			t.Errorf("printed %q, which shows the key as %q", s, leak)
		}
	}
}

func TestEveryVerbPrintsThePlaceholder(t *testing.T) {
	b := sampleBuffer(t)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%X", "%q", "%d", "%o", "%b", "%t", "%40v", "% x"} {
		for _, v := range []any{b, *b} {
			if got := fmt.Sprintf(verb, v); got != placeholder {
				t.Errorf("%s of %T printed %q", verb, v, got)
			}
		}
	}
	if b.String() != placeholder || b.GoString() != placeholder {
		t.Errorf("String gives %q, GoString %q", b.String(), b.GoString())
	}
}

func TestEveryVerbHidesAFieldOfAStruct(t *testing.T) {
	h := sampleHolder(t)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%X", "%q", "%d"} {
		for _, v := range []any{h, &h, []holder{h}, map[string]*Buffer{"k": h.Key}} {
			got := fmt.Sprintf(verb, v)
			if !strings.Contains(got, placeholder) {
				t.Errorf("%s of %T printed %q without the placeholder", verb, v, got)
			}
			refuseLeak(t, got)
		}
	}
}

func TestEncodersHideTheKey(t *testing.T) {
	h := sampleHolder(t)
	for _, v := range []any{h.Key, h.Value, h, &h} {
		for name, encode := range map[string]func(any) ([]byte, error){"JSON": json.Marshal, "XML": xml.Marshal} {
			got, err := encode(v)
			if err != nil {
				t.Fatalf("%s of %T: %v", name, v, err)
			}
			if !strings.Contains(string(got), placeholder) {
				t.Errorf("%s of %T is %s", name, v, got)
			}
			refuseLeak(t, string(got))
		}
	}
}

func TestLogsHideTheKey(t *testing.T) {
	h := sampleHolder(t)
	var out bytes.Buffer
	for _, handler := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		for _, v := range []any{h.Key, h.Value, h, &h} {
			out.Reset()
			slog.New(handler).Info("unlock", "key", v)
			if !strings.Contains(out.String(), placeholder) {
				t.Errorf("%T logged %T as %s", handler, v, out.String())
			}
			refuseLeak(t, out.String())
		}
	}
}

func TestNilPrintsWithoutPanic(t *testing.T) {
	var b *Buffer
	var out bytes.Buffer
	slog.New(slog.NewTextHandler(&out, nil)).Info("unlock", "key", b)
	if got, err := json.Marshal(b); string(got) != "null" || err != nil {
		t.Errorf("JSON of nil is %s, %v", got, err)
	}
	if got := fmt.Sprint(b); got != "<nil>" {
		t.Errorf("nil prints %q", got)
	}
}

func TestMemoryIsLockedAndNotDumped(t *testing.T) {
	flags := vmFlags(t, sampleBuffer(t))
	// proc(5): lo locked, dd not in core dumps, dc not in children.
	for _, want := range []string{"lo", "dd", "dc"} {
		if !strings.Contains(" "+flags+" ", " "+want+" ") {
			t.Errorf("VmFlags of key memory are %q, without %q", flags, want)
		}
	}
}

// vmFlags gives the VmFlags line of the mapping that holds b's bytes.
func vmFlags(t *testing.T, b *Buffer) string {
	t.Helper()
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	address := uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b.Bytes()))))
	inside := false
	for line := range strings.Lines(string(smaps)) {
		var start, end uint64
		if n, _ := fmt.Sscanf(line, "%x-%x ", &start, &end); n == 2 {
			inside = start <= address && address < end
		}
		if flags, ok := strings.CutPrefix(line, "VmFlags:"); ok && inside {
			return strings.TrimSpace(flags)
		}
	}
	t.Fatalf("no mapping at %#x", address)
	return ""
}

func TestDestroyWipesBeforeUnmapping(t *testing.T) {
	b := sampleBuffer(t)
	calls := 0
	defer func(old func([]byte) error) { unmap = old }(unmap)
	unmap = func(mem []byte) error {
		calls++
		if !bytes.Equal(mem, make([]byte, len(sample))) {
			t.Errorf("given back to the kernel with % x in it", mem)
		}
		return unix.Munmap(mem)
	}
	b.Destroy()
	b.Destroy()
	if calls != 1 {
		t.Errorf("unmapped %d times", calls)
	}
	if b.Len() != 0 {
		t.Errorf("%d bytes left", b.Len())
	}
}

func TestUseAfterDestroyPanics(t *testing.T) {
	destroyed := sampleBuffer(t)
	destroyed.Destroy()
	for name, b := range map[string]*Buffer{"nil": nil, "zero": {}, "destroyed": destroyed} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("Bytes of a %s buffer gave bytes", name)
				}
			}()
			b.Bytes()
		}()
		b.Destroy()
	}
}

func TestTakeWipesItsSource(t *testing.T) {
	p := []byte(sample)
	b, err := Take(p)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Destroy()
	if string(b.Bytes()) != sample || b.Len() != len(sample) {
		t.Errorf("took %q", b.Bytes())
	}
	if !bytes.Equal(p, make([]byte, len(sample))) {
		t.Errorf("source still holds %q", p)
	}
}

func TestSizes(t *testing.T) {
	for _, n := range []int{-1, 0} {
		if _, err := New(n); err == nil {
			t.Errorf("New(%d) succeeded", n)
		}
	}
	for _, n := range []int{1, 32, 64, 4096, 4097} {
		b, err := New(n)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b.Bytes(), make([]byte, n)) {
			t.Errorf("New(%d) is not %d zeros", n, n)
		}
		b.Destroy()
	}
}

func TestRandomDiffers(t *testing.T) {
	a, errA := Random(32)
	b, errB := Random(32)
	if err := errors.Join(errA, errB); err != nil {
		t.Fatal(err)
	}
	defer a.Destroy()
	defer b.Destroy()
	if a.Equal(b) || !a.Equal(a) {
		t.Error("two random secrets are equal, or one differs from itself")
	}
}

func TestEqual(t *testing.T) {
	b := sampleBuffer(t)
	for other, want := range map[string]bool{sample: true, "sixteen key bytf": false, sample[:15]: false, sample + "x": false} {
		o, err := Take([]byte(other))
		if err != nil {
			t.Fatal(err)
		}
		if b.Equal(o) != want {
			t.Errorf("Equal to %q is %v", other, !want)
		}
		o.Destroy()
	}
}

func TestConcurrentDestroy(t *testing.T) {
	b := sampleBuffer(t)
	var group sync.WaitGroup
	for range 8 {
		group.Go(b.Destroy)
	}
	group.Wait()
}

// limitedChild names the process that TestLockFailure runs itself as.
const limitedChild = "VMCRYPT_SECRET_TEST_LIMITED"

// TestLockFailure runs in a child process, whose RLIMIT_MEMLOCK it lowers.
func TestLockFailure(t *testing.T) {
	if os.Getenv(limitedChild) != "" {
		lockBeyondTheLimit(t)
		return
	}
	child := exec.Command(os.Args[0], "-test.run=^TestLockFailure$", "-test.v")
	child.Env = append(os.Environ(), limitedChild+"=1")
	out, err := child.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: TestLockFailure")) {
		t.Fatalf("child: %v\n%s", err, out)
	}
}

func lockBeyondTheLimit(t *testing.T) {
	size := os.Getpagesize()
	if os.Getuid() == 0 { // root may lock any amount
		if err := syscall.Setuid(65534); err != nil {
			t.Fatal(err)
		}
	}
	limit := unix.Rlimit{Cur: uint64(size), Max: uint64(size)}
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		t.Fatal(err)
	}
	key := bytes.Repeat([]byte{7}, 2*size)
	_, err := Take(key)
	if err == nil || !strings.Contains(err.Error(), "RLIMIT_MEMLOCK") || !strings.Contains(err.Error(), strconv.Itoa(2*size)) {
		t.Errorf("error is %v", err)
	}
	if !bytes.Equal(key, make([]byte, 2*size)) {
		t.Error("the failed Take left its source unwiped")
	}
}
