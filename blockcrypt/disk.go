package blockcrypt

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"

	"github.com/vmcrypt/vmcrypt/image"
)

// Disk is the plaintext of an encrypted disk, as random-access storage. Reads
// and writes may be unaligned and concurrent. A sector is read, changed and
// written back under a claim on it, so that no write is lost and no read sees
// half of one.
//
// A write that fails may have changed sectors it touches, as on any disk, but
// nothing beside them.
type Disk struct {
	storage image.Disk
	cipher  *Cipher
	holes   HolePolicy
	decrypt func(p []byte, off int64) error // whole sectors, in place
	claims  *claims
	closed  bool // under a claim
}

var (
	_ image.Disk       = (*Disk)(nil)
	_ image.OverWriter = (*Disk)(nil)
)

// pieceSize is how many bytes are worked on at a time, and as a multiple of both
// sector sizes it bounds what a request claims and the memory it needs.
const pieceSize = 256 << 10

// pieces holds memory for ciphertext on its way to storage and for plaintext
// around an unaligned request.
var pieces = sync.Pool{New: func() any { return new([pieceSize]byte) }}

// zeros is what holes and discarded ranges read as.
var zeros [pieceSize]byte

// NewDisk gives the plaintext of the encrypted disk in storage. The Disk owns
// storage and c from then on: its Close closes the one and wipes the other. It
// refuses a storage that is empty, larger than MaxDiskSize or not a multiple of
// the sector size, and then leaves both to the caller.
func NewDisk(storage image.Disk, c *Cipher, holes HolePolicy) (*Disk, error) {
	if holes != Preserve && holes != Fill {
		return nil, fmt.Errorf("hole policy %q: want %q or %q", holes, Preserve, Fill)
	}
	if err := CheckSize(storage.Size(), c.SectorSize()); err != nil {
		return nil, err
	}
	return &Disk{storage: storage, cipher: c, holes: holes, decrypt: Decryption(c, holes).Data, claims: newClaims()}, nil
}

// ErrSectorSize is for a disk that is no multiple of the crypto sector, but is of a smaller
// one.
var ErrSectorSize = errors.New("the disk does not divide into sectors of this size")

// CheckSize says why a disk of size bytes can't be encrypted in sectors of the
// given size, if it can't.
func CheckSize(size int64, sectorSize int) error {
	switch {
	case size <= 0:
		return errors.New("the disk is empty")
	case size > MaxDiskSize:
		return fmt.Errorf("the disk has %d bytes; more than 256 TiB cannot be encrypted", size)
	case size%512 != 0:
		return fmt.Errorf("the disk has %d bytes, not a multiple of 512; extend it to %d bytes", size, size/512*512+512)
	case size%int64(sectorSize) != 0:
		return fmt.Errorf("%w: the disk has %d bytes, sectors %d", ErrSectorSize, size, sectorSize)
	}
	return nil
}

// Size is the size of the disk in bytes.
func (d *Disk) Size() int64 { return d.storage.Size() }

// Flush makes every completed write durable.
func (d *Disk) Flush() error { return d.storage.Flush() }

// Close waits for requests under way, wipes the key and closes the storage.
// Requests that come later fail with fs.ErrClosed.
func (d *Disk) Close() error {
	claim, err := d.begin(0, d.Size(), true)
	if err != nil {
		return err
	}
	defer d.claims.end(claim)
	d.closed = true
	d.cipher.Wipe()
	return d.storage.Close()
}

// begin claims whole sectors of an open disk.
func (d *Disk) begin(start, end int64, exclusive bool) (*claim, error) {
	claim := d.claims.begin(start, end, exclusive)
	if d.closed {
		d.claims.end(claim)
		return nil, fmt.Errorf("encrypted disk: %w", fs.ErrClosed)
	}
	return claim, nil
}

// ReadAt reads len(p) bytes at byte offset off. It is all of them or an error.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) { return d.each(p, off, d.readPiece) }

// WriteAt writes p, which it leaves as it is, at byte offset off.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) { return d.each(p, off, d.writePiece) }

// each does a request piece by piece, and counts the bytes that were done.
func (d *Disk) each(p []byte, off int64, do func(p []byte, off int64) error) (int, error) {
	if err := d.checkRange(off, int64(len(p))); err != nil {
		return 0, err
	}
	done := 0
	for done < len(p) {
		at := off + int64(done)
		n := min(len(p)-done, pieceSize-int(at%pieceSize))
		if err := do(p[done:done+n], at); err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// checkRange refuses what lies partly outside the disk.
func (d *Disk) checkRange(off, length int64) error {
	if off < 0 || length < 0 || off > d.Size()-length {
		return fmt.Errorf("%d bytes at offset %d lie outside the disk of %d bytes", length, off, d.Size())
	}
	return nil
}

// around gives the sectors that bytes of a piece lie in.
func (d *Disk) around(off int64, length int) (start, end int64) {
	return d.floor(off), d.ceil(off + int64(length))
}

func (d *Disk) floor(off int64) int64 { return off - off%int64(d.cipher.sectorSize) }

func (d *Disk) ceil(off int64) int64 { return d.floor(off + int64(d.cipher.sectorSize) - 1) }

func (d *Disk) readPiece(p []byte, off int64) error {
	start, end := d.around(off, len(p))
	claim, err := d.begin(start, end, false)
	if err != nil {
		return err
	}
	defer d.claims.end(claim)
	if end-start == int64(len(p)) {
		return d.readSectors(p, start)
	}
	piece := pieces.Get().(*[pieceSize]byte)
	defer pieces.Put(piece)
	sectors := piece[:end-start]
	if err := d.readSectors(sectors, start); err != nil {
		return err
	}
	copy(p, sectors[off-start:])
	return nil
}

// WriteOver is WriteAt for those who have no more use for p: it is encrypted where it
// is, and so stays in the processor's cache.
func (d *Disk) WriteOver(p []byte, off int64) (int, error) { return d.each(p, off, d.writePieceOver) }

func (d *Disk) writePieceOver(p []byte, off int64) error {
	start, end := d.around(off, len(p))
	if end-start != int64(len(p)) {
		return d.writePiece(p, off)
	}
	claim, err := d.begin(start, end, true)
	if err != nil {
		return err
	}
	defer d.claims.end(claim)
	if err := d.cipher.Encrypt(p, p, start); err != nil {
		return err
	}
	_, err = d.storage.WriteAt(p, start)
	return err
}

func (d *Disk) writePiece(p []byte, off int64) error {
	start, end := d.around(off, len(p))
	claim, err := d.begin(start, end, true)
	if err != nil {
		return err
	}
	defer d.claims.end(claim)
	piece := pieces.Get().(*[pieceSize]byte)
	defer pieces.Put(piece)
	sectors := piece[:end-start]
	if err := d.encryptPiece(sectors, start, p, off); err != nil {
		return err
	}
	_, err = d.storage.WriteAt(sectors, start)
	return err
}

// encryptPiece fills sectors, which begin at start, with what they are to hold once p
// is written at off.
func (d *Disk) encryptPiece(sectors []byte, start int64, p []byte, off int64) error {
	if len(p) == len(sectors) {
		return d.cipher.Encrypt(sectors, p, start)
	}
	if err := d.readEdges(sectors, start, off, off+int64(len(p))); err != nil {
		return err
	}
	copy(sectors[off-start:], p)
	return d.cipher.Encrypt(sectors, sectors, start)
}

// readEdges reads the first and the last of sectors, which begin at start, unless
// the bytes from first up to last are to replace them as a whole.
func (d *Disk) readEdges(sectors []byte, start, first, last int64) error {
	size := int64(d.cipher.sectorSize)
	head, tail := d.floor(first), d.floor(last)
	if first != head {
		if err := d.readSectors(sectors[:size], head); err != nil {
			return err
		}
	}
	if last == tail || (tail == head && first != head) {
		return nil
	}
	return d.readSectors(sectors[tail-start:], tail)
}

// readSectors fills p with the plaintext of whole sectors. The caller has a
// claim on them.
func (d *Disk) readSectors(p []byte, off int64) error {
	n, err := d.storage.ReadAt(p, off)
	if n < len(p) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read %d bytes of ciphertext at %d: %w", len(p), off, err)
	}
	return d.decrypt(p, off)
}

// Discard makes length bytes at off read as zeros. Under Preserve whole sectors
// become holes in the storage; all else is written with encrypted zeros.
func (d *Disk) Discard(off, length int64) error {
	if err := d.checkRange(off, length); err != nil {
		return err
	}
	start, end := d.ceil(off), d.floor(off+length)
	if d.holes == Fill || start >= end {
		return d.writeZeros(off, off+length)
	}
	if err := d.writeZeros(off, start); err != nil {
		return err
	}
	if err := d.discardSectors(start, end); err != nil {
		return err
	}
	return d.writeZeros(end, off+length)
}

func (d *Disk) discardSectors(start, end int64) error {
	claim, err := d.begin(start, end, true)
	if err != nil {
		return err
	}
	defer d.claims.end(claim)
	return d.storage.Discard(start, end-start)
}

// writeZeros writes zeros as data from off up to end.
func (d *Disk) writeZeros(off, end int64) error {
	for off < end {
		n, err := d.WriteAt(zeros[:min(end-off, pieceSize)], off)
		if err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}

// Extents maps length bytes at off: under Fill all is data, under Preserve the
// storage knows. A hole that begins or ends within a sector counts from and to
// the nearest whole sector inside it, since the rest of the sector is data.
func (d *Disk) Extents(off, length int64) ([]image.Extent, error) {
	if err := d.checkRange(off, length); err != nil {
		return nil, err
	}
	if length == 0 {
		return nil, nil
	}
	if d.holes == Fill {
		return []image.Extent{{Offset: off, Length: length}}, nil
	}
	start, end := d.floor(off), d.ceil(off+length)
	stored, err := d.storage.Extents(start, end-start)
	if err != nil {
		return nil, err
	}
	return d.wholeHoles(stored, off, off+length), nil
}

// wholeHoles gives the map from off up to end with only those parts of the holes
// in stored that are whole sectors.
func (d *Disk) wholeHoles(stored []image.Extent, off, end int64) []image.Extent {
	var out []image.Extent
	add := func(until int64, hole bool) {
		if until > off {
			out = append(out, image.Extent{Offset: off, Length: until - off, Hole: hole})
			off = until
		}
	}
	for _, e := range stored {
		from, to := d.ceil(e.Offset), min(d.floor(e.Offset+e.Length), end)
		if e.Hole && from < to {
			add(from, false)
			add(to, true)
		}
	}
	add(end, false)
	return out
}
