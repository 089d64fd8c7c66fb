package diskserver

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmcrypt/vmcrypt/blockcrypt"
	"github.com/vmcrypt/vmcrypt/dek"
	"github.com/vmcrypt/vmcrypt/image"
	"github.com/vmcrypt/vmcrypt/internal/secret"
	"github.com/vmcrypt/vmcrypt/internal/secret/secrettest"
	"github.com/vmcrypt/vmcrypt/nbd"
)

// testServer is a server in this process, for tests that look into it. It does not
// run yet.
func testServer(t testing.TB, m *machine) *server {
	t.Helper()
	s := &server{
		header:  header{VM: m.VM, Directory: m.Directory, SocketUser: m.SocketUser, Engine: m.Engine},
		release: release, since: time.Unix(1e9, 0).UTC(), stopped: make(chan struct{}),
	}
	for _, d := range m.Disks {
		file, err := d.File.Handover()
		if err != nil {
			t.Fatal(err)
		}
		key, err := secret.New(dek.Size)
		if err != nil {
			t.Fatal(err)
		}
		copy(key.Bytes(), d.Key.Bytes())
		s.Disks = append(s.Disks, d.Disk)
		if err := s.add(d.Disk, file, key); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// runServer has the server serve, until the test ends at the latest.
func runServer(t *testing.T, s *server) (ended <-chan error) {
	t.Helper()
	t.Chdir(t.TempDir()) // back from the directory of the server in the end
	if err := s.listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	end := make(chan error, 1)
	var running sync.WaitGroup
	running.Go(func() { end <- s.run(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return end
}

// TestKeysAreGone looks for data keys, a KEK and key schedules in this process while
// it serves and once it was stopped.
func TestKeysAreGone(t *testing.T) {
	for _, with := range blockcrypt.Engines() {
		t.Run(with.Name(), func(t *testing.T) {
			if with.Missing() != "" {
				t.Skip(with.Missing())
			}
			m := testMachine(t)
			m.Engine = with.Name()
			s := testServer(t, m)
			var halves []*secret.Buffer
			for _, d := range m.Disks {
				halves = append(halves, halvesOf(t, d.Key)...)
			}
			ended := runServer(t, s)
			m.qemuIO(t, "scsi0:0", "write -P 5 0 1M")
			m.lockUp()
			kek, err := secret.Random(kekSize)
			if err != nil {
				t.Fatal(err)
			}
			defer kek.Destroy()
			client := connect(t, m.Directory)
			if _, err := client.Rewrap(t.Context(), "scsi0:0", "a", "b", kek); err != nil {
				t.Fatal(err)
			}
			for i, half := range halves {
				if i%2 == 0 && len(secrettest.Traces(t, half)) == 0 {
					t.Error("no trace of a key in use: the test looks for the wrong bytes")
				}
			}
			if erases {
				noTraces(t, "KEK", kek)
			}
			if failed, err := client.Stop(t.Context()); err != nil || len(failed) > 0 {
				t.Fatal(failed, err)
			}
			if err := <-ended; err != nil {
				t.Fatal(err)
			}
			for i, half := range halves {
				noTraces(t, fmt.Sprintf("half %d", i), half)
			}
		})
	}
}

func noTraces(t *testing.T, what string, key *secret.Buffer) {
	t.Helper()
	if traces := secrettest.Traces(t, key); len(traces) > 0 {
		t.Errorf("%s is left at %q", what, traces)
	}
}

// halvesOf gives the halves of a key, with which the key schedules of AES begin, each
// also with the bytes of its words turned around, as other implementations hold it.
func halvesOf(t *testing.T, key *secret.Buffer) (halves []*secret.Buffer) {
	t.Helper()
	for _, part := range [][]byte{key.Bytes()[:32], key.Bytes()[32:]} {
		for _, turn := range []int{0, 3} {
			b, err := secret.New(len(part))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(b.Destroy)
			for i := range part {
				b.Bytes()[i^turn] = part[i]
			}
			halves = append(halves, b)
		}
	}
	return halves
}

// forgetful is storage that can't make anything durable.
type forgetful struct{ *image.File }

func (forgetful) Flush() error { return errors.New("the page cache was lost") }

// What a flush says at the end reaches the agent and the log, and the keys go all
// the same.
func TestStopTellsWhatFailed(t *testing.T) {
	m := testMachine(t)
	s := testServer(t, m)
	d := s.disks[0]
	cipher, err := blockcrypt.Engine{}.NewCipher(d.key.Bytes(), 512)
	if err != nil {
		t.Fatal(err)
	}
	bad, err := blockcrypt.NewDisk(forgetful{m.Disks[0].File}, cipher, blockcrypt.Preserve)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.plain.Close(); err != nil {
		t.Fatal(err)
	}
	d.plain = bad
	if d.nbd, err = nbd.New(nbd.Export{Name: d.Node, Disk: bad}); err != nil {
		t.Fatal(err)
	}
	ended := runServer(t, s)
	failed, err := connect(t, m.Directory).Stop(t.Context())
	if err != nil || len(failed) != 1 || !strings.Contains(failed[0], "scsi0:0") || !strings.Contains(failed[0], "page cache was lost") {
		t.Errorf("stop: %v, %v", failed, err)
	}
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "page cache was lost") {
		t.Errorf("run: %v", err)
	}
	if s.disks[0].key.Len() != 0 || s.disks[1].key.Len() != 0 {
		t.Error("keys are left")
	}
}

// Stops that come together have the same result, and others may wait meanwhile.
func TestStopTwice(t *testing.T) {
	m := testMachine(t)
	s := testServer(t, m)
	ended := runServer(t, s)
	var clients [5]*Client
	for i := range clients {
		clients[i] = connect(t, m.Directory)
	}
	idle := connect(t, m.Directory)
	var stops sync.WaitGroup
	for _, c := range clients {
		stops.Go(func() {
			if failed, err := c.Stop(t.Context()); err != nil || len(failed) > 0 {
				t.Errorf("stop: %v, %v", failed, err)
			}
		})
	}
	stops.Wait()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := idle.Status(t.Context()); err == nil {
		t.Error("a client has its server after the stop")
	}
}

// transcript is a connection that says what it was given.
type transcript struct {
	io.Reader
	bytes.Buffer
}

func (c *transcript) Read(p []byte) (int, error) { return c.Reader.Read(p) }

// say has the server answer all that a client says.
func (s *server) say(text string) string {
	c := &transcript{Reader: strings.NewReader(text)}
	for s.exchange(c) {
		continue
	}
	return c.String()
}

// idleServer is one whose control can be talked to. It has stopped as soon as it is
// told.
func idleServer(t testing.TB) *server {
	m := testMachine(t)
	m.Directory = "/run/vmcrypt/web01"
	s := testServer(t, m)
	s.stop = func() {}
	close(s.stopped)
	t.Cleanup(func() {
		for _, d := range s.disks {
			d.close()
		}
	})
	return s
}

// The requests and replies of the first release.
func TestControl(t *testing.T) {
	s := idleServer(t)
	s.failed = []string{"flush"}
	status := fmt.Sprintf(`{"vm":{"name":"büro","uuid":"56 4d 0b","descriptor":%q},"pid":%d,`+
		`"since":"2001-09-09T01:46:40Z","release":"1.2.3-test","directory":"/run/vmcrypt/web01","disks":[`+
		`{"node":"scsi0:0","socket":"/run/vmcrypt/web01/scsi0:0.sock","readOnly":false,"bytesRead":0,"bytesWritten":0,"connections":0},`+
		`{"node":"nvme0:1","socket":"/run/vmcrypt/web01/nvme0:1.sock","readOnly":false,"bytesRead":0,"bytesWritten":0,"connections":0}],`+
		`"latencyBounds":[0.00005,0.0001,0.00025,0.0005,0.001,0.0025,0.005,0.01,0.05,0.25,1,10]}`,
		s.VM.Descriptor, os.Getpid())
	ok := func(result string) string { return `{"version":1,"ok":true,"result":` + result + "}\n" }
	kek := strings.Repeat("k", kekSize)
	for said, want := range map[string]string{
		`{"version":1,"op":"status"}` + "\n":                                      ok(status),
		`{"version":1,"op":"status","node":"x","later":[{}]}` + "\n":              ok(status),
		`{"version":1,"op":"status"}` + "\n" + `{"version":1,"op":"stop"}` + "\n": ok(status) + ok(`{"failed":["flush"]}`),
		`{"version":1,"op":"status"}`:                                             "", // the line does not end
		`{"version":2,"op":9}` + "\n" + `{"version":1,"op":"status"}` + "\n":      refusal(CodeVersion),
		`{"op":"status"}` + "\n":                                                  refusal(CodeMalformed),
		`{"version":-1,"op":"status"}` + "\n":                                     refusal(CodeMalformed),
		`{"version":1,"op":9}` + "\n":                                             refusal(CodeMalformed),
		"\n":                                                                      refusal(CodeMalformed),
		"GET / HTTP/1.1\r\n\r\n":                                                  refusal(CodeMalformed),
		`{"version":1}` + "\n":                                                    refusal(CodeOperation),
		`{"version":1,"op":"export-keys"}` + "\n":                                 refusal(CodeOperation),
		strings.Repeat(" ", maxRequest+1) + `{"version":1,"op":"status"}` + "\n":  refusal(CodeMalformed),
		`{"version":1,"op":"rewrap","node":"scsi0:0","alias":"a","kekID":"b"}` + "\n" + "k":     refusal(CodeMalformed),
		`{"version":1,"op":"rewrap","node":"scsi0:0","alias":"","kekID":"b"}` + "\n" + kek:      refusal(CodeMalformed),
		`{"version":1,"op":"rewrap","node":"scsi0:0","alias":"a\n","kekID":"b"}` + "\n" + kek:   refusal(CodeMalformed),
		`{"version":1,"op":"rewrap","node":"scsi0:0","alias":"a","kekID":""}` + "\n" + kek:      refusal(CodeMalformed),
		`{"version":1,"op":"rewrap","node":"sata0:0","alias":"a","kekID":"b"}` + "\n" + kek:     refusal(CodeNoDisk),
		strings.Repeat(" ", maxRequest-27) + `{"version":1,"op":"status"}` + "\n":               ok(status),
		`{"version":1,"op":"rewrap","node":"scsi0:0"}` + "\n" + kek + `{"version":1}` + "\n":    refusal(CodeMalformed),
		`{"version":1,"op":"describe"}` + "\n" + `{"version":1,"op":"stop"}` + "\n" + "garbage": ok(described(t, s)) + ok(`{"failed":["flush"]}`),
	} {
		if got := s.say(said); !sameReplies(got, want) {
			t.Errorf("to %.200q it said\n%s, not\n%s", said, got, want)
		}
	}
}

// refusal is an error reply of which only the code counts.
func refusal(code string) string { return code }

func sameReplies(got, want string) bool {
	if want == "" || strings.HasPrefix(want, "{") {
		return got == want
	}
	var r reply
	err := json.Unmarshal([]byte(got), &r)
	return err == nil && strings.Count(got, "\n") == 1 && !r.OK && r.Version == 1 &&
		r.Error.Code == want && r.Error.Message != ""
}

// described is the description of a server, by hand but for the base64.
func described(t *testing.T, s *server) string {
	t.Helper()
	var disks []string
	for _, d := range s.Disks {
		r := d.Record
		disks = append(disks, fmt.Sprintf(`{"node":%q,"readOnly":false,"format":"raw","path":%q,"dataPath":%q,`+
			`"record":{"state":"encrypted","uuid":%q,"size":%d,"cipher":"aes-256-xts-plain64","sectorSize":512,"holes":"preserve",`+
			`"mac":%q,"recipients":[{"alias":"Zürich","kekID":"kek-1","wrappedKey":%q}]}}`,
			d.Node, d.Path, d.DataPath, r.DiskUUID, r.Size,
			base64.StdEncoding.EncodeToString(r.MAC), base64.StdEncoding.EncodeToString(r.Recipients[0].WrappedKey)))
	}
	vm := fmt.Sprintf(`{"name":"büro","uuid":"56 4d 0b","descriptor":%q}`, s.VM.Descriptor)
	return `{"vm":` + vm + `,"disks":[` + strings.Join(disks, ",") + `]}`
}

// A server that has stopped has no key to wrap.
func TestRewrapAfterStop(t *testing.T) {
	s := idleServer(t)
	s.disks[0].close()
	got := s.say(`{"version":1,"op":"rewrap","node":"scsi0:0","alias":"a","kekID":"b"}` + "\n" + strings.Repeat("k", kekSize))
	if !sameReplies(got, refusal(CodeStopping)) {
		t.Error(got)
	}
}

// What replies a client takes, as from a server of any release.
func TestClient(t *testing.T) {
	for name, test := range map[string]struct {
		reply string
		check func(err error) bool
	}{
		"error": {`{"version":9,"error":{"code":"new","message":"bad luck","hint":"x"}}` + "\n", func(err error) bool {
			e := (*Error)(nil)
			return errors.As(err, &e) && e.Code == "new" && strings.Contains(err.Error(), "bad luck")
		}},
		"died":      {`{"version":1,"ok":tr`, func(err error) bool { return errors.Is(err, io.ErrUnexpectedEOF) }},
		"neither":   {"{}\n", func(err error) bool { return err != nil }},
		"no JSON":   {"hello\n", func(err error) bool { return err != nil }},
		"too long":  {strings.Repeat("x", maxReply+1<<20), func(err error) bool { return strings.Contains(err.Error(), "too long") }},
		"forgotten": {"", func(err error) bool { return errors.Is(err, io.ErrUnexpectedEOF) }},
	} {
		path := filepath.Join(t.TempDir(), controlSocket)
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			defer l.Close()
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			_, _ = readLine(conn) // the reply comes whatever it is
			_, _ = io.WriteString(conn, test.reply)
		}()
		if _, err := Connect(t.Context(), filepath.Dir(path)); err == nil || !test.check(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A client waits no longer than it is to.
func TestClientGivesUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), controlSocket)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Connect(ctx, filepath.Dir(path)); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

// Whatever a client says, each of its requests has one well-formed reply, and the
// server goes on.
func FuzzControl(f *testing.F) {
	for _, said := range []string{
		`{"version":1,"op":"status"}` + "\n" + `{"version":1,"op":"describe"}` + "\n",
		`{"version":1,"op":"rewrap","node":"scsi0:0","alias":"a","kekID":"b"}` + "\n" + strings.Repeat("k", kekSize),
		`{"version":2}` + "\n", "null\n", "[]\n", "\n\n",
		`{"VERSION":1,"op":"stop","op":"status"}` + "\n",
	} {
		f.Add(said)
	}
	s := idleServer(f)
	f.Fuzz(func(t *testing.T, said string) {
		replies := s.say(said)
		lines := strings.SplitAfter(replies, "\n")
		for i, line := range lines[:len(lines)-1] {
			var r reply
			if err := json.Unmarshal([]byte(line), &r); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			if r.Version != version || r.OK == (r.Error != nil) {
				t.Errorf("%q is no reply", line)
			}
			if r.Error != nil && i != len(lines)-2 {
				t.Errorf("it goes on after %q", line)
			}
		}
		if lines[len(lines)-1] != "" {
			t.Errorf("%q does not end", replies)
		}
		if n := strings.Count(said, "\n"); len(lines)-1 > n {
			t.Errorf("%d replies to %d lines", len(lines)-1, n)
		}
		for _, d := range s.disks {
			if d.key.Len() == 0 {
				t.Error("the key is gone")
			}
		}
	})
}
