package kms

import (
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gemalto/kmip-go/kmip14"
	"golang.org/x/sys/unix"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
	"github.com/vmcrypt/vmcrypt/internal/testtool"
)

// What a server under attack must keep to.
const (
	hostileMemory  = 200 << 20        // bytes, VmHWM of the process
	hostileLatency = 10 * time.Second // generous: attackers and server share the machine
	hostileTime    = 6 * time.Second
)

// siege attacks a server from many connections until it ends.
type siege struct {
	*testing.T
	address  string
	stray    *tls.Config // of a client that is registered, but hostile
	end      chan struct{}
	wg       sync.WaitGroup
	attempts atomic.Int64
}

// attackers starts n connections that come back whenever they are thrown out.
func (s *siege) attackers(n int, attack func(net.Conn)) {
	for range n {
		s.wg.Go(func() {
			for {
				select {
				case <-s.end:
					return
				default:
					s.once(attack)
				}
			}
		})
	}
}

func (s *siege) once(attack func(net.Conn)) {
	s.attempts.Add(1)
	conn, err := net.DialTimeout("tcp", s.address, 5*time.Second)
	if err != nil {
		s.pause(10 * time.Millisecond)
		return
	}
	defer conn.Close()
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-s.end:
			conn.Close()
		case <-stop:
		}
	}()
	attack(conn)
}

// pause waits; false if the siege is over.
func (s *siege) pause(d time.Duration) bool {
	select {
	case <-s.end:
		return false
	case <-time.After(d):
		return true
	}
}

// wait holds a connection until the server closes it.
func (s *siege) wait(conn net.Conn) {
	_, _ = conn.Read(make([]byte, 1<<16))
}

// known starts attackers that have a certificate. Their handshakes cost the
// machine as much as the server's, so they rest in between.
func (s *siege) known(n int, attack func(net.Conn)) {
	s.attackers(n, func(conn net.Conn) {
		t := tls.Client(conn, s.stray)
		if t.Handshake() == nil {
			attack(t)
		}
		s.pause(3 * time.Second)
	})
}

// drip sends a byte a second.
func (s *siege) drip(data string) func(net.Conn) {
	return func(conn net.Conn) {
		for i := range data {
			if _, err := conn.Write([]byte{data[i]}); err != nil || !s.pause(time.Second) {
				return
			}
		}
	}
}

func (s *siege) send(data string) func(net.Conn) {
	return func(conn net.Conn) {
		_, _ = conn.Write([]byte(data)) // the server may hang up first
		s.wait(conn)
	}
}

// messageHeader is that of a request of n bytes.
func messageHeader(n uint32) string {
	return "\x42\x00\x78\x01" + string(binary.BigEndian.AppendUint32(nil, n))
}

// nested is a request of structures, one within the other.
func nested(depth int) string {
	var b strings.Builder
	for i := range depth {
		b.WriteString(messageHeader(uint32(8 * (depth - i - 1))))
	}
	return b.String()
}

// mutations sends an honest message again and again, a few bytes changed.
func (s *siege) mutations(conn net.Conn) {
	good, err := kmipwire.Marshal((&client{version: newest}).message(items(kmip14.OperationLocate, &kmipwire.LocateRequest{})...))
	if err != nil {
		s.Error(err)
		return
	}
	for {
		bad := slices.Clone(good)
		for range 1 + rand.IntN(3) {
			bad[rand.IntN(len(bad))] ^= byte(1 + rand.IntN(255))
		}
		if _, err := conn.Write(bad); err != nil {
			return
		}
		_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond)) // a longer length makes the server wait
		if _, err := conn.Read(make([]byte, 1<<16)); err != nil {
			return
		}
	}
}

// TestHostileClients: whatever strangers and one registered client do, the
// server lives, stays small, and answers an honest client.
func TestHostileClients(t *testing.T) {
	testtool.Long(t)
	needFiles(t, 3500)
	h := newHome(t)
	s := &siege{T: t, stray: addClient(t, h, "stray", false), end: make(chan struct{})}
	p := start(t, serveEnv, h)
	var err error
	if s.address, err = p.line(); err != nil {
		t.Fatal(err)
	}
	calm := honest(t, h, s.address, time.Second)
	s.attackers(1000, s.wait)
	s.attackers(50, s.drip("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"))
	s.attackers(100, s.send(strings.Repeat("\x16\x03\x01\x40\x00\x01\x00\xff\xfc"+strings.Repeat("x", 1<<14-4), 3)))
	s.attackers(5, s.send("GET / HTTP/1.1\r\n\r\n"))
	s.known(1000, s.wait)
	s.known(50, s.drip(messageHeader(64)))
	s.known(100, s.send(messageHeader(1<<20-8)+strings.Repeat("\x42\x00\x69\x07\x00\x0f\xf0\x00", 120_000)))
	for _, data := range []string{
		messageHeader(0xfffffff8), messageHeader(0xffffffff), nested(10_000), nested(16), messageHeader(64) + "short",
		"\x42\x00\x78\x02\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00",
	} {
		s.known(3, s.send(data))
	}
	s.known(4, s.mutations)
	stormy := honest(t, h, s.address, hostileTime)
	memory := peakMemory(t, p.cmd.Process.Pid)
	close(s.end)
	s.wg.Wait()
	after := honest(t, h, s.address, 0) // it lives
	t.Logf("calm: %v; under attack: %v; after it: %v; %d connections attacked; peak memory %d MiB", calm, stormy, after, s.attempts.Load(), memory>>20)
	if raceEnabled {
		return // the detector takes several times the memory and the time
	}
	if memory > hostileMemory {
		t.Errorf("the server took %d bytes", memory)
	}
	if stormy.p99 > hostileLatency {
		t.Errorf("honest requests: %v", stormy)
	}
}

// needFiles skips the test where so many connections are impossible.
func needFiles(t *testing.T, n uint64) {
	t.Helper()
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil || r.Cur < n {
		t.Skipf("needs %d open files (ulimit -n), has %d", n, r.Cur)
	}
}

// latencies are those of an honest client.
type latencies struct {
	n        int
	p50, p99 time.Duration
}

func (l latencies) String() string {
	return fmt.Sprintf("%d requests, median %v, 99th percentile %v", l.n, l.p50.Round(10*time.Microsecond), l.p99.Round(10*time.Microsecond))
}

// honest sends requests for a while, and enough of them, every tenth over a
// connection of its own, and measures how long each took.
func honest(t *testing.T, h Home, address string, d time.Duration) latencies {
	t.Helper()
	var all []time.Duration
	var c *client
	var err error
	for start := time.Now(); time.Since(start) < d || len(all) < 30; {
		begin := time.Now()
		if len(all)%10 == 0 {
			if c != nil {
				c.conn.Close()
			}
			if c, err = dialTCP(t, h, address); err != nil {
				t.Fatalf("honest connection %d: %v", len(all)/10, err)
			}
		}
		if err := c.createAndGet(); err != nil {
			t.Fatalf("honest request %d: %v", len(all), err)
		}
		all = append(all, time.Since(begin))
	}
	c.conn.Close()
	slices.Sort(all)
	return latencies{len(all), all[len(all)/2], all[len(all)*99/100]}
}

func (c *client) createAndGet() error {
	out, err := c.roundTrip(c.message(items(kmip14.OperationCreate, createRequest(), kmip14.OperationGet, &kmipwire.GetRequest{})...))
	if err == nil && (len(out.BatchItem) != 2 || out.BatchItem[1].ResultStatus != kmip14.ResultStatusSuccess) {
		err = fmt.Errorf("%+v", out.BatchItem)
	}
	return err
}

// peakMemory is the most that a process had in memory, in bytes.
func peakMemory(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "VmHWM:")
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

// fewFiles is fewer than a server needs to be at ease.
const fewFiles = 24

func serveWithFewFiles(h Home) error {
	r := unix.Rlimit{Cur: fewFiles, Max: fewFiles}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return err
	}
	return serveForEver(h)
}

// TestTooManyOpenFiles: running out of them ends neither the server nor its
// service.
func TestTooManyOpenFiles(t *testing.T) {
	h := newHome(t)
	stray := addClient(t, h, "stray", false)
	p := start(t, fewEnv, h)
	address, err := p.line()
	if err != nil {
		t.Fatalf("%v: %s", err, p.stderr.String())
	}
	s := &siege{T: t, address: address, stray: stray, end: make(chan struct{})}
	s.known(20, s.wait)
	s.attackers(2, s.wait)
	time.Sleep(200 * time.Millisecond)
	l := honest(t, h, address, 2*time.Second)
	close(s.end)
	s.wg.Wait()
	t.Log(l)
	if open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid)); err != nil || len(open) > fewFiles {
		t.Errorf("%d open files, %v", len(open), err)
	}
}
