package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"reflect"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmcrypt/vmcrypt/image"
)

// refusedSize is the size of the disk for which refusals are.
const refusedSize = 1 << 20

const huge = 1<<64 - 1

var refusals = []struct {
	name     string
	request  request
	want     errno
	readOnly errno // what a read-only export says, if that is another
}{
	{"read beyond the end", request{command: cmdRead, offset: refusedSize - 1, length: 2}, eInval, 0},
	{"read at the end", request{command: cmdRead, offset: refusedSize, length: 1}, eInval, 0},
	{"read that overflows", request{command: cmdRead, offset: huge, length: 2}, eInval, 0},
	{"read of nothing", request{command: cmdRead}, eInval, 0},
	{"read of too much", request{command: cmdRead, length: maxRequest + 1}, eInval, 0},
	{"read of 4 GiB", request{command: cmdRead, length: 1<<32 - 1}, eInval, 0},
	{"read with an unknown flag", request{command: cmdRead, flags: 1 << 9, length: 1}, eInval, 0},
	{"read with another's flag", request{command: cmdRead, flags: cmdFlagNoHole, length: 1}, eInval, 0},
	{"write beyond the end", request{command: cmdWrite, offset: refusedSize - 1, length: 2}, eNoSpc, ePerm},
	{"write that overflows", request{command: cmdWrite, offset: huge, length: 2}, eNoSpc, ePerm},
	{"write of nothing", request{command: cmdWrite}, eInval, ePerm},
	{"write of too much", request{command: cmdWrite, length: maxRequest + 1}, eInval, ePerm},
	{"write with an unknown flag", request{command: cmdWrite, flags: 1 << 15, length: 100}, eInval, 0},
	{"zeroes beyond the end", request{command: cmdWriteZeroes, offset: refusedSize - 1, length: 2}, eNoSpc, ePerm},
	{"zeroes that overflow", request{command: cmdWriteZeroes, offset: huge - 1, length: 1<<32 - 1}, eNoSpc, ePerm},
	{"fast zeroes over data", request{command: cmdWriteZeroes, flags: cmdFlagFastZero, length: 512}, eNotSup, ePerm},
	{"fast zeroes without holes", request{command: cmdWriteZeroes, flags: cmdFlagFastZero | cmdFlagNoHole, length: 512}, eNotSup, ePerm},
	{"trim beyond the end", request{command: cmdTrim, offset: refusedSize - 1, length: 2}, eInval, ePerm},
	{"trim of nothing", request{command: cmdTrim}, eInval, ePerm},
	{"cache beyond the end", request{command: cmdCache, offset: refusedSize - 1, length: 2}, eInval, 0},
	{"cache of too much", request{command: cmdCache, length: maxRequest + 1}, eInval, 0},
	{"flush of a range", request{command: cmdFlush, length: 1}, eInval, 0},
	{"flush at an offset", request{command: cmdFlush, offset: 1}, eInval, 0},
	{"map beyond the end", request{command: cmdBlockStatus, offset: refusedSize - 1, length: 2}, eInval, 0},
	{"map of nothing", request{command: cmdBlockStatus}, eInval, 0},
	{"an unknown command", request{command: 8, length: 1}, eInval, 0},
	{"a command far away", request{command: 1<<16 - 1, length: 1}, eInval, 0},
}

// TestRefusals: what may not be done has its error value, changes nothing, and
// leaves the connection as it was.
func TestRefusals(t *testing.T) {
	for _, readOnly := range []bool{false, true} {
		for _, structured := range []bool{false, true} {
			disk := newMemDisk(refusedSize)
			before := bytes.Clone(disk.data)
			_, socket, _ := start(t, Export{Disk: disk, ReadOnly: readOnly})
			c := connect(t, socket, "", structured)
			for _, test := range refusals {
				want := test.want
				if readOnly && test.readOnly != 0 {
					want = test.readOnly
				}
				if a := c.do(test.request, payload(test.request)); a.errno != want {
					t.Errorf("%s, read-only %v, structured %v: error %d, want %d", test.name, readOnly, structured, a.errno, want)
				}
				if a := c.do(request{command: cmdRead, offset: 5, length: 3}, nil); !bytes.Equal(a.data, before[5:8]) {
					t.Fatalf("%s: the connection is out of step", test.name)
				}
			}
			if !bytes.Equal(disk.content(0, refusedSize), before) {
				t.Error("the disk changed")
			}
		}
	}
}

// payload is what must follow a request.
func payload(r request) []byte {
	if r.command != cmdWrite {
		return nil
	}
	return bytes.Repeat([]byte{1}, int(r.length))
}

// TestUnfragmented: a read that wants one chunk gets it up to a piece.
func TestUnfragmented(t *testing.T) {
	for _, hot := range []bool{false, true} {
		disk := newMemDisk(4 * pieceSize)
		disk.hot = hot
		_, socket, _ := start(t, Export{Disk: disk})
		c := connect(t, socket, "", true)
		for _, r := range []struct {
			offset, length int
			want           errno
		}{{0, 65536, 0}, {100, pieceSize, 0}, {0, pieceSize + 1, eOverflow}} {
			a := c.do(request{command: cmdRead, flags: cmdFlagDF, offset: uint64(r.offset), length: uint32(r.length)}, nil)
			if a.errno != r.want || (a.errno == 0 && (a.chunks != 1 || !bytes.Equal(a.data, disk.data[r.offset:][:r.length]))) {
				t.Errorf("%v: error %d, %d chunks", r, a.errno, a.chunks)
			}
		}
		simple := connect(t, socket, "", false)
		if a := simple.do(request{command: cmdRead, flags: cmdFlagDF, length: 1}, nil); a.errno != eInval || simple.flags&flagSendDF != 0 {
			t.Errorf("DF without structured replies: error %d, flags %#x", a.errno, simple.flags)
		}
	}
}

// TestLargeRequests: the largest requests go through in pieces, whatever their
// place, in both kinds of replies.
func TestLargeRequests(t *testing.T) {
	for _, hot := range []bool{false, true} {
		for _, structured := range []bool{false, true} {
			disk := newMemDisk(maxRequest + 2000)
			disk.hot = hot
			_, socket, _ := start(t, Export{Disk: disk})
			c := connect(t, socket, "", structured)
			data := bytes.Repeat([]byte{1, 2, 3, 5, 7, 11, 13}, maxRequest/7+1)[:maxRequest]
			if a := c.do(request{command: cmdWrite, offset: 1234, length: maxRequest}, data); a.errno != 0 {
				t.Fatalf("write: error %d", a.errno)
			}
			if !bytes.Equal(disk.content(1233, 1+maxRequest), append(newMemDisk(1234).data[1233:], data...)) {
				t.Error("written wrongly")
			}
			if a := c.do(request{command: cmdRead, offset: 1234, length: maxRequest}, nil); a.errno != 0 || !bytes.Equal(a.data, data) {
				t.Errorf("read wrongly: error %d", a.errno)
			}
		}
	}
}

// TestFailures: what a disk says reaches the client as one of the few values there
// are, and the connection goes on.
func TestFailures(t *testing.T) {
	for _, test := range []struct {
		err  error
		want errno
	}{
		{errors.New("anything"), eIO},
		{unix.EIO, eIO},
		{fmt.Errorf("write: %w", &os.PathError{Err: unix.ENOSPC}), eNoSpc},
		{unix.EDQUOT, eNoSpc},
		{unix.EFBIG, eNoSpc},
		{os.ErrPermission, ePerm},
		{os.ErrClosed, eShutdown},
	} {
		disk := newMemDisk(4 << 20)
		disk.background = test.want == eIO
		var bad atomic.Value
		disk.before = func(operation string, _ int64, _ int) error {
			if operation == bad.Load() {
				return test.err
			}
			return nil
		}
		_, socket, _ := start(t, Export{Disk: disk})
		for _, structured := range []bool{false, true} {
			c := connect(t, socket, "", structured)
			for _, r := range []struct {
				operation string
				request   request
			}{
				{"read", request{command: cmdRead, length: 512}},
				{"read", request{command: cmdRead, length: 2 << 20}},
				{"read", request{command: cmdCache, length: 512}},
				{"write", request{command: cmdWrite, length: 2 << 20}},
				{"write", request{command: cmdWriteZeroes, flags: cmdFlagNoHole, length: 512}},
				{"flush", request{command: cmdWrite, flags: cmdFlagFUA, length: 512}},
				{"flush", request{command: cmdTrim, flags: cmdFlagFUA, length: 512}},
				{"flush", request{command: cmdFlush}},
				{"discard", request{command: cmdTrim, length: 512}},
				{"discard", request{command: cmdWriteZeroes, length: 512}},
				{"extents", request{command: cmdBlockStatus, length: 512}},
				{"extents", request{command: cmdWriteZeroes, flags: cmdFlagFastZero, length: 512}},
			} {
				if r.request.command == cmdBlockStatus && !structured {
					continue
				}
				bad.Store(r.operation)
				if a := c.do(r.request, payload(r.request)); a.errno != test.want {
					t.Errorf("%v for %s of command %d: error %d, want %d", test.err, r.operation, r.request.command, a.errno, test.want)
				}
				bad.Store("")
				if a := c.do(request{command: cmdRead, length: 512}, nil); a.errno != 0 {
					t.Fatalf("then: error %d", a.errno)
				}
			}
		}
	}
}

// TestFailureWithinAReply: a read that fails late is told where it can be, and
// ends the connection where it can't.
func TestFailureWithinAReply(t *testing.T) {
	disk := newMemDisk(4 << 20)
	disk.before = func(operation string, offset int64, _ int) error {
		if operation == "read" && offset >= 1<<20 {
			return unix.EIO
		}
		return nil
	}
	_, socket, _ := start(t, Export{Disk: disk})
	whole := request{command: cmdRead, length: 4 << 20}
	c := connect(t, socket, "", true)
	if a := c.do(whole, nil); a.errno != eIO || a.chunks != 4 {
		t.Errorf("error %d after %d chunks", a.errno, a.chunks)
	}
	if a := c.do(request{command: cmdRead, length: 512}, nil); a.errno != 0 {
		t.Errorf("then: error %d", a.errno)
	}
	c = connect(t, socket, "", false)
	if _, ok := <-c.begin(whole, nil); ok {
		t.Error("an answer that can't be right")
	}
}

// TestFalseMagic: what is no request ends the connection, after the answers to
// those before it.
func TestFalseMagic(t *testing.T) {
	_, socket, _ := start(t, Export{Disk: newMemDisk(4096)})
	c := connect(t, socket, "", false)
	first := c.begin(request{command: cmdRead, length: 512}, nil)
	c.write(make([]byte, requestSize))
	if a := c.await(first); a.errno != 0 {
		t.Errorf("error %d", a.errno)
	}
	if _, ok := <-c.begin(request{command: cmdRead, length: 512}, nil); ok {
		t.Error("the connection goes on")
	}
}

// TestDisconnect: requests before it are answered, then the connection ends.
func TestDisconnect(t *testing.T) {
	_, socket, _ := start(t, Export{Disk: newMemDisk(4 << 20)})
	c := connect(t, socket, "", false)
	var answers []<-chan answer
	for range 100 {
		answers = append(answers, c.begin(request{command: cmdRead, length: 1 << 20}, nil))
	}
	end := c.begin(request{command: cmdDisc}, nil)
	for _, a := range answers {
		c.await(a)
	}
	if _, ok := <-end; ok {
		t.Error("an answer to a disconnect")
	}
}

// TestDurability: FUA and flushes reach the disk, plain writes don't wait for it.
func TestDurability(t *testing.T) {
	disk := newMemDisk(1 << 20)
	_, socket, _ := start(t, Export{Disk: disk})
	c := connect(t, socket, "", true)
	flushes := 0
	for _, r := range []struct {
		request request
		flush   int
	}{
		{request{command: cmdWrite, length: 1}, 0},
		{request{command: cmdWrite, flags: cmdFlagFUA, length: 1}, 1},
		{request{command: cmdTrim, length: 1}, 0},
		{request{command: cmdTrim, flags: cmdFlagFUA, length: 1}, 1},
		{request{command: cmdWriteZeroes, length: 1}, 0},
		{request{command: cmdWriteZeroes, flags: cmdFlagFUA | cmdFlagNoHole, length: 1}, 1},
		{request{command: cmdFlush}, 1},
	} {
		if a := c.do(r.request, payload(r.request)); a.errno != 0 {
			t.Errorf("%v: error %d", r.request, a.errno)
		}
		flushes += r.flush
		if disk.flushed() != flushes {
			t.Errorf("%v: %d flushes, want %d", r.request, disk.flushed(), flushes)
		}
	}
}

// TestBlockStatus: data and holes of a file are told, as one or as several.
func TestBlockStatus(t *testing.T) {
	const size = 5 << 30 // more than one map holds, and than 32 bits
	disk := fileDisk(t, size)
	for _, at := range []int64{1 << 20, 40 << 20, size - 1<<20} {
		if _, err := disk.WriteAt(bytes.Repeat([]byte{1}, 1<<20), at); err != nil {
			t.Fatal(err)
		}
	}
	extents, err := disk.Extents(0, size)
	if err != nil || len(extents) != 6 {
		t.Skipf("the file system tells of no holes: %v, %v", extents, err)
	}
	_, socket, _ := start(t, Export{Disk: disk})
	c := connect(t, socket, "", true)
	for _, test := range []struct {
		request request
		want    []uint32
	}{
		{request{length: 1 << 20}, []uint32{1 << 20, 3}},
		{request{length: 1<<32 - 1}, []uint32{1 << 20, 3, 1 << 20, 0, 38 << 20, 3, 1 << 20, 0, 1<<32 - 1 - 41<<20, 3}},
		{request{length: 1<<32 - 1, flags: cmdFlagReqOne}, []uint32{1 << 20, 3}},
		{request{offset: 41 << 20, length: 1<<32 - 1, flags: cmdFlagReqOne}, []uint32{1<<32 - 1, 3}},
		{request{offset: 1<<20 + 1, length: 1}, []uint32{1, 0}},
		{request{offset: size - 2<<20, length: 2 << 20}, []uint32{1 << 20, 3, 1 << 20, 0}},
	} {
		test.request.command = cmdBlockStatus
		var want []byte
		for _, w := range test.want {
			want = binary.BigEndian.AppendUint32(want, w)
		}
		if a := c.do(test.request, nil); a.errno != 0 || !bytes.Equal(a.extents, want) {
			t.Errorf("%v: error %d, %x, want %x", test.request, a.errno, a.extents, want)
		}
	}
}

// TestFastZero: it is done where there are holes, and refused elsewhere.
func TestFastZero(t *testing.T) {
	disk := fileDisk(t, 1<<20)
	if extents, _ := disk.Extents(0, 1<<20); len(extents) != 1 || !extents[0].Hole {
		t.Skip("the file system tells of no holes")
	}
	_, socket, _ := start(t, Export{Disk: disk})
	c := connect(t, socket, "", true)
	fast := request{command: cmdWriteZeroes, flags: cmdFlagFastZero, length: 1 << 20}
	if a := c.do(fast, nil); a.errno != 0 {
		t.Errorf("over a hole: error %d", a.errno)
	}
	c.do(request{command: cmdWrite, offset: 5000, length: 1}, []byte{1})
	if a := c.do(fast, nil); a.errno != eNotSup {
		t.Errorf("over data: error %d", a.errno)
	}
	if a := c.do(request{command: cmdRead, offset: 5000, length: 1}, nil); a.data[0] != 1 {
		t.Error("what was refused was done")
	}
}

func TestStats(t *testing.T) {
	server, socket, _ := start(t, Export{Name: "a", Disk: newMemDisk(4096)}, Export{Name: "b", Disk: newMemDisk(4 << 20)})
	c := connect(t, socket, "b", true)
	c.do(request{command: cmdRead, length: 1000}, nil)
	c.do(request{command: cmdRead, length: 3 << 20}, nil)
	c.do(request{command: cmdWrite, length: 700}, make([]byte, 700))
	c.do(request{command: cmdRead, offset: 4 << 20, length: 1}, nil) // refused
	stats := server.Stats()
	for i, want := range []Stats{{Export: "a"}, {Export: "b", BytesRead: 3146728, BytesWritten: 700, Connections: 1}} {
		got := stats[i]
		if got.Operations = nil; !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	if stats[0].Operations != nil {
		t.Errorf("of an export that nobody used: %+v", stats[0].Operations)
	}
}

// TestOperationStats: each request is counted once, whatever way its reply takes.
func TestOperationStats(t *testing.T) {
	const size = 1 << 20
	for name, disk := range map[string]image.Disk{"slow": newMemDisk(size), "file": fileDisk(t, size)} {
		for _, structured := range []bool{true, false} {
			server, socket, _ := start(t, Export{Disk: disk})
			c := connect(t, socket, "", structured)
			for _, r := range []request{
				{command: cmdRead, length: 512}, {command: cmdRead, length: size}, {command: cmdRead, offset: size, length: 1},
				{command: cmdFlush}, {command: cmdTrim, length: 4096}, {command: cmdCache, length: 4096}, {command: 77},
				{command: cmdWriteZeroes, length: 4096}, {command: cmdWriteZeroes, offset: size, length: 1},
			} {
				c.do(r, nil)
			}
			c.do(request{command: cmdWrite, length: 512}, make([]byte, 512))
			c.do(request{command: cmdWrite, flags: cmdFlagFUA, length: 512}, make([]byte, 512))
			want := "read 3 map[EINVAL:1] write 2 map[] unknown 1 map[EINVAL:1] flush 1 map[] trim 1 map[] cache 1 map[] write_zeroes 2 map[ENOSPC:1] "
			if got := counted(server.Stats()[0].Operations); got != want {
				t.Errorf("%s, structured %v: got %s, want %s", name, structured, got, want)
			}
		}
	}
}

func counted(operations []OperationStats) (text string) {
	for _, o := range operations {
		n := uint64(0)
		for _, count := range o.Requests {
			n += count
		}
		text += fmt.Sprint(o.Operation, " ", n, " ", o.Errors, " ")
	}
	return text
}

// TestLatencyIsCounted: what a disk takes its time for is in the histogram.
func TestLatencyIsCounted(t *testing.T) {
	var c counters
	bounds := LatencyBounds()
	for _, took := range append(bounds, 2*bounds[len(bounds)-1]) {
		c.done(request{asked: cmdTrim, begun: sinceStart() - took - time.Microsecond}, 0)
		c.done(request{asked: cmdTrim, begun: sinceStart() - took + 20*time.Microsecond}, eIO)
	}
	got := c.stats()
	if len(got) != 1 || got[0].Operation != "trim" || got[0].Errors["EIO"] != uint64(len(bounds)+1) {
		t.Fatalf("%+v", got)
	}
	sum, requests := time.Duration(0), uint64(0)
	for i, n := range got[0].Requests {
		requests += n
		if i < len(bounds) && n == 0 {
			t.Errorf("no request took up to %v: %v", bounds[i], got[0].Requests)
		}
	}
	for _, b := range bounds {
		sum += 2 * b
	}
	if requests != uint64(2*len(bounds)+2) || got[0].Time < sum {
		t.Errorf("%d requests took %v", requests, got[0].Time)
	}
}
