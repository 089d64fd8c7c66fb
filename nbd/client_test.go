package nbd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// hang is longer than anything here takes.
const hang = 30 * time.Second

// start serves exports on a unix socket until the test or stop ends it.
func start(t testing.TB, exports ...Export) (server *Server, socket string, stop func() error) {
	t.Helper()
	server, err := New(exports...)
	if err != nil {
		t.Fatal(err)
	}
	socket, stop = serve(t, server)
	return server, socket, stop
}

func serve(t testing.TB, server *Server) (socket string, stop func() error) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ctx, listener) }()
	stop = sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-ended:
			return err
		case <-time.After(hang):
			return fmt.Errorf("the server does not end")
		}
	})
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	return socket, stop
}

// client is a client that sends what it is told to, right or wrong.
type client struct {
	t    testing.TB
	conn net.Conn
	size uint64
	// flags are the transmission flags.
	flags      uint16
	structured bool

	mu      sync.Mutex
	last    uint64
	waiting map[uint64]*call
	lost    error // why no more replies come
}

// answer is a whole reply.
type answer struct {
	errno   errno
	data    []byte // of a read, in order
	chunks  int    // with data
	extents []byte // of a map, as they were sent
}

// call is a request under way.
type call struct {
	request request
	answer
	got  int // bytes of data
	done chan answer
}

// connect dials, and negotiates in the given manner.
func connect(t testing.TB, socket, export string, structured bool) *client {
	t.Helper()
	c := dial(t, socket)
	c.hello()
	if structured {
		c.option(optStructuredReply, nil, repAck)
		c.option(optSetMetaContext, metaData(export, allocation), repMetaContext, repAck)
		c.structured = true
	}
	info := c.option(optGo, append(text(export), 0, 0), repInfo, repInfo, repAck)[0]
	c.size, c.flags = binary.BigEndian.Uint64(info[2:]), binary.BigEndian.Uint16(info[10:])
	go c.receive()
	return c
}

func dial(t testing.TB, socket string) *client {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &client{t: t, conn: conn, waiting: map[uint64]*call{}}
}

// hello takes the greeting and answers it.
func (c *client) hello() {
	c.t.Helper()
	want := binary.BigEndian.AppendUint64([]byte("NBDMAGICIHAVEOPT"), 0x0003<<48)[:18]
	if got := c.take(18); !bytes.Equal(got, want) {
		c.t.Fatalf("greeting %x", got)
	}
	c.write([]byte{0, 0, 0, 3})
}

// text is a string with its length before it.
func text(s string) []byte { return append(binary.BigEndian.AppendUint32(nil, uint32(len(s))), s...) }

func metaData(export string, queries ...string) []byte {
	p := binary.BigEndian.AppendUint32(text(export), uint32(len(queries)))
	for _, q := range queries {
		p = append(p, text(q)...)
	}
	return p
}

func optionHead(option uint32, length int) []byte {
	p := binary.BigEndian.AppendUint64(nil, optionMagic)
	p = binary.BigEndian.AppendUint32(p, option)
	return binary.BigEndian.AppendUint32(p, uint32(length))
}

// option sends an option and wants replies of these kinds, whose data it gives.
func (c *client) option(option uint32, data []byte, want ...uint32) (replies [][]byte) {
	c.t.Helper()
	c.write(append(optionHead(option, len(data)), data...))
	for _, kind := range want {
		head := c.take(20)
		if magic := binary.BigEndian.Uint64(head); magic != optReplyMagic {
			c.t.Fatalf("option %d: reply with magic %#x", option, magic)
		}
		if got := binary.BigEndian.Uint32(head[8:]); got != option {
			c.t.Fatalf("option %d: reply to %d", option, got)
		}
		if got := binary.BigEndian.Uint32(head[12:]); got != kind {
			c.t.Fatalf("option %d: reply %#x, want %#x", option, got, kind)
		}
		replies = append(replies, c.take(int(binary.BigEndian.Uint32(head[16:]))))
	}
	return replies
}

func (c *client) write(p []byte) {
	c.t.Helper()
	if _, err := c.conn.Write(p); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) deadline(t time.Time) {
	c.t.Helper()
	if err := c.conn.SetReadDeadline(t); err != nil {
		c.t.Fatal(err)
	}
}

// take receives n bytes during negotiation.
func (c *client) take(n int) []byte {
	c.t.Helper()
	c.deadline(time.Now().Add(hang))
	defer c.deadline(time.Time{})
	p := make([]byte, n)
	if _, err := io.ReadFull(c.conn, p); err != nil {
		c.t.Fatal(err)
	}
	return p
}

// ended waits for the server to close the connection, during negotiation or of
// a connection made by it.
func (c *client) ended() {
	c.t.Helper()
	c.deadline(time.Now().Add(hang))
	if n, err := io.Copy(io.Discard, c.conn); n > 0 || isTimeout(err) {
		c.t.Fatalf("%d bytes and %v instead of an end", n, err)
	}
}

// loses waits for the end of a connection that is past its negotiation.
func (c *client) loses() {
	c.t.Helper()
	for begun := time.Now(); !c.isLost(); time.Sleep(time.Millisecond) {
		if time.Since(begun) > hang {
			c.t.Fatal("the connection does not end")
		}
	}
}

func (c *client) isLost() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lost != nil
}

func isTimeout(err error) bool {
	e, ok := err.(net.Error)
	return ok && e.Timeout()
}

func requestBytes(r request) []byte {
	p := binary.BigEndian.AppendUint32(nil, requestMagic)
	p = binary.BigEndian.AppendUint16(p, r.flags)
	p = binary.BigEndian.AppendUint16(p, r.command)
	p = binary.BigEndian.AppendUint64(p, r.cookie)
	p = binary.BigEndian.AppendUint64(p, r.offset)
	return binary.BigEndian.AppendUint32(p, r.length)
}

// begin sends a request and gives where the answer will come; the channel is
// closed without one if the connection ends.
func (c *client) begin(r request, payload []byte) <-chan answer {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last++
	r.cookie = c.last
	done := make(chan answer, 1)
	if c.lost != nil {
		close(done)
		return done
	}
	c.waiting[r.cookie] = &call{request: r, done: done}
	if _, err := c.conn.Write(append(requestBytes(r), payload...)); err != nil {
		delete(c.waiting, r.cookie)
		close(done)
	}
	return done
}

// do does one request.
func (c *client) do(r request, payload []byte) answer {
	c.t.Helper()
	return c.await(c.begin(r, payload))
}

func (c *client) await(done <-chan answer) answer {
	c.t.Helper()
	select {
	case a, ok := <-done:
		if !ok {
			c.t.Fatalf("no answer: %v", c.lost)
		}
		return a
	case <-time.After(hang):
		c.t.Fatal("no answer in time")
	}
	return answer{}
}

// receive takes replies until there are no more.
func (c *client) receive() {
	in := bufio.NewReaderSize(c.conn, 1<<20)
	var err error
	for err == nil {
		err = c.reply(in)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lost = err
	for _, w := range c.waiting {
		close(w.done)
	}
	clear(c.waiting)
}

// reply takes one reply, or one chunk, which must be right in all respects.
func (c *client) reply(in io.Reader) error {
	head := make([]byte, simpleSize)
	if _, err := io.ReadFull(in, head); err != nil {
		return err
	}
	w, err := c.find(binary.BigEndian.Uint64(head[8:]))
	if err != nil {
		return err
	}
	switch magic := binary.BigEndian.Uint32(head); {
	case magic == simpleMagic:
		err = w.simple(in, errno(binary.BigEndian.Uint32(head[4:])), c.structured)
	case magic == structuredMagic && c.structured:
		return c.chunk(in, w, binary.BigEndian.Uint16(head[4:]), binary.BigEndian.Uint16(head[6:]))
	default:
		return fmt.Errorf("reply with magic %#x", magic)
	}
	if err == nil {
		c.finish(w)
	}
	return err
}

func (c *client) find(cookie uint64) (*call, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if w := c.waiting[cookie]; w != nil {
		return w, nil
	}
	return nil, fmt.Errorf("reply to %d, which nobody asked", cookie)
}

func (c *client) finish(w *call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiting, w.request.cookie)
	w.done <- w.answer
}

func (w *call) simple(in io.Reader, e errno, structured bool) error {
	w.errno = e
	if structured && (w.request.command == cmdBlockStatus || w.request.command == cmdRead) {
		return fmt.Errorf("simple reply to command %d", w.request.command)
	}
	if w.request.command != cmdRead || e != 0 {
		return nil
	}
	w.data, w.got = make([]byte, w.request.length), int(w.request.length)
	_, err := io.ReadFull(in, w.data)
	return err
}

func (c *client) chunk(in io.Reader, w *call, flags, kind uint16) error {
	length := make([]byte, 4)
	if _, err := io.ReadFull(in, length); err != nil {
		return err
	}
	payload := make([]byte, binary.BigEndian.Uint32(length))
	if _, err := io.ReadFull(in, payload); err != nil {
		return err
	}
	if err := w.add(kind, payload); err != nil || flags == 0 {
		return err
	}
	if flags != replyFlagDone {
		return fmt.Errorf("chunk with flags %#x", flags)
	}
	if w.request.command == cmdRead && w.errno == 0 && w.got != int(w.request.length) {
		return fmt.Errorf("read of %d bytes ends after %d", w.request.length, w.got)
	}
	c.finish(w)
	return nil
}

// add takes what a chunk brings.
func (w *call) add(kind uint16, payload []byte) error {
	switch {
	case kind == replyNone && len(payload) == 0:
		return nil
	case kind == replyError && len(payload) == 6:
		w.errno = errno(binary.BigEndian.Uint32(payload))
		return nil
	case kind == replyOffsetData && len(payload) > 8 && w.request.command == cmdRead:
		return w.addData(binary.BigEndian.Uint64(payload), payload[8:])
	case kind == replyBlockStatus && len(payload) > 4 && len(payload)%8 == 4 && w.request.command == cmdBlockStatus:
		w.extents = payload[4:]
		return nil
	}
	return fmt.Errorf("chunk of type %d and %d bytes for command %d", kind, len(payload), w.request.command)
}

// addData takes a chunk of data; ours come in order.
func (w *call) addData(offset uint64, p []byte) error {
	if w.data == nil {
		w.data = make([]byte, w.request.length)
	}
	if offset != w.request.offset+uint64(w.got) || len(p) > len(w.data)-w.got {
		return fmt.Errorf("%d bytes of data at %d, after %d of %v", len(p), offset, w.got, w.request)
	}
	w.got += copy(w.data[w.got:], p)
	w.chunks++
	return nil
}
