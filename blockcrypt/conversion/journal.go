package conversion

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/vmcrypt/vmcrypt/blockcrypt"
)

// A journal is made of blocks: the header, two markers, and two records, each of
// which has a head, the same head again, and the data of a step. docs/format.md
// has the bytes.
const (
	blockSize = 4096
	magic     = "VMCRCONV"
	version   = 1
	maxZone   = 256 << 20
	maxRuns   = 64 // of a step: they fit in its head
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
	Nonce [nonceSize]byte
	Tag   [tagSize]byte
}

func (h *head) runs() []run { return h.Run[:h.Runs] }

// dataSize is the number of bytes in the record.
func (h *head) dataSize() (n int64) {
	for _, r := range h.runs() {
		n += r.Length
	}
	return n
}

// journal reads and writes the blocks of a journal file.
type journal struct {
	File
	layout
	blocks []byte      // the key of their MACs
	data   cipher.AEAD // makes the tags
}

func newJournal(f File, j *Job) (*journal, error) {
	blocks, err := hkdf.Key(sha256.New, j.Key, nil, "vmcrypt v1 conversion blocks", KeySize)
	if err != nil {
		return nil, err
	}
	key, err := hkdf.Key(sha256.New, j.Key, nil, "vmcrypt v1 conversion data", KeySize)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	data, err := cipher.NewGCM(block)
	return &journal{File: f, layout: layout{int64(j.Zone)}, blocks: blocks, data: data}, err
}

// wipe forgets the key of the MACs.
func (j *journal) wipe() { clear(j.blocks) }

// initialize writes the header and the first marker, twice, and makes them durable.
func (j *journal) initialize(h header) error {
	if err := j.writeBlock(0, kindHeader, h); err != nil {
		return err
	}
	for slot := range uint64(2) {
		if err := j.writeBlock(j.marker(slot), kindMarker, marker{}); err != nil {
			return err
		}
	}
	return j.Sync()
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
	case h.Zone < blockSize || h.Zone > maxZone || h.Zone%blockSize != 0 || (layout{h.Zone}).size() != j.Size():
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
func (j *journal) writeBlock(offset int64, k kind, content any) error {
	block, err := j.encode(k, content)
	if err != nil {
		return err
	}
	_, err = j.WriteAt(block, offset)
	return err
}

func (j *journal) encode(k kind, content any) ([]byte, error) {
	block := make([]byte, blockSize)
	block[0] = byte(k)
	n, err := binary.Encode(block[1:], binary.BigEndian, content)
	if err != nil {
		return nil, err
	}
	copy(block[1+n:], j.mac(block[:1+n]))
	return block, nil
}

func (j *journal) mac(p []byte) []byte {
	mac := hmac.New(sha256.New, j.blocks)
	mac.Write(p)
	return mac.Sum(nil)
}

// errBlock is the error for a block that is not as it was written: it was torn, or
// tampered with.
var errBlock = fmt.Errorf("%w: not as it was written", ErrJournal)

// readBlock reads what writeBlock wrote.
func (j *journal) readBlock(offset int64, k kind, content any) error {
	block := make([]byte, 1+binary.Size(content)+macSize)
	if n, err := j.ReadAt(block, offset); n < len(block) {
		return fmt.Errorf("read the journal at offset %d: %w", offset, err)
	}
	signed := block[:len(block)-macSize]
	if !hmac.Equal(j.mac(signed), block[len(signed):]) || block[0] != byte(k) {
		return errBlock
	}
	_, err := binary.Decode(signed[1:], binary.BigEndian, content)
	return err
}

// sign makes the tag of data.
func (j *journal) sign(data []byte) (t tag, err error) {
	if _, err := rand.Read(t.Nonce[:]); err != nil {
		return t, err
	}
	j.data.Seal(t.Tag[:0], t.Nonce[:], nil, data)
	return t, nil
}

// fits tells whether data have this tag.
func (j *journal) fits(t tag, data []byte) bool {
	_, err := j.data.Open(nil, t.Nonce[:], t.Tag[:], data)
	return err == nil
}
