package nbd

import (
	"encoding/binary"
	"strings"
	"testing"
	"time"
)

// TestOptions: each option, right or wrong, has the replies it should, and what
// follows is understood.
func TestOptions(t *testing.T) {
	_, socket, _ := start(t, Export{Name: "a", Description: "the first", Disk: newMemDisk(4096)},
		Export{Name: "b", Disk: newMemDisk(8192), ReadOnly: true})
	long := strings.Repeat("x", maxString+1)
	for _, test := range []struct {
		name   string
		option uint32
		data   []byte
		want   []uint32
	}{
		{"list", optList, nil, []uint32{repServer, repServer, repAck}},
		{"list with data", optList, []byte("?"), []uint32{repErrInvalid}},
		{"TLS", optStartTLS, nil, []uint32{repErrPolicy}},
		{"an unknown option", 77, []byte("whatever"), []uint32{repErrUnsup}},
		{"peek export", 4, nil, []uint32{repErrUnsup}},
		{"extended headers", 11, nil, []uint32{repErrUnsup}},
		{"too much data", 77, make([]byte, maxOptionData+1), []uint32{repErrTooBig}},
		{"as much data as may be", 77, make([]byte, maxOptionData), []uint32{repErrUnsup}},
		{"info", optInfo, append(text("a"), 0, 0), []uint32{repInfo, repInfo, repAck}},
		{"all infos", optInfo, append(text("a"), 0, 5, 0, 0, 0, 1, 0, 2, 0, 3, 0, 99),
			[]uint32{repInfo, repInfo, repInfo, repInfo, repAck}},
		{"no description", optInfo, append(text("b"), 0, 1, 0, 2), []uint32{repInfo, repInfo, repAck}},
		{"info of nothing", optInfo, append(text("c"), 0, 0), []uint32{repErrUnknown}},
		{"go to nothing", optGo, append(text("c"), 0, 0), []uint32{repErrUnknown}},
		{"no default export", optInfo, append(text(""), 0, 0), []uint32{repErrUnknown}},
		{"info without data", optInfo, nil, []uint32{repErrInvalid}},
		{"info cut short", optInfo, append(text("a"), 0, 1), []uint32{repErrInvalid}},
		{"info with more", optInfo, append(text("a"), 0, 0, 0), []uint32{repErrInvalid}},
		{"info with a long name", optInfo, append(text(long), 0, 0), []uint32{repErrInvalid}},
		{"info with a false length", optInfo, []byte{255, 255, 255, 255, 0, 0}, []uint32{repErrInvalid}},
		{"contexts before structured replies", optListMetaContext, metaData("a"), []uint32{repErrInvalid}},
		{"structured replies with data", optStructuredReply, []byte("?"), []uint32{repErrInvalid}},
		{"structured replies", optStructuredReply, nil, []uint32{repAck}},
		{"all contexts", optListMetaContext, metaData("a"), []uint32{repMetaContext, repAck}},
		{"contexts of base", optListMetaContext, metaData("a", "base:"), []uint32{repMetaContext, repAck}},
		{"one context by several queries", optListMetaContext, metaData("a", "qemu:", allocation, "base:"),
			[]uint32{repMetaContext, repAck}},
		{"contexts of others", optListMetaContext, metaData("a", "qemu:dirty-bitmap:x"), []uint32{repAck}},
		{"contexts of nothing", optListMetaContext, metaData("c"), []uint32{repErrUnknown}},
		{"select a context", optSetMetaContext, metaData("a", allocation), []uint32{repMetaContext, repAck}},
		{"select no context", optSetMetaContext, metaData("a"), []uint32{repAck}},
		{"select half a name", optSetMetaContext, metaData("a", "base:"), []uint32{repAck}},
		{"more queries than there are", optSetMetaContext, append(text("a"), 255, 255, 255, 255), []uint32{repErrInvalid}},
		{"contexts without data", optSetMetaContext, nil, []uint32{repErrInvalid}},
		{"a long query", optSetMetaContext, metaData("a", long), []uint32{repErrInvalid}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := dial(t, socket)
			c.hello()
			if test.option >= optListMetaContext && test.option <= optSetMetaContext && !strings.Contains(test.name, "before") {
				c.option(optStructuredReply, nil, repAck)
			}
			c.option(test.option, test.data, test.want...)
			c.option(optAbort, nil, repAck)
			c.ended()
		})
	}
}

// TestInfos: what clients are told is right.
func TestInfos(t *testing.T) {
	_, socket, _ := start(t, Export{Name: "disk", Description: "words", Disk: newMemDisk(12345), ReadOnly: true})
	c := dial(t, socket)
	c.hello()
	if got := string(c.option(optList, nil, repServer, repAck)[0]); got != string(text("disk"))+"words" {
		t.Errorf("listed as %q", got)
	}
	infos := c.option(optInfo, append(text(""), 0, 2, 0, 1, 0, 2), repInfo, repInfo, repInfo, repInfo, repAck)
	for i, want := range []string{
		"\x00\x00" + "\x00\x00\x00\x00\x00\x00\x30\x39" + "\x05\x0f",
		"\x00\x03" + "\x00\x00\x00\x01" + "\x00\x00\x10\x00" + "\x02\x00\x00\x00",
		"\x00\x01disk",
		"\x00\x02words",
	} {
		if string(infos[i]) != want {
			t.Errorf("info %d: %x, want %x", i, infos[i], want)
		}
	}
}

// TestExportName: the oldest way to choose an export.
func TestExportName(t *testing.T) {
	_, socket, _ := start(t, Export{Name: "disk", Disk: newMemDisk(4096)})
	for flags, size := range map[byte]int{3: 10, 1: 134, 0: 134} {
		c := dial(t, socket)
		c.take(18)
		c.write([]byte{0, 0, 0, flags})
		c.write(append(optionHead(optExportName, 4), "disk"...))
		reply := c.take(size)
		if got := binary.BigEndian.Uint64(reply); got != 4096 {
			t.Errorf("size %d", got)
		}
		if got := binary.BigEndian.Uint16(reply[8:]); got != 0x0d6d {
			t.Errorf("flags %#x", got)
		}
		go c.receive()
		if a := c.do(request{command: cmdRead, length: 512}, nil); a.errno != 0 || a.data[1] != 31 {
			t.Errorf("read: %v", a.errno)
		}
	}
}

// TestContextIsOfItsExport: a context selected for one export counts for no other,
// and no longer after a selection that failed.
func TestContextIsOfItsExport(t *testing.T) {
	_, socket, _ := start(t, Export{Name: "a", Disk: newMemDisk(4096)}, Export{Name: "b", Disk: newMemDisk(4096)})
	for _, test := range []struct {
		name  string
		again []byte // a second selection, of which nothing comes
		reply uint32
		want  errno
	}{{"a", nil, 0, 0}, {"b", nil, 0, eInval}, {"a", metaData("c", allocation), repErrUnknown, eInval},
		{"a", metaData("a"), repAck, eInval}} {
		c := dial(t, socket)
		c.hello()
		c.option(optStructuredReply, nil, repAck)
		c.option(optSetMetaContext, metaData("a", allocation), repMetaContext, repAck)
		if test.again != nil {
			c.option(optSetMetaContext, test.again, test.reply)
		}
		c.option(optGo, append(text(test.name), 0, 0), repInfo, repInfo, repAck)
		c.structured = true
		go c.receive()
		if a := c.do(request{command: cmdBlockStatus, length: 4096}, nil); a.errno != test.want {
			t.Errorf("%v: error %d, want %d", test, a.errno, test.want)
		}
	}
}

// TestNegotiationsThatEnd: what can't be answered ends the connection.
func TestNegotiationsThatEnd(t *testing.T) {
	_, socket, _ := start(t, Export{Name: "disk", Disk: newMemDisk(4096)})
	for name, bytes := range map[string][]byte{
		"unknown client flags":    {0, 0, 0, 7},
		"a false magic number":    append([]byte{0, 0, 0, 3}, make([]byte, 16)...),
		"an unknown export":       append(append([]byte{0, 0, 0, 3}, optionHead(optExportName, 3)...), "abc"...),
		"too long an export name": append(append([]byte{0, 0, 0, 3}, optionHead(optExportName, maxOptionData+1)...), make([]byte, maxOptionData+1)...),
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, socket)
			c.take(18)
			c.write(bytes)
			c.ended()
		})
	}
}

func TestOptionsAreBounded(t *testing.T) {
	_, socket, _ := start(t, Export{Disk: newMemDisk(4096)})
	c := dial(t, socket)
	c.hello()
	for range maxOptions {
		c.option(99, nil, repErrUnsup)
	}
	c.ended()
}

// TestSlowNegotiation: whoever does not come to the point is turned out, wherever
// he stops.
func TestSlowNegotiation(t *testing.T) {
	server, err := New(Export{Disk: newMemDisk(4096)})
	if err != nil {
		t.Fatal(err)
	}
	server.negotiation = 200 * time.Millisecond
	socket, _ := serve(t, server)
	for _, sent := range [][]byte{nil, {0, 0}, {0, 0, 0, 3}, append([]byte{0, 0, 0, 3}, optionHead(optList, 5)...),
		append([]byte{0, 0, 0, 3}, optionHead(99, 1<<32-1)...)} {
		c := dial(t, socket)
		c.take(18)
		c.write(sent)
		c.ended()
	}
}

func TestNew(t *testing.T) {
	disk := newMemDisk(4096)
	for name, exports := range map[string][]Export{
		"a name twice":       {{Name: "a", Disk: disk}, {Name: "a", Disk: disk}},
		"a long name":        {{Name: strings.Repeat("x", maxString+1), Disk: disk}},
		"a long description": {{Description: strings.Repeat("x", maxString+1), Disk: disk}},
		"NUL":                {{Name: "a\x00b", Disk: disk}},
		"no UTF-8":           {{Name: "\xff", Disk: disk}},
	} {
		if _, err := New(exports...); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
