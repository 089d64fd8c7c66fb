package nbd

import (
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/vmcrypt/vmcrypt/image"
)

// halfCached is a disk of which every second piece is in memory.
type halfCached struct{ *memDisk }

func (d halfCached) ReadAtNoWait(p []byte, offset int64) bool {
	if offset/pieceSize%2 == 1 {
		return false
	}
	_, err := d.ReadAt(p, offset)
	return err == nil
}

// TestChunksInOrder: the chunk that ends a reply comes last, though another does the
// rest of the read and the connection is busy with the next request.
func TestChunksInOrder(t *testing.T) {
	d := halfCached{newMemDisk(4 << 20)}
	d.before = func(operation string, _ int64, _ int) error {
		if operation == "write" {
			time.Sleep(100 * time.Millisecond)
		}
		return nil
	}
	_, sock, _ := start(t, Export{Name: "a", Disk: d})
	c := dial(t, sock)
	c.hello()
	c.option(optStructuredReply, nil, repAck)
	c.option(optGo, append(text("a"), 0, 0), repInfo, repInfo, repAck)
	message := requestBytes(request{command: cmdRead, cookie: 1, length: 2 * pieceSize})
	message = append(message, requestBytes(request{command: cmdWrite, cookie: 2, offset: 1 << 20, length: 4096})...)
	c.write(append(message, make([]byte, 4096)...))
	for i := range uint64(2) {
		head := c.take(chunkSize)
		data := c.take(int(binary.BigEndian.Uint32(head[16:])))
		done := binary.BigEndian.Uint16(head[4:])&replyFlagDone != 0
		if offset := binary.BigEndian.Uint64(data); offset != i*pieceSize || done != (i == 1) {
			t.Errorf("chunk %d is of offset %d, and the last one: %t", i, offset, done)
		}
	}
}

// badSector is a disk that fails after one piece, by when other reads are done.
type badSector struct {
	*memDisk
	fails chan struct{} // closed when it does
}

func (d badSector) BeginReads(batch []image.BackgroundRead) {
	batch = slices.Clone(batch)
	go func() {
		<-d.fails
		d.memDisk.BeginReads(batch)
	}()
}

func (d badSector) ReadAt(p []byte, offset int64) (int, error) {
	if offset == pieceSize {
		close(d.fails)
		time.Sleep(100 * time.Millisecond)
		return 0, errors.New("bad sector")
	}
	return d.memDisk.ReadAt(p, offset)
}

// TestBrokenReply: a reply that breaks off is not continued with others.
func TestBrokenReply(t *testing.T) {
	d := badSector{newMemDisk(4 << 20), make(chan struct{})}
	d.background = true
	_, sock, _ := start(t, Export{Name: "a", Disk: d})
	c := dial(t, sock)
	c.hello()
	c.option(optGo, append(text("a"), 0, 0), repInfo, repInfo, repAck)
	message := requestBytes(request{command: cmdRead, cookie: 1, length: 2 * pieceSize})
	for i := range uint64(30) {
		message = append(message, requestBytes(request{command: cmdRead, cookie: 2 + i, offset: 1<<20 + i<<14, length: 16 << 10})...)
	}
	c.write(message)
	if head := c.take(simpleSize); binary.BigEndian.Uint64(head[8:]) != 1 {
		t.Fatalf("another reply came first: %x", head)
	}
	if n, err := io.Copy(io.Discard, c.conn); n != pieceSize || err != nil {
		t.Errorf("%d bytes follow, %v", n, err)
	}
}
