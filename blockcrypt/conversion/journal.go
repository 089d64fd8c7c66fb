package conversion

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"hash"

	"github.com/vmcrypt/vmcrypt/blockcrypt"
)

// A journal is made of blocks: the header, two markers, and two records, each of
// which has a head, the same head again, and the data of a step. docs/format.md
// has the bytes.
const (
	blockSize = 4096
	magic     = "VMCRCONV"
	version   = 1
	maxZone   = 8 << 20 // four of them are in memory
	maxRuns   = 64      // of a step: they fit in its head
	macSize   = sha256.Size
	tagSize   = 16 // of data
	nonceSize = 12
)

// layout says where things lie in a journal.
type layout struct{ zone int64 }

func (l layout) marker(sequence uint64) int64 { return blockSize * (1 + int64(sequence%2)) }

func (l layout) record(sequence uint64) int64 {
	return 3*blockSize + int64(sequence%2)*(l.zone+2*blockSize)
}

// layoutOf a file of size bytes, if a journal can have so many.
func layoutOf(size int64) (l layout, ok bool) {
	l.zone = (size - layout{}.size()) / 2
	return l, l.valid() && l.size() == size
}

func (l layout) valid() bool {
	return l.zone >= blockSize && l.zone <= maxZone && l.zone%blockSize == 0
}

func (l layout) size() int64 { return l.record(2) + 2*(l.zone+2*blockSize) }

// marker says how the disk is: the bytes below position have their new content.
type marker struct {
	Sequence uint64 // counts steps and turns
	Position int64
	Backward bool
}

// head describes the data in a record.
type head struct {
	Durable marker // when the record was written
	After   marker // once its data are on the disk
	Runs    uint32
	Run     [maxRuns]run
	Was     tag // of the data that are replaced
	Is      tag // of those in the record
}

// run is a part of the disk that is no hole.
type run struct{ Offset, Length int64 }

// tag authenticates data: a nonce of its own and the tag of AES-256-GCM.
type tag struct {
	Nonce nonce
	Tag   [tagSize]byte
}

type nonce [nonceSize]byte

func randomNonce([]byte) (n nonce) {
	_, _ = rand.Read(n[:]) // never fails
	return n
}

func (h *head) runs() []run { return h.Run[:h.Runs] }

// dataSize is the number of bytes in the record.
func (h *head) dataSize() (n int64) {
	for _, r := range h.runs() {
		n += r.Length
	}
	return n
}

// journal reads and writes the blocks of a journal file. It is not for more than
// one goroutine at a time.
type journal struct {
	File
	layout
	key   []byte      // of the MACs of blocks
	mac   hash.Hash   // HMAC-SHA256 with it
	data  cipher.AEAD // makes the tags
	nonce func(data []byte) nonce
	block [blockSize]byte // on its way
}

func newJournal(f File, j *Job) (*journal, error) {
	key, err := hkdf.Key(sha256.New, j.Key, nil, "vmcrypt v1 conversion blocks", KeySize)
	if err != nil {
		return nil, err
	}
	data, err := newTagger(j.Key)
	if err != nil {
		return nil, err
	}
	nonce := j.nonce
	if nonce == nil {
		nonce = randomNonce
	}
	return &journal{
		File: f, layout: layout{int64(j.Zone)}, key: key, mac: hmac.New(sha256.New, key), data: data, nonce: nonce,
	}, nil
}

// newTagger gives what makes tags of data.
func newTagger(secret []byte) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, secret, nil, "vmcrypt v1 conversion data", KeySize)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// wipe forgets the key of the MACs.
func (j *journal) wipe() { clear(j.key) }

// initialize writes the header and the first marker, twice, and makes them durable.
func (j *journal) initialize(h header) error {
	if err := j.writeBlock(0, kindHeader, &h); err != nil {
		return err
	}
	for slot := range uint64(2) {
		if err := j.writeBlock(j.marker(slot), kindMarker, &marker{}); err != nil {
			return err
		}
	}
	return j.Flush()
}

// header is what a journal belongs to.
type header struct {
	Magic          [8]byte
	Version        uint32
	Conversion     [16]byte
	Disk           [16]byte
	Size           int64
	SectorSize     uint32
	FromKey, ToKey bool
	Fill           bool
	Zone           int64
}

func (j *Job) header(zone int64) header {
	return header{
		Magic: [8]byte([]byte(magic)), Version: version, Conversion: j.UUID, Disk: j.DiskUUID,
		Size: j.Disk.Size(), SectorSize: uint32(j.SectorSize),
		FromKey: j.From != nil, ToKey: j.To != nil, Fill: j.Holes == blockcrypt.Fill, Zone: zone,
	}
}

// open checks that the journal is that of the job, and takes its zone over.
func (j *journal) open(job *Job) error {
	var h header
	if j.Size() < blockSize {
		return fmt.Errorf("%w: it was cut short", ErrJournal)
	}
	if err := j.readBlock(0, kindHeader, &h); err != nil {
		return err
	}
	switch {
	case h != job.header(h.Zone):
		return fmt.Errorf("%w: it is of another conversion", ErrJournal)
	case !(layout{h.Zone}).valid() || (layout{h.Zone}).size() != j.Size():
		return fmt.Errorf("%w: it has the wrong size", ErrJournal)
	}
	j.layout = layout{h.Zone}
	return nil
}

// kind is what a block is, which its MAC covers.
type kind byte

const (
	kindHeader kind = 1 + iota
	kindMarker
	kindHead
)

// writeBlock writes a block: its kind, the content, a MAC of both, and zeros.
func (j *journal) writeBlock(offset int64, k kind, c content) error {
	_, err := j.WriteAt(j.encode(k, c), offset)
	return err
}

// encode gives a block, which is good until the next call.
func (j *journal) encode(k kind, c content) []byte {
	clear(j.block[:])
	j.block[0] = byte(k)
	signed, mac := j.block[:1+c.size()], j.block[1+c.size():]
	c.fields(&fields{p: signed[1:], write: true})
	j.sum(mac, signed)
	return j.block[:]
}

// sum puts the MAC of p into out.
func (j *journal) sum(out, p []byte) {
	j.mac.Reset()
	j.mac.Write(p)
	j.mac.Sum(out[:0])
}

// errBlock is the error for a block that is not as it was written: it was torn, or
// tampered with.
var errBlock = fmt.Errorf("%w: not as it was written", ErrJournal)

// readBlock reads what writeBlock wrote.
func (j *journal) readBlock(offset int64, k kind, c content) error {
	block := j.block[:1+c.size()+macSize]
	if n, err := j.ReadAt(block, offset); n < len(block) {
		return fmt.Errorf("read the journal at offset %d: %w", offset, err)
	}
	signed := block[:len(block)-macSize]
	var mac [macSize]byte
	j.sum(mac[:], signed)
	if !hmac.Equal(mac[:], block[len(signed):]) || block[0] != byte(k) {
		return errBlock
	}
	c.fields(&fields{p: signed[1:]})
	return nil
}

// sign makes the tag of data.
func (j *journal) sign(data []byte) tag {
	t := tag{Nonce: j.nonce(data)}
	j.data.Seal(t.Tag[:0], t.Nonce[:], nil, data)
	return t
}

// fits tells whether data have this tag.
func (j *journal) fits(t tag, data []byte) bool {
	_, err := j.data.Open(nil, t.Nonce[:], t.Tag[:], data)
	return err == nil
}
