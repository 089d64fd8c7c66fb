package kms

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gemalto/kmip-go/kmip14"
	"github.com/gemalto/kmip-go/ttlv"
	"github.com/google/uuid"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// killRoundsEnv says how often to kill where 200 times are not enough.
const killRoundsEnv = "VMCRYPT_KILL_ROUNDS"

const (
	roundsPerHome = 20 // then the next home is made, and killed while it is made
	killClients   = 3
)

// process is the test binary doing something to a home, to be killed.
type process struct {
	cmd    *exec.Cmd
	out    *bufio.Reader
	stderr bytes.Buffer
}

func start(t *testing.T, env string, h Home) *process {
	t.Helper()
	p := &process{cmd: exec.Command(os.Args[0])}
	p.cmd.Env = append(os.Environ(), env+"="+h.ConfigDir())
	p.cmd.Stderr = &p.stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.out = bufio.NewReader(out)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.cmd.Process.Kill() })
	return p
}

// line reads a line that the process prints, or fails if it is killed before.
func (p *process) line() (string, error) {
	line, err := p.out.ReadString('\n')
	return strings.TrimSpace(line), err
}

func (p *process) killAfter(d time.Duration) {
	time.AfterFunc(d, func() { _ = p.cmd.Process.Kill() })
}

// wait waits for the end, which must be by kill, or by itself if it is done.
func (p *process) wait(t *testing.T) {
	t.Helper()
	err := p.cmd.Wait()
	status := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if err != nil && status.Signal() != syscall.SIGKILL {
		t.Fatalf("the process ended by itself: %v: %s", err, p.stderr.String())
	}
}

// long tells whether there is time for the whole of a test.
func long() bool { return os.Getenv("VMCRYPT_TEST_LONG") == "1" }

// TestKill kills the key manager, from its first initialisation on, while
// clients make and change keys and its root key changes. Whatever was
// acknowledged is there, and the store opens and is in order, after each kill.
func TestKill(t *testing.T) {
	k := &killTest{T: t, rounds: 8}
	if text := os.Getenv(killRoundsEnv); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		k.rounds = n
	} else if long() {
		k.rounds = 200
	}
	start := time.Now()
	// On a busy machine it takes more rounds until a change gets through.
	for k.round < k.rounds || k.changed == 0 && k.round < 10*k.rounds {
		k.useHome()
	}
	t.Logf("%d kills in %v: %d during init, %d before it served; %d keys made, %d changes, %d new root keys acknowledged",
		k.round, time.Since(start).Round(time.Second), k.inInit, k.inStart, k.created, k.changed, k.rotated)
	if k.created == 0 || k.changed == 0 {
		t.Error("nothing was acknowledged")
	}
}

type killTest struct {
	*testing.T
	home                                       Home
	rounds, round                              int
	inInit, inStart, created, changed, rotated int
	mu                                         sync.Mutex
	keys                                       map[uuid.UUID]*trackedKey
}

// trackedKey is what is known of a key from the answers about it.
type trackedKey struct {
	material string
	version  int // the last acknowledged
}

// useHome makes a home and kills what happens to it.
func (k *killTest) useHome() {
	k.home, k.keys = homeIn(k.TempDir()+"/home"), map[uuid.UUID]*trackedKey{}
	for range 1 + rand.IntN(3) {
		k.killInit()
	}
	if err := k.home.Init([]byte("# test\n")); err != nil && !errors.Is(err, ErrExists) {
		k.Fatal(err)
	}
	k.check()
	for i := 0; i < roundsPerHome && k.round < k.rounds; i++ {
		k.killServe()
		k.check()
	}
	if _, err := k.home.VerifyAudit(context.Background()); err != nil {
		k.Errorf("round %d: %v", k.round, err)
	}
	if err := os.RemoveAll(k.home.ConfigDir()); err != nil {
		k.Fatal(err)
	}
}

func (k *killTest) killInit() {
	p := start(k.T, initEnv, k.home)
	if _, err := p.line(); err != nil {
		k.Fatal(err)
	}
	p.killAfter(time.Duration(rand.IntN(5_000)) * time.Microsecond)
	if line, _ := p.line(); line != "done" {
		k.inInit++
		k.round++
	}
	err := p.cmd.Wait()
	if err != nil && strings.Contains(p.stderr.String(), ErrExists.Error()) {
		return // an earlier one had done it all
	}
	if status := p.cmd.ProcessState.Sys().(syscall.WaitStatus); err != nil && status.Signal() != syscall.SIGKILL {
		k.Fatalf("init: %v: %s", err, p.stderr.String())
	}
}

// killServe serves the home for a while; every sixth time it is a short while
// from the start of the process, so that it may not come to serve.
func (k *killTest) killServe() {
	k.round++
	p := start(k.T, serveEnv, k.home)
	early := k.round%6 == 0
	if early {
		p.killAfter(time.Duration(3+rand.IntN(60)) * time.Millisecond)
	}
	address, err := p.line()
	if err != nil {
		p.wait(k.T)
		if !early {
			k.Fatalf("it does not serve: %v: %s", err, p.stderr.String())
		}
		k.inStart++
		return
	}
	if !early {
		p.killAfter(time.Duration(5+rand.IntN(120)) * time.Millisecond)
	}
	var clients sync.WaitGroup
	for i := range killClients {
		clients.Go(func() { k.load(address, i) })
	}
	if k.round%4 == 0 {
		clients.Go(k.rotate)
	}
	clients.Wait()
	p.wait(k.T)
}

// rotate changes the root key until the server is killed.
func (k *killTest) rotate() {
	for k.home.askRotation(context.Background(), nil) == nil {
		k.mu.Lock()
		k.rotated++
		k.mu.Unlock()
	}
}

// load makes a key and changes it three times, until the server is killed.
func (k *killTest) load(address string, client int) {
	c, err := dialTCP(k.T, k.home, address)
	if err != nil {
		return
	}
	defer c.conn.Close()
	for i := 0; ; i++ {
		id, err := k.create(c, fmt.Sprintf("%d.%d.%d", k.round, client, i))
		for n := 1; n <= 3 && err == nil; n++ {
			err = k.change(c, id, n)
		}
		if err != nil {
			return
		}
	}
}

// dialTCP connects to a server, and never serves in its place.
func dialTCP(t *testing.T, h Home, address string) (*client, error) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	c := &client{t: t, version: newest}
	c.conn = kmipwire.NewConn(tls.Client(conn, clientTLS(t, h)), kmipwire.DefaultTimeouts)
	return c, c.conn.Handshake(context.Background())
}

// must gives the items of an answer, all of which must have succeeded.
func (k *killTest) must(out *kmipwire.ResponseMessage, err error) ([]kmipwire.ResponseBatchItem, error) {
	if err != nil {
		return nil, err
	}
	for _, item := range out.BatchItem {
		if item.ResultStatus != kmip14.ResultStatusSuccess {
			k.Errorf("%s: %s %s", item.Operation, item.ResultReason, item.ResultMessage)
			return nil, errors.New(item.ResultMessage)
		}
	}
	return out.BatchItem, nil
}

func (k *killTest) create(c *client, name string) (uuid.UUID, error) {
	answers, err := k.must(c.roundTrip(c.message(items(
		kmip14.OperationCreate, createRequest(nameAttribute(name), attribute1(versionAttribute, "0")), kmip14.OperationGet, &kmipwire.GetRequest{})...)))
	if err != nil {
		return uuid.Nil, err
	}
	got := payloadOf[kmipwire.GetResponse](k.T, answers[1])
	id := uuid.MustParse(got.UniqueIdentifier)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.created++
	k.keys[id] = &trackedKey{material: string(got.SymmetricKey.KeyBlock.KeyValue.KeyMaterial)}
	return id, nil
}

// check opens the store as whoever comes next would, and looks for all that was
// acknowledged.
func (k *killTest) check() {
	k.Helper()
	if _, err := os.Stat(k.home.place("config/config.yaml")); err != nil {
		k.Fatal(err)
	}
	s, err := k.home.open(openMode(rand.IntN(2) == 0), storeWait)
	if err != nil {
		k.Fatalf("round %d: %v", k.round, err)
	}
	defer s.close()
	if _, err := s.count(); err != nil {
		k.Fatalf("round %d: %v", k.round, err)
	}
	if err := s.view(k.compare); err != nil {
		k.Fatalf("round %d: %v", k.round, err)
	}
}

// compare takes what is there for known: a change that was not acknowledged may
// have been made or not.
func (k *killTest) compare(t *tx) error {
	for id, key := range k.keys {
		o, err := t.get(id)
		if err != nil {
			return fmt.Errorf("key %s, which was acknowledged: %w", id, err)
		}
		version := versionOf(o)
		if string(o.material) != key.material || version != key.version && version != key.version+1 {
			return fmt.Errorf("key %s is of version %d, want %d or the next", id, version, key.version)
		}
		key.version = version
		o.wipe()
	}
	return nil
}

// TestKillRotation kills RotateRoot without a server: the store opens under the
// old or the new root key, and nothing is left of the other.
func TestKillRotation(t *testing.T) {
	h := newHome(t)
	keys := fill(t, h, "one", "two", "three")
	rounds, rotated := 6, 0
	if long() {
		rounds = 100
	}
	for range rounds {
		p := start(t, rotateEnv, h)
		if _, err := p.line(); err != nil { // the first one is done
			t.Fatal(err, p.stderr.String())
		}
		p.killAfter(time.Duration(rand.IntN(10_000)) * time.Microsecond)
		for _, err := p.line(); err == nil; _, err = p.line() {
			rotated++
		}
		p.wait(t)
		checkStore(t, h)
		wantKeys(t, h, keys)
		if _, err := os.Lstat(h.path(nextRootKeyFile)); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("the other root key is still there: %v", err)
		}
	}
	t.Logf("%d kills, %d new root keys", rounds, rotated+rounds)
}

// versionAttribute is what clients change.
const versionAttribute = "x-version"

// change has the attribute say the next version of a key.
func (k *killTest) change(c *client, id uuid.UUID, version int) error {
	_, err := k.must(c.roundTrip(c.message(items(kmip14.OperationModifyAttribute, &kmipwire.ModifyAttributeRequest{
		UniqueIdentifier: id.String(),
		Attribute:        attribute1(versionAttribute, strconv.Itoa(version)),
	})...)))
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.changed++
	k.keys[id].version = version
	return nil
}

// versionOf is -1 if the key has none.
func versionOf(o *object) int {
	for _, a := range o.Others {
		if a.Name != versionAttribute {
			continue
		}
		text, _ := ttlv.TTLV(a.Value).Value().(string)
		if n, err := strconv.Atoi(text); err == nil {
			return n
		}
	}
	return -1
}
