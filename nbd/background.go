package nbd

import (
	"fmt"
	"sync"

	"github.com/vmcrypt/vmcrypt/image"
)

const (
	// maxBackground is how many reads of a connection are done in the background at
	// once, and backgroundSize the greatest of them in bytes. Larger ones bring much
	// for the work of giving them away.
	maxBackground  = 160
	backgroundSize = 16 << 10
	// beginAt is how many reads are kept back at most, to begin together.
	beginAt = 32
)

// backgroundHead is the room for a header before the data of a background read. The
// data begin where a line of the CPU's cache does.
const backgroundHead = 64

// backgroundPlace is the memory of one of them.
const backgroundPlace = backgroundHead + backgroundSize

// background is the reads of a connection that are done in the background.
type background struct {
	disk  image.BackgroundReader // nil if the disk has no such thing
	mem   buffer                 // all places
	batch []image.BackgroundRead // kept back, of the connection's goroutine

	mu    sync.Mutex
	made  int               // places
	free  []*backgroundRead // of them
	ready []*backgroundRead // with replies to be sent
	spare []*backgroundRead // memory for ready
}

// backgroundRead is one of them: a place in memory with a request and, later, the
// reply.
type backgroundRead struct {
	conn    *conn
	mem     []byte
	request request
	reply   []byte
}

// take gives a place that is free, or nil.
func (g *background) take(c *conn) *backgroundRead {
	g.mu.Lock()
	defer g.mu.Unlock()
	if n := len(g.free); n > 0 {
		b := g.free[n-1]
		g.free = g.free[:n-1]
		return b
	}
	if g.made == maxBackground {
		return nil
	}
	mem, err := g.mem.get(maxBackground * backgroundPlace)
	if err != nil {
		return nil
	}
	g.made++
	return &backgroundRead{conn: c, mem: mem[(g.made-1)*backgroundPlace:][:backgroundPlace]}
}

// readBackground has a small read done in the background, or else gives it away.
func (c *conn) readBackground(r request) error {
	if c.background.disk == nil || r.length > backgroundSize {
		return c.giveAway(r)
	}
	b := c.background.take(c)
	if b == nil {
		return c.giveAway(r)
	}
	b.request = r
	c.beside.Add(1)
	c.background.batch = append(c.background.batch, image.BackgroundRead{P: b.data(), Offset: int64(r.offset), Reader: b})
	if len(c.background.batch) == beginAt {
		c.beginReads()
	}
	return nil
}

// beginReads begins what was kept back.
func (c *conn) beginReads() {
	if batch := c.background.batch; len(batch) > 0 {
		c.background.batch = batch[:0]
		c.background.disk.BeginReads(batch)
	}
}

// data is where the data are read to.
func (b *backgroundRead) data() []byte { return b.mem[backgroundHead:][:b.request.length] }

// ReadDone prepares the reply. The first of several has them sent together.
func (b *backgroundRead) ReadDone(ok bool) (after func()) {
	if !ok {
		go b.readAgain() // maxBackground at most
		return nil
	}
	b.answer(0)
	if first := b.conn.addReady(b); first {
		return b.conn.sendReady
	}
	return nil
}

// readAgain reads what the background did not, which may take time.
func (b *backgroundRead) readAgain() {
	e := errno(0)
	n, err := b.conn.export.Disk.ReadAt(b.data(), int64(b.request.offset))
	if n < len(b.data()) {
		e = b.conn.export.failed("read", b.request, fmt.Errorf("%d of %d bytes: %w", n, len(b.data()), err))
	}
	b.answer(e)
	b.conn.addReady(b)
	b.conn.sendReady()
}

// answer makes the reply.
func (b *backgroundRead) answer(e errno) {
	c := b.conn
	c.export.counters.done(b.request, e)
	if e != 0 {
		b.reply = b.mem[:c.putVerdict(b.mem, b.request, e)]
		return
	}
	b.reply = b.mem[backgroundHead-c.dataHead() : backgroundHead+int(b.request.length)]
	c.putData(b.reply, b.request, b.request.length, replyFlagDone)
	c.export.read.Add(uint64(b.request.length))
}

// addReady queues a reply, and reports whether it is the first.
func (c *conn) addReady(b *backgroundRead) (first bool) {
	g := &c.background
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ready = append(g.ready, b)
	return len(g.ready) == 1
}

// anyReady reports whether replies are queued.
func (c *conn) anyReady() bool {
	g := &c.background
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.ready) > 0
}

// takeReady takes all replies from the queue.
func (c *conn) takeReady() []*backgroundRead {
	g := &c.background
	g.mu.Lock()
	defer g.mu.Unlock()
	ready := g.ready
	g.ready, g.spare = g.spare[:0], nil
	return ready
}

// sendReady sends the replies of the queue, unless somebody else is sending, who
// looks at the queue thereafter. It does not wait: what the client does not take at
// once is left to a goroutine.
func (c *conn) sendReady() {
	for c.anyReady() && c.send.TryLock() {
		ready := c.takeReady()
		rest, err := c.stream.writeNow(replies(ready))
		if err == nil && len(rest) > 0 {
			go c.sendRest(ready, rest)
			return
		}
		c.sent(ready, err)
		c.send.Unlock()
	}
}

// replies gives what is to be sent.
func replies(ready []*backgroundRead) [][]byte {
	all := make([][]byte, len(ready))
	for i, b := range ready {
		all[i] = b.reply
	}
	return all
}

// sendRest is the rest of sendReady, which has left it the right to send.
func (c *conn) sendRest(ready []*backgroundRead, rest [][]byte) {
	var err error
	for _, p := range rest {
		if _, err = c.stream.Write(p); err != nil {
			break
		}
	}
	c.sent(ready, err)
	c.send.Unlock()
	c.sendReady()
}

// sent gives the places of replies back. After an error there is no more connection.
func (c *conn) sent(ready []*backgroundRead, err error) {
	if err != nil {
		c.stream.abort() // the goroutine of the connection sees that
	}
	g := &c.background
	g.mu.Lock()
	g.free = append(g.free, ready...)
	g.spare = ready[:0]
	g.mu.Unlock()
	for range ready {
		c.beside.Done()
	}
}
