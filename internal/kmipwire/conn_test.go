package kmipwire

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"testing"
	"time"
)

var quick = Timeouts{Handshake: 300 * time.Millisecond, Idle: 300 * time.Millisecond, Message: 300 * time.Millisecond}

// pair connects a Conn with a peer that the test plays.
func pair(t *testing.T, timeouts Timeouts) (*Conn, net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	peer, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	conn := NewConn(accepted, timeouts)
	t.Cleanup(func() { conn.Close(); peer.Close() })
	return conn, peer
}

func TestConnCarriesMessages(t *testing.T) {
	conn, peer := pair(t, quick)
	other := NewConn(peer, quick)
	small := mustMarshal(t, getResponse(make([]byte, 32)))
	value := bytes.Repeat([]byte{7}, MaxMessage-16)
	large := structure(item(tag, 8, uint32(len(value)), value...))
	for _, msg := range [][]byte{small, large, small} {
		sent := make(chan error, 1)
		go func() { sent <- other.Write(t.Context(), msg) }()
		got, err := conn.Read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, msg) {
			t.Fatal("another message arrived")
		}
	}
	peer.Close()
	if _, err := conn.Read(t.Context()); err != io.EOF {
		t.Errorf("after the peer closed: %v, want io.EOF", err)
	}
}

func TestConnRefusesGarbage(t *testing.T) {
	valid := mustMarshal(t, getResponse(make([]byte, 32)))
	cases := map[string][]byte{
		"HTTP":                []byte("HTTP/1.1 400 Bad Request\r\n\r\n"),
		"4 GiB":               item(0x420078, 1, 0xFFFFFFFF),
		"one byte too long":   item(0x420078, 1, MaxMessage-7),
		"not a message":       item(0x420008, 1, 0),
		"not a structure":     item(0x42007B, 8, 0),
		"closed in the head":  valid[:5],
		"closed after it":     valid[:8],
		"closed in the body":  valid[:len(valid)-1],
		"invalid in the body": item(0x42007B, 1, 8, eight(0)...),
	}
	for name, sent := range cases {
		t.Run(name, func(t *testing.T) {
			conn, peer := pair(t, quick)
			if _, err := peer.Write(sent); err != nil {
				t.Fatal(err)
			}
			peer.Close()
			msg, err := conn.Read(t.Context())
			if !errors.Is(err, ErrMalformed) || msg != nil {
				t.Errorf("got %d bytes, %v, want ErrMalformed", len(msg), err)
			}
		})
	}
}

func TestConnDeadlines(t *testing.T) {
	valid := mustMarshal(t, getResponse(make([]byte, 32)))
	t.Run("silence", func(t *testing.T) {
		conn, _ := pair(t, quick)
		expectTimeout(t, func() error { _, err := conn.Read(t.Context()); return err })
	})
	t.Run("a byte now and then", func(t *testing.T) {
		conn, peer := pair(t, quick)
		go func() {
			for _, b := range valid {
				if _, err := peer.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
		}()
		expectTimeout(t, func() error { _, err := conn.Read(t.Context()); return err })
	})
	t.Run("a peer that does not read", func(t *testing.T) {
		conn, _ := pair(t, quick)
		expectTimeout(t, func() error {
			for range 1000 { // until the buffers between them are full
				if err := conn.Write(t.Context(), make([]byte, MaxMessage)); err != nil {
					return err
				}
			}
			return nil
		})
	})
	t.Run("a handshake that does not begin", func(t *testing.T) {
		conn, _ := pair(t, quick)
		secure := NewConn(tls.Client(conn.conn, &tls.Config{ServerName: "x"}), quick)
		start := time.Now()
		if err := secure.Handshake(t.Context()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

func expectTimeout(t *testing.T, f func() error) {
	t.Helper()
	start := time.Now()
	if err := f(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v, want a timeout", err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestConnObeysContext(t *testing.T) {
	long := Timeouts{Handshake: time.Hour, Idle: time.Hour, Message: time.Hour}
	conn, _ := pair(t, long)
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("enough")
	time.AfterFunc(50*time.Millisecond, func() { cancel(cause) })
	if _, err := conn.Read(ctx); err != cause {
		t.Errorf("Read: %v, want the cause", err)
	}
	conn, _ = pair(t, long)
	if err := conn.Write(ctx, structure()); err != cause {
		t.Errorf("Write with a context that has ended: %v, want the cause", err)
	}
	if _, err := conn.Read(ctx); err != cause {
		t.Errorf("Read with a context that has ended: %v, want the cause", err)
	}
}

// TestConnAllocatesWhatArrived has many peers announce the longest message and
// send none of it.
func TestConnAllocatesWhatArrived(t *testing.T) {
	const peers = 100
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range peers {
		head := [headerSize]byte(item(0x420078, 1, MaxMessage-headerSize))
		if _, err := readBody(bytes.NewReader(nil), head, MaxMessage); !errors.Is(err, ErrMalformed) {
			t.Fatal(err)
		}
	}
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > peers*(readStep+4096) {
		t.Errorf("%d bytes for %d headers", used, peers)
	}
}

func TestGrowLeavesNoCopy(t *testing.T) {
	old := bytes.Repeat([]byte{1}, 16)
	bigger := grow(old, 1<<20)
	if !bytes.Equal(bigger, bytes.Repeat([]byte{1}, 16)) || cap(bigger) != 32 {
		t.Errorf("got %v of capacity %d", bigger, cap(bigger))
	}
	if !bytes.Equal(old, make([]byte, 16)) {
		t.Error("the old buffer still holds the message")
	}
}

func TestReceivedNotesEachBufferOnce(t *testing.T) {
	first, second := make([]byte, 16), make([]byte, 16)
	r := &received{Conn: zeros{}}
	for _, b := range [][]byte{first[8:12], first[:4], first[12:], second[4:], nil, second} {
		if _, err := r.Read(b); err != nil {
			t.Fatal(err)
		}
	}
	if len(r.buffers) != 2 {
		t.Errorf("%d buffers are noted, want 2", len(r.buffers))
	}
	for i := range first {
		first[i], second[i] = 1, 1
	}
	r.wipe()
	if !bytes.Equal(first, make([]byte, 16)) || !bytes.Equal(second, make([]byte, 16)) {
		t.Errorf("left: %v %v", first, second)
	}
}

// zeros is a connection that nothing but zeros comes from.
type zeros struct{ net.Conn }

func (zeros) Read(b []byte) (int, error) { return len(b), nil }
