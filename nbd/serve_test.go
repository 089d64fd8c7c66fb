package nbd

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// gate holds operations of a memDisk until it is opened.
type gate struct {
	entered chan struct{}
	open    chan struct{}
}

// hold makes those operations of d wait.
func hold(d *memDisk, operation string) *gate {
	g := &gate{make(chan struct{}, 1000), make(chan struct{})}
	d.before = func(o string, _ int64, _ int) error {
		if o == operation {
			g.entered <- struct{}{}
			<-g.open
		}
		return nil
	}
	return g
}

// TestShutdown: at the end, requests under way are finished and answered, later
// ones are not done, and the disk is flushed last.
func TestShutdown(t *testing.T) {
	for operation, r := range map[string]request{
		"discard": {command: cmdTrim, length: 4096},
		"read":    {command: cmdRead, length: 4096},
	} {
		t.Run(operation, func(t *testing.T) { testShutdown(t, operation, r) })
	}
}

func testShutdown(t *testing.T, operation string, r request) {
	disk := newMemDisk(1 << 20)
	disk.background = true
	g := hold(disk, operation)
	server, err := New(Export{Disk: disk})
	if err != nil {
		t.Fatal(err)
	}
	socket := t.TempDir() + "/s"
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ctx, l) }()
	c, idle, negotiating := connect(t, socket, "", true), connect(t, socket, "", false), dial(t, socket)
	begun := c.begin(r, nil)
	<-g.entered
	negotiating.take(18)
	cancel()
	negotiating.ended()
	idle.loses()
	select {
	case err := <-ended:
		t.Fatalf("Serve does not wait for requests: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(g.open)
	if a := c.await(begun); a.errno != 0 {
		t.Errorf("error %d", a.errno)
	}
	select {
	case err = <-ended:
	case <-time.After(hang):
		t.Fatal("Serve does not end")
	}
	if err != nil || disk.flushed() != 1 || (disk.content(1, 1)[0] == 0) != (r.command == cmdTrim) {
		t.Errorf("%v, %d flushes", err, disk.flushes)
	}
	if _, err := net.Dial("unix", socket); err == nil {
		t.Error("the socket is still open")
	}
}

// TestRefusedAtTheEnd: requests that had arrived are told so.
func TestRefusedAtTheEnd(t *testing.T) {
	disk := newMemDisk(1 << 20)
	disk.hot = true
	g := hold(disk, "write")
	_, socket, stop := start(t, Export{Disk: disk})
	c := connect(t, socket, "", true)
	written := c.begin(request{command: cmdWrite, length: 512}, make([]byte, 512))
	<-g.entered
	late := []<-chan answer{
		c.begin(request{command: cmdRead, length: 512}, nil),
		c.begin(request{command: cmdWrite, offset: 1024, length: 512}, make([]byte, 512)),
		c.begin(request{command: cmdFlush}, nil),
	}
	ended := make(chan error, 1)
	go func() { ended <- stop() }()
	for taken := true; taken; { // until the connection takes no more
		a := c.begin(request{command: cmdRead, length: 512}, nil)
		select {
		case <-a:
			taken = false
		case <-time.After(time.Millisecond):
			late = append(late, a)
		}
	}
	close(g.open)
	if a := c.await(written); a.errno != 0 {
		t.Errorf("what had begun: error %d", a.errno)
	}
	for _, l := range late {
		if a := c.await(l); a.errno != eShutdown {
			t.Errorf("what had arrived: error %d, want %d", a.errno, eShutdown)
		}
	}
	if err := <-ended; err != nil || disk.content(1025, 1)[0] == 0 {
		t.Errorf("%v, or a refused write was done", err)
	}
}

// TestFlushAtTheEnd: Serve says that what was written is not durable.
func TestFlushAtTheEnd(t *testing.T) {
	for _, readOnly := range []bool{false, true} {
		disk := newMemDisk(4096)
		disk.before = func(string, int64, int) error { return unix.EIO }
		server, err := New(Export{Name: "disk", Disk: disk, ReadOnly: readOnly})
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("unix", t.TempDir()+"/s")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := server.Serve(ctx, l); errors.Is(err, unix.EIO) == readOnly {
			t.Errorf("read-only %v: %v", readOnly, err)
		}
	}
}

// TestUntakenReplies: a client that takes no replies holds up neither others nor,
// for long, the end.
func TestUntakenReplies(t *testing.T) {
	for _, k := range []struct {
		hot, background bool
		length          uint32
	}{{false, false, maxRequest}, {true, false, maxRequest}, {false, true, 4096}} {
		disk := newMemDisk(maxRequest)
		disk.hot, disk.background = k.hot, k.background
		server, err := New(Export{Disk: disk})
		if err != nil {
			t.Fatal(err)
		}
		server.grace = 100 * time.Millisecond
		socket, stop := serve(t, server)
		for range 3 {
			deaf := dial(t, socket)
			deaf.hello()
			deaf.option(optGo, append(text(""), 0, 0), repInfo, repInfo, repAck)
			read := requestBytes(request{command: cmdRead, length: k.length})
			go func() { _, _ = deaf.conn.Write(bytes.Repeat(read, 10_000)) }()
		}
		c := connect(t, socket, "", true)
		for range 100 {
			if a := c.do(request{command: cmdRead, length: 4096}, nil); a.errno != 0 {
				t.Fatalf("error %d", a.errno)
			}
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	}
}

// TestVanishedClients: clients that go at any moment leave nothing behind.
func TestVanishedClients(t *testing.T) {
	disk := newMemDisk(8 << 20)
	disk.background = true
	server, socket, _ := start(t, Export{Disk: disk})
	read := requestBytes(request{command: cmdRead, length: 8 << 20})
	small := bytes.Repeat(requestBytes(request{command: cmdRead, length: 4096}), 300)
	write := append(requestBytes(request{command: cmdWrite, length: 1 << 20}), make([]byte, 1<<19)...)
	trim := requestBytes(request{command: cmdTrim, length: 4096})
	for i := range 200 {
		c := dial(t, socket)
		c.hello()
		c.option(optGo, append(text(""), 0, 0), repInfo, repInfo, repAck)
		c.write([][]byte{read, write, trim, small, read[:i%requestSize]}[i%5])
		c.conn.Close()
	}
	for begin := time.Now(); server.Stats()[0].Connections > 0; time.Sleep(time.Millisecond) {
		if time.Since(begin) > hang {
			t.Fatalf("%d connections are left", server.Stats()[0].Connections)
		}
	}
	if len(server.spare) != maxBeside {
		t.Errorf("%d of %d buffers are back", len(server.spare), maxBeside)
	}
}

// TestConnectionsAreBounded: one too many is closed, and has a place once another
// has left.
func TestConnectionsAreBounded(t *testing.T) {
	_, socket, _ := start(t, Export{Disk: newMemDisk(4096)})
	var clients []*client
	for range maxConnections {
		c := dial(t, socket)
		c.hello()
		clients = append(clients, c)
	}
	dial(t, socket).ended()
	clients[0].conn.Close()
	for begin := time.Now(); ; {
		c := dial(t, socket)
		if n, _ := c.conn.Read(make([]byte, 18)); n == 18 {
			break
		}
		if time.Since(begin) > hang {
			t.Fatal("no place is free")
		}
	}
}

// TestMemory: however much clients ask for at once, the server holds but its
// buffers, and what these clients need.
func TestMemory(t *testing.T) {
	const connection = 2*headroom + pieceSize + batchSize
	const server = maxBeside*(headroom+pieceSize) + 24<<20
	for name, test := range map[string]struct {
		length, bound int64
	}{
		"large": {maxRequest, maxConnections*connection + server},
		"small": {backgroundSize, maxConnections*(connection+headroom+maxBackground*backgroundPlace) + server},
	} {
		t.Run(name, func(t *testing.T) { testMemory(t, uint32(test.length), test.bound) })
	}
}

func testMemory(t *testing.T, length uint32, bound int64) {
	disk := newMemDisk(maxRequest)
	disk.background = true
	server, err := New(Export{Disk: disk})
	if err != nil {
		t.Fatal(err)
	}
	server.grace = 0 // there are replies that nobody takes
	socket, _ := serve(t, server)
	before := resident(t)
	var most atomic.Int64
	var work sync.WaitGroup
	for range maxConnections {
		c := dial(t, socket)
		c.hello()
		c.option(optStructuredReply, nil, repAck)
		c.option(optGo, append(text(""), 0, 0), repInfo, repInfo, repAck)
		work.Go(func() {
			read := requestBytes(request{command: cmdRead, length: length})
			go func() { _, _ = c.conn.Write(bytes.Repeat(read, max(100, 5*maxRequest/int(length)))) }()
			sink := make([]byte, 64<<10)
			for got := 0; got < 4*maxRequest; {
				n, err := c.conn.Read(sink)
				if err != nil {
					t.Error(err)
					return
				}
				got += n
			}
			most.Store(max(most.Load(), resident(t)))
		})
	}
	work.Wait()
	if grown := most.Load() - before; grown > bound {
		t.Errorf("memory grew by %d bytes, more than %d", grown, bound)
	}
}

// resident is the memory of this process, in bytes.
func resident(t *testing.T) int64 {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Skip(err)
	}
	pages, err := strconv.ParseInt(strings.Fields(string(text))[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

// TestNoSocket: a connection need not be a socket.
func TestNoSocket(t *testing.T) {
	server, err := New(Export{Disk: newMemDisk(1 << 20)})
	if err != nil {
		t.Fatal(err)
	}
	near, far := net.Pipe()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.serve(ctx, far) }()
	c := &client{t: t, conn: near, waiting: map[uint64]*call{}}
	c.hello()
	c.option(optGo, append(text(""), 0, 0), repInfo, repInfo, repAck)
	go c.receive()
	if a := c.do(request{command: cmdWrite, length: 1 << 20}, make([]byte, 1<<20)); a.errno != 0 {
		t.Errorf("error %d", a.errno)
	}
	if a := c.do(request{command: cmdRead, length: 1 << 20}, nil); a.errno != 0 || !bytes.Equal(a.data, make([]byte, 1<<20)) {
		t.Errorf("error %d, or false data", a.errno)
	}
	cancel()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("nothing said of the end")
		}
	case <-time.After(hang):
		t.Error("the connection does not end")
	}
}
