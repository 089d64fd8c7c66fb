package audit

import (
	"bufio"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// killEnv makes the test binary append to the log in a folder until it is killed.
const killEnv = "VMCRYPT_TEST_AUDIT"

const killWriters = 4

// appendForEver prints each entry when it was acknowledged. A third of them need
// not outlast a power cut; all outlast the process.
func appendForEver(dir string) error {
	l, err := Open(dir, Head{})
	if err != nil {
		return err
	}
	l.full = 4000
	failed := make(chan error)
	for w := range killWriters {
		go func() {
			for i := 0; ; i++ {
				id := fmt.Sprintf("%d-%d-%d", os.Getpid(), w, i)
				if err := l.Append(i%3 > 0, note{Who: "c", Object: id}); err != nil {
					failed <- err
				}
				fmt.Println(id)
			}
		}()
	}
	return <-failed
}

// TestKill: what was acknowledged is in the log, and that is whole, whenever the
// process is killed.
func TestKill(t *testing.T) {
	rounds := 8
	if os.Getenv("VMCRYPT_TEST_LONG") == "1" {
		rounds = 50
	}
	dir, acknowledged := t.TempDir(), 0
	for range rounds {
		ids := killed(t, dir)
		acknowledged += len(ids)
		if r := verify(t, dir, Head{}); r.Err() != nil {
			t.Fatal(r.Problems)
		}
		// The next one to open it puts aside what was half written.
		head := appendNotes(t, dir, Head{}, 1)
		wantWhole(t, dir, head, 1, head.Sequence)
		there := wholeText(t, dir)
		for _, id := range ids {
			if strings.Count(there, `"object":"`+id+`"`) != 1 {
				t.Fatalf("entry %s was acknowledged and is not there once", id)
			}
		}
	}
	if t.Logf("%d kills, %d entries acknowledged", rounds, acknowledged); acknowledged == 0 {
		t.Error("nothing was acknowledged")
	}
}

// killed runs appendForEver for a moment and gives what was acknowledged.
func killed(t *testing.T, dir string) (ids []string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), killEnv+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if len(ids) == 0 { // now it writes
			time.AfterFunc(time.Duration(rand.IntN(50_000))*time.Microsecond, func() { _ = cmd.Process.Kill() })
		}
		ids = append(ids, lines.Text())
	}
	if _ = cmd.Wait(); stderr.Len() > 0 {
		t.Fatal(stderr.String())
	}
	return ids
}

// wholeText is the text of all files.
func wholeText(t *testing.T, dir string) string {
	t.Helper()
	var all strings.Builder
	names, err := fs.Glob(os.DirFS(dir), "audit*.log")
	for _, name := range names {
		text, readErr := fs.ReadFile(os.DirFS(dir), name)
		if err == nil {
			err = readErr
		}
		all.Write(text)
	}
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}
