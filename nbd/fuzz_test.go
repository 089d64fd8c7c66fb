package nbd

import (
	"bytes"
	"encoding/binary"
	"io"
	"testing"
)

// script is a connection whose client has said all it will.
type script struct {
	io.Reader
	bytes.Buffer
}

func (s *script) Read(p []byte) (int, error) { return s.Reader.Read(p) }

func (s *script) Close() error { return nil }

func (s *script) writeNow(p [][]byte) ([][]byte, error) { return p, nil }

func (s *script) stop() {}

func (s *script) abort() {}

// FuzzNegotiation: whatever a client says, it gets a greeting and well-formed
// replies to what it asked, and nothing of an export that there is not.
func FuzzNegotiation(f *testing.F) {
	hello := []byte{0, 0, 0, 3}
	say := func(options ...[]byte) { f.Add(append(bytes.Clone(hello), bytes.Join(options, nil)...)) }
	option := func(o uint32, data []byte) []byte { return append(optionHead(o, len(data)), data...) }
	say(option(optList, nil), option(optAbort, nil))
	say(option(optStructuredReply, nil), option(optSetMetaContext, metaData("disk", allocation)), option(optGo, append(text("disk"), 0, 0)))
	say(option(optListMetaContext, metaData("", "base:")), option(optInfo, append(text(""), 0, 3, 0, 1, 0, 2, 0, 3)))
	say(option(optStartTLS, nil), option(99, []byte("data")), option(optExportName, []byte("disk")))
	server, err := New(Export{Name: "disk", Description: "words", Disk: newMemDisk(4096)})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, said []byte) {
		conn := &script{Reader: bytes.NewReader(said)}
		chosen, err := server.negotiate(conn)
		if (err == nil) != (chosen.export != nil) {
			t.Fatalf("%v, %v", chosen, err)
		}
		out := conn.Bytes()[18:]
		for len(out) >= 20 && binary.BigEndian.Uint64(out) == optReplyMagic {
			n := 20 + int(binary.BigEndian.Uint32(out[16:]))
			if n > len(out) || !bytes.Contains(said, out[8:12]) {
				t.Fatalf("a reply of %d bytes in %x", n, out)
			}
			out = out[n:]
		}
		if len(out) != 0 && len(out) != 10 && len(out) != 134 {
			t.Fatalf("%x is no reply", out)
		}
	})
}

// FuzzTransmission: whatever a client sends, each request that it completes has
// one answer, in the right form, as our test client takes it.
func FuzzTransmission(f *testing.F) {
	add := func(requests ...request) {
		var p []byte
		for _, r := range requests {
			p = append(append(p, requestBytes(r)...), payload(r)...)
		}
		for _, setup := range []byte{0, 1, 3, 7, 16, 19} {
			f.Add(setup, p)
		}
	}
	for _, r := range refusals {
		if r.request.length < 1<<10 {
			add(r.request, request{command: cmdRead, length: 100})
		}
	}
	add(request{command: cmdWrite, flags: cmdFlagFUA, length: 5000, offset: 3}, request{command: cmdFlush})
	add(request{command: cmdRead, length: 600 << 10}, request{command: cmdTrim, length: 1 << 20}, request{command: cmdDisc})
	add(request{command: cmdWriteZeroes, flags: cmdFlagNoHole, length: 1 << 20}, request{command: cmdBlockStatus, length: 1 << 20})
	add(request{command: cmdCache, length: 1 << 20}, request{command: cmdWriteZeroes, length: 300})
	pristine := newMemDisk(refusedSize).data
	f.Fuzz(func(t *testing.T, setup byte, sent []byte) {
		disk := &memDisk{data: bytes.Clone(pristine), hot: setup&4 != 0, background: setup&16 != 0}
		server, err := New(Export{Disk: disk, ReadOnly: setup&8 != 0})
		if err != nil {
			t.Fatal(err)
		}
		defer server.shrink()
		chosen := session{server.exports[0], setup&1 != 0, setup&2 != 0 && setup&1 != 0}
		conn := &script{Reader: bytes.NewReader(sent)}
		if err := server.transmit(t.Context(), chosen, conn); err == nil {
			t.Fatal("no end")
		}
		if server.exports[0].ReadOnly && !bytes.Equal(disk.data, pristine) {
			t.Error("a read-only disk changed")
		}
		checkReplies(t, chosen, sent, conn.Bytes())
	})
}

// checkReplies wants one answer to each request that was sent as a whole.
func checkReplies(t *testing.T, chosen session, sent, replies []byte) {
	in := bytes.NewReader(replies)
	asked := map[uint64][]request{} // cookies may be used more than once
	for len(sent) >= requestSize {
		r, ok := parse(sent)
		if sent = sent[requestSize:]; !ok || r.command == cmdDisc {
			break
		}
		if r.command == cmdWrite {
			if uint64(len(sent)) < uint64(r.length) {
				break
			}
			sent = sent[r.length:]
		}
		asked[r.cookie] = append(asked[r.cookie], r)
	}
	for _, requests := range asked {
		if len(requests) > 1 {
			return // whose answer is whose can't be told
		}
	}
	c := &client{t: t, structured: chosen.structured, waiting: map[uint64]*call{}}
	for cookie, requests := range asked {
		c.waiting[cookie] = &call{request: requests[0], done: make(chan answer, 1)}
	}
	for in.Len() > 0 {
		if err := c.reply(in); err != nil {
			t.Fatal(err)
		}
	}
	if len(c.waiting) > 0 {
		t.Fatalf("%d requests without an answer", len(c.waiting))
	}
}
