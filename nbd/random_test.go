package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmcrypt/vmcrypt/blockcrypt"
	"github.com/vmcrypt/vmcrypt/image"
)

// operations is how many TestRandomOperations does on each of its disks.
func operations() int {
	if os.Getenv("VMCRYPT_TEST_LONG") == "1" {
		return 10_000
	}
	return 2_000
}

const users = 12

// TestRandomOperations compares disks with a model in memory, on several
// connections with several requests under way on each.
func TestRandomOperations(t *testing.T) {
	const size = 3<<20 + 512*3
	for name, disk := range map[string]image.Disk{
		"memory":              newMemDisk(size),
		"memory, background":  &memDisk{data: make([]byte, size), background: true},
		"memory, half cached": halfCached{newMemDisk(size)},
		"file":                fileDisk(t, size),
		"file, cold":          coldFile{fileDisk(t, size)},
		"file, by workers":    workersOnly{fileDisk(t, size)},
		"encrypted, cold":     encrypted(t, coldFile{fileDisk(t, size)}, blockcrypt.Preserve),
		"encrypted, fill":     encrypted(t, fileDisk(t, size), blockcrypt.Fill),
		"encrypted, by 4096":  encrypted(t, fileDisk(t, size/4096*4096), blockcrypt.Preserve),
		"encrypted, by 512":   encrypted(t, fileDisk(t, size), blockcrypt.Preserve),
	} {
		t.Run(name, func(t *testing.T) { testRandom(t, disk) })
	}
}

// TestRandomOperationsUncached is with one who takes the disk out of the page cache
// all the time.
func TestRandomOperationsUncached(t *testing.T) {
	file := fileDisk(t, 3<<20)
	data, err := os.Open(file.DataPath())
	if err != nil {
		t.Fatal(err)
	}
	defer data.Close()
	ended, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for ; ; time.Sleep(time.Millisecond) {
			select {
			case <-ended:
				return
			default:
			}
			if err := errors.Join(file.Flush(), unix.Fadvise(int(data.Fd()), 0, 0, unix.FADV_DONTNEED)); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	testRandom(t, encrypted(t, file, blockcrypt.Preserve))
	close(ended)
	<-stopped
}

func encrypted(t *testing.T, storage image.Disk, holes blockcrypt.HolePolicy) image.Disk {
	t.Helper()
	sector := 512
	if storage.Size()%4096 == 0 {
		sector = 4096
	}
	key := make([]byte, blockcrypt.KeySize)
	key[0] = 1
	c, err := blockcrypt.Engine{}.NewCipher(key, sector)
	if err != nil {
		t.Fatal(err)
	}
	d, err := blockcrypt.NewDisk(storage, c, holes)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// testRandom lets each of some users have a part of the disk, with borders
// within sectors, and a connection or a share of one.
func testRandom(t *testing.T, disk image.Disk) {
	model := make([]byte, disk.Size())
	if _, err := disk.ReadAt(model, 0); err != nil {
		t.Fatal(err)
	}
	_, socket, stop := start(t, Export{Disk: disk})
	part := len(model)/users - 100
	var work sync.WaitGroup
	var c *client
	for n := range users {
		if n%3 == 0 {
			c = connect(t, socket, "", n%2 == 0)
		}
		u := user{t: t, client: c, offset: n * part, model: model[n*part:][:part], random: rand.New(rand.NewPCG(1, uint64(n)))}
		work.Go(u.work)
	}
	work.Wait()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(model))
	if _, err := disk.ReadAt(got, 0); err != nil || !bytes.Equal(got, model) {
		t.Errorf("the disk is not as the model: %v", err)
	}
}

// user does random operations on a part of a disk that nobody else changes.
type user struct {
	t      *testing.T
	client *client
	offset int    // of the part
	model  []byte // of the part
	random *rand.Rand
}

func (u *user) work() {
	for range operations() / users {
		at, length := u.place()
		r := request{offset: uint64(u.offset + at), length: uint32(length)}
		if u.random.IntN(50) == 0 {
			r.flags = cmdFlagFUA
		}
		if !u.do(r, u.model[at:at+length]) {
			return
		}
	}
}

// place is anywhere, of any size, mostly small, often aligned.
func (u *user) place() (at, length int) {
	at = u.random.IntN(len(u.model))
	length = 1 + u.random.IntN(1<<(1+u.random.IntN(18)))
	if align := []int{1, 512, 4096}[u.random.IntN(3)]; at+length > align {
		at -= (u.offset + at) % align
		length = (length + align - 1) / align * align
	}
	at = max(at, 0)
	return at, min(length, len(u.model)-at)
}

// do does a random operation on a range and its model.
func (u *user) do(r request, model []byte) bool {
	switch u.random.IntN(10) {
	case 0, 1, 2:
		r.command = cmdWrite
		data := make([]byte, r.length)
		for i := range data {
			data[i] = byte(u.random.Uint32())
		}
		copy(model, data)
		return u.succeeds(r, data)
	case 3:
		r.command = cmdTrim
		clear(model)
	case 4:
		r.command = cmdWriteZeroes
		r.flags |= uint16(u.random.IntN(2)) * cmdFlagNoHole
		clear(model)
	case 5:
		r = request{command: cmdFlush}
	case 6:
		r.command = cmdCache
	case 7:
		if u.client.structured {
			return u.maps(r, model)
		}
		return true
	default:
		return u.reads(r, model)
	}
	return u.succeeds(r, nil)
}

func (u *user) succeeds(r request, data []byte) bool {
	a := <-u.client.begin(r, data)
	if a.errno != 0 {
		u.t.Errorf("%+v: error %d", r, a.errno)
	}
	return a.errno == 0
}

func (u *user) reads(r request, model []byte) bool {
	r.command = cmdRead
	a := <-u.client.begin(r, nil)
	if a.errno != 0 || !bytes.Equal(a.data, model) {
		u.t.Errorf("%+v: error %d, or not as the model", r, a.errno)
		return false
	}
	return true
}

// maps wants holes only where there are zeros.
func (u *user) maps(r request, model []byte) bool {
	r.command = cmdBlockStatus
	r.flags |= uint16(u.random.IntN(2)) * cmdFlagReqOne
	a := <-u.client.begin(r, nil)
	if a.errno != 0 || len(a.extents) == 0 || (r.has(cmdFlagReqOne) && len(a.extents) != descriptorSize) {
		u.t.Errorf("%+v: error %d, %d bytes of a map", r, a.errno, len(a.extents))
		return false
	}
	for p := a.extents; len(p) > 0; p = p[descriptorSize:] {
		length, state := int(binary.BigEndian.Uint32(p)), binary.BigEndian.Uint32(p[4:])
		if length == 0 || length > len(model) || (state != 0 && !bytes.Equal(model[:length], make([]byte, length))) {
			u.t.Errorf("%+v: state %d of %d bytes is not that of the model", r, state, length)
			return false
		}
		model = model[length:]
	}
	return r.has(cmdFlagReqOne) || len(model) == 0
}
