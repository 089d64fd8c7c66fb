package nbd

import (
	"fmt"
	"sync"
	"sync/atomic"
)

// conn is a connection in its second phase: transmission. Its goroutine answers
// what is quick, which is reads of what is in memory and writes, one after the
// other, and collects the replies until it must wait for requests.
type conn struct {
	session
	stream   stream
	spare    chan *buffer
	stopping atomic.Bool // requests are refused

	in         []byte // what has arrived
	begin, end int    // of it, what is not taken yet
	out        []byte
	first      int // where out begins, so that data after a header are aligned
	pending    int // bytes in out that are not sent

	missed, skip int // see readNoWait

	send       sync.Mutex     // held by whoever sends, see sendNow
	beside     sync.WaitGroup // requests that others do
	background background
}

// newConn makes a connection with buffers of its own.
func newConn(s session, st stream, spare chan *buffer, in, out *buffer) (*conn, error) {
	c := &conn{session: s, stream: st, spare: spare, first: headroom - s.dataHead()}
	c.background.disk = s.export.background
	var err error
	if c.in, err = in.get(pieceSize); err != nil {
		return nil, err
	}
	c.out, err = out.get(batchSize)
	return c, err
}

// transmit answers requests until the client leaves.
func (c *conn) transmit() error {
	for {
		if err := c.fill(requestSize, headroom-requestSize); err != nil {
			return err
		}
		r, ok := parse(c.in[c.begin:c.end])
		if !ok {
			return fmt.Errorf("a request with the magic number %#x", c.in[c.begin:c.begin+4])
		}
		c.begin += requestSize
		if r.command == cmdDisc {
			return errEnd
		}
		r.begun = sinceStart()
		if err := c.handle(r); err != nil {
			return err
		}
	}
}

// finish waits for the requests under way and sends what is left.
func (c *conn) finish() error {
	c.beginReads()
	c.beside.Wait()
	c.background.mem.release()
	return c.flush()
}

func (c *conn) handle(r request) error {
	e := c.check(r)
	if c.stopping.Load() {
		e = eShutdown
	}
	switch {
	case r.command == cmdWrite && e != 0:
		return c.refuseWrite(r, e)
	case e != 0:
		return c.verdict(r, e)
	case r.command == cmdRead:
		return c.read(r)
	case r.command == cmdWrite:
		return c.write(r)
	}
	return c.giveAway(r)
}

// fill waits until n bytes have arrived, at most a piece. What came before is begun,
// and the replies to it are sent, first. What arrives next begins at first, if it may,
// so that the data of a write are aligned.
func (c *conn) fill(n, first int) error {
	for c.end-c.begin < n {
		c.beginReads()
		if err := c.flush(); err != nil {
			return err
		}
		if c.begin == c.end || c.begin+n > len(c.in) {
			c.end = first + copy(c.in[first:], c.in[c.begin:c.end])
			c.begin = first
		}
		got, err := c.stream.Read(c.in[c.end:])
		if err != nil {
			return err
		}
		c.end += got
	}
	return nil
}

// reserve gives n bytes of the replies to be sent, a header and a piece at most.
func (c *conn) reserve(n int) ([]byte, error) {
	if c.first+c.pending+n > len(c.out) {
		if err := c.flush(); err != nil {
			return nil, err
		}
	}
	return c.out[c.first+c.pending:][:n], nil
}

// flush sends the replies that are there.
func (c *conn) flush() error {
	if c.pending == 0 {
		return nil
	}
	n := c.pending
	c.pending = 0
	return c.sendNow(c.out[c.first:][:n])
}

// sendNow sends p, and what became ready to be sent meanwhile.
func (c *conn) sendNow(p []byte) error {
	c.send.Lock()
	_, err := c.stream.Write(p)
	if err != nil {
		c.stream.abort() // nothing may follow a reply that broke off
	}
	c.send.Unlock()
	c.sendReady()
	return err
}

// verdict adds the reply to a request that is done, or is not.
func (c *conn) verdict(r request, e errno) error {
	p, err := c.reserve(maxVerdict)
	if err != nil {
		return err
	}
	c.pending += c.putVerdict(p, r, e)
	c.export.counters.done(r, e)
	return nil
}

// read answers a read as far as the data are in memory; what has to be waited
// for is given away.
func (c *conn) read(r request) error {
	for first := r.offset; r.length > 0; {
		n := r.piece()
		if n < r.length && !c.structured {
			return c.giveAway(r)
		}
		p, err := c.reserve(c.dataHead() + int(n))
		if err != nil {
			return err
		}
		if !c.readNoWait(p[c.dataHead():], r) {
			return c.readRest(r, first)
		}
		c.putData(p, r, n, r.doneAfter(n))
		c.pending += len(p)
		c.export.read.Add(uint64(n))
		r = r.after(n)
	}
	c.export.counters.done(r, 0)
	return nil
}

// readRest has the rest of a read done that begins at first. Its chunks, of which the
// last ends the reply, come after those that are there.
func (c *conn) readRest(rest request, first uint64) error {
	if rest.offset != first {
		if err := c.flush(); err != nil {
			return err
		}
	}
	return c.readBackground(rest)
}

// readNoWait reads what is in memory. Where little is, it hardly tries: that the
// kernel looks in vain, and may begin to read ahead, costs as much as a read.
func (c *conn) readNoWait(p []byte, r request) bool {
	if c.export.noWait == nil {
		return false
	}
	if c.background.disk != nil && r.length <= backgroundSize && c.skip > 0 {
		c.skip--
		return false
	}
	if c.export.noWait.ReadAtNoWait(p, int64(r.offset)) {
		c.missed = 0
		return true
	}
	c.missed = min(2*c.missed+1, maxSkip)
	c.skip = c.missed
	return false
}

// maxSkip is for how many reads at most it is not tried after one that was in vain.
const maxSkip = 63

// doneAfter gives the flag of a chunk of n bytes.
func (r request) doneAfter(n uint32) uint16 {
	if n == r.length {
		return replyFlagDone
	}
	return 0
}

// write writes the data that follow a request, piece by piece.
func (c *conn) write(r request) error {
	c.beginReads() // it may have to wait
	rest := r
	for rest.length > 0 {
		n := rest.piece()
		if err := c.fill(int(n), headroom); err != nil {
			return err
		}
		if _, err := c.export.write(c.in[c.begin:][:n], int64(rest.offset)); err != nil {
			return c.refuseWrite(rest, c.export.failed("write", rest, err))
		}
		c.begin += int(n)
		c.export.written.Add(uint64(n))
		rest = rest.after(n)
	}
	if r.has(cmdFlagFUA) {
		return c.giveAway(request{command: cmdFlush, asked: r.asked, cookie: r.cookie, begun: r.begun})
	}
	return c.verdict(r, 0)
}

// refuseWrite drops the data that are still to come, so that the next request is
// found after them.
func (c *conn) refuseWrite(r request, e errno) error {
	for left := r.length; left > 0; {
		if err := c.fill(1, headroom); err != nil {
			return err
		}
		n := min(left, uint32(c.end-c.begin))
		c.begin += int(n)
		left -= n
	}
	return c.verdict(r, e)
}
