package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// zeros is what is written where no hole is wanted.
var zeros [pieceSize]byte

// giveAway has a request done beside the connection, so that those after it need
// not wait. If all hands are full, the connection does it itself: so one that
// takes no replies never holds up another.
func (c *conn) giveAway(r request) error {
	select {
	case b := <-c.spare:
		c.beside.Go(func() {
			defer func() { c.spare <- b }()
			if err := c.doWith(b, r); err != nil {
				c.stream.abort() // the goroutine of the connection sees that
			}
		})
		return nil
	default:
	}
	c.beginReads()
	if err := c.flush(); err != nil {
		return err
	}
	return c.do(r, c.out[:headroom+pieceSize])
}

func (c *conn) doWith(b *buffer, r request) error {
	mem, err := b.get(pieceSize)
	if err != nil {
		return err
	}
	return c.do(r, mem)
}

// do does a request that was checked and sends the reply. buf is headroom and a
// piece. The error is that of the connection.
func (c *conn) do(r request, buf []byte) error {
	switch {
	case r.command == cmdBlockStatus:
		return c.blockStatus(r, buf)
	case r.command == cmdRead && (c.structured || r.length <= pieceSize):
		return c.readPieces(r, buf)
	case r.command == cmdRead:
		return c.readWhole(r, buf)
	}
	e, err := c.change(r, buf)
	if err == nil && r.has(cmdFlagFUA) {
		err = c.export.Disk.Flush()
	}
	if err != nil {
		e = c.export.failed(r.name(), r, err)
	}
	return c.sendVerdict(r, e, buf)
}

// change does what needs no data in the reply: it may refuse, or fail.
func (c *conn) change(r request, buf []byte) (errno, error) {
	disk := c.export.Disk
	switch {
	case r.command == cmdFlush:
		return 0, disk.Flush()
	case r.command == cmdCache:
		return 0, c.cache(r, buf)
	case r.has(cmdFlagFastZero):
		return c.zeroFast(r)
	case r.has(cmdFlagNoHole):
		return 0, c.writeZeros(r)
	}
	return 0, c.discard(r) // trims, too, leave zeros
}

func (c *conn) sendVerdict(r request, e errno, buf []byte) error {
	c.export.counters.done(r, e)
	return c.sendNow(buf[:c.putVerdict(buf, r, e)])
}

// readPiece reads the first n bytes that r asks for to the place of data in buf.
func (c *conn) readPiece(r request, n uint32, buf []byte) error {
	got, err := c.export.Disk.ReadAt(buf[headroom:][:n], int64(r.offset))
	if got == int(n) {
		return nil
	}
	return fmt.Errorf("%d of %d bytes: %w", got, n, err)
}

// readPieces answers with a chunk for each piece, or with a simple reply.
func (c *conn) readPieces(r request, buf []byte) error {
	for r.length > 0 {
		n := r.piece()
		if err := c.readPiece(r, n, buf); err != nil {
			return c.sendVerdict(r, c.export.failed("read", r, err), buf)
		}
		message := buf[headroom-c.dataHead() : headroom+int(n)]
		c.putData(message, r, n, r.doneAfter(n))
		if err := c.sendNow(message); err != nil {
			return err
		}
		c.export.read.Add(uint64(n))
		r = r.after(n)
	}
	c.export.counters.done(r, 0)
	return nil
}

// readWhole answers with one simple reply of many pieces, which nothing else may
// come between. After it has begun an error can't be told: the connection ends
// (Spec, "NBD_CMD_READ").
func (c *conn) readWhole(r request, buf []byte) error {
	n := r.piece()
	if err := c.readPiece(r, n, buf); err != nil {
		return c.sendVerdict(r, c.export.failed("read", r, err), buf)
	}
	defer c.sendReady() // what became ready meanwhile
	c.send.Lock()
	defer c.send.Unlock()
	putSimple(buf[headroom-simpleSize:], r, 0)
	message := buf[headroom-simpleSize : headroom+int(n)]
	for {
		if _, err := c.stream.Write(message); err != nil {
			c.stream.abort() // nothing may follow, not even from who is the next to send
			return err
		}
		c.export.read.Add(uint64(n))
		if r = r.after(n); r.length == 0 {
			c.export.counters.done(r, 0)
			return nil
		}
		n = r.piece()
		if err := c.readPiece(r, n, buf); err != nil {
			c.export.counters.done(r, c.export.failed("read", r, err))
			c.stream.abort()
			return err
		}
		message = buf[headroom:][:n]
	}
}

// cache brings data to memory by reading them.
func (c *conn) cache(r request, buf []byte) error {
	for r.length > 0 {
		n := r.piece()
		if err := c.readPiece(r, n, buf); err != nil {
			return err
		}
		r = r.after(n)
	}
	return nil
}

// discard makes zeros, which can take as long as to write them.
func (c *conn) discard(r request) error {
	for r.length > 0 {
		if c.stopping.Load() {
			return errStopping
		}
		n := min(r.length, mapWindow-uint32(r.offset%mapWindow))
		if err := c.export.Disk.Discard(int64(r.offset), int64(n)); err != nil {
			return err
		}
		r = r.after(n)
	}
	return nil
}

func (c *conn) writeZeros(r request) error {
	for r.length > 0 {
		if c.stopping.Load() {
			return errStopping
		}
		n := r.piece()
		if _, err := c.export.Disk.WriteAt(zeros[:n], int64(r.offset)); err != nil {
			return err
		}
		r = r.after(n)
	}
	return nil
}

// zeroFast is for zeroes that the client wants only if they are quicker than
// writing them. A disk does not tell how it will discard; what is sure to be
// quick is what is all holes already, as a new disk is.
func (c *conn) zeroFast(r request) (errno, error) {
	if r.has(cmdFlagNoHole) {
		return eNotSup, nil
	}
	quick := true
	err := c.eachExtent(r, func(_ uint32, hole bool) bool {
		quick = hole
		return hole
	})
	if err == nil && !quick {
		return eNotSup, nil
	}
	return 0, err
}

// mapWindow is how much of a disk is mapped or discarded at a time, in bytes: it bounds
// the memory that the map of a fragmented disk takes, and how long the end may take.
const mapWindow = 32 << 20

// eachExtent calls visit with the length of each extent in order, until it says
// no. Neighbours may be alike.
func (c *conn) eachExtent(r request, visit func(length uint32, hole bool) bool) error {
	for r.length > 0 {
		n := min(r.length, mapWindow)
		extents, err := c.export.Disk.Extents(int64(r.offset), int64(n))
		if err != nil {
			return err
		}
		for _, e := range extents {
			if !visit(uint32(e.Length), e.Hole) {
				return nil
			}
		}
		r = r.after(n)
	}
	return nil
}

// blockStatus answers with the map of a range, or as much of it as buf holds.
func (c *conn) blockStatus(r request, buf []byte) error {
	const head = chunkSize + 4
	list := descriptors{p: buf[head:head], most: (len(buf) - head) / descriptorSize}
	if r.has(cmdFlagReqOne) {
		list.most = 1
	}
	if err := c.eachExtent(r, list.add); err != nil {
		return c.sendVerdict(r, c.export.failed("map", r, err), buf)
	}
	if len(list.p) == 0 {
		return c.sendVerdict(r, c.export.failed("map", r, errors.New("the disk tells nothing")), buf)
	}
	putChunk(buf, r, replyFlagDone, replyBlockStatus, uint32(4+len(list.p)))
	binary.BigEndian.PutUint32(buf[chunkSize:], allocationID)
	c.export.counters.done(r, 0)
	return c.sendNow(buf[:head+len(list.p)])
}

// descriptorSize is that of a length and a state.
const descriptorSize = 8

// descriptors is a list of extents as it is sent.
type descriptors struct {
	p    []byte
	most int
}

// add joins an extent to the last one if they are alike, and reports whether there
// is room for more.
func (d *descriptors) add(length uint32, hole bool) bool {
	state := uint32(0)
	if hole {
		state = stateHole | stateZero
	}
	if len(d.p) > 0 {
		last := d.p[len(d.p)-descriptorSize:]
		if binary.BigEndian.Uint32(last[4:]) == state {
			binary.BigEndian.PutUint32(last, binary.BigEndian.Uint32(last)+length)
			return true
		}
	}
	if len(d.p) == d.most*descriptorSize {
		return false
	}
	d.p = binary.BigEndian.AppendUint32(d.p, length)
	d.p = binary.BigEndian.AppendUint32(d.p, state)
	return true
}
