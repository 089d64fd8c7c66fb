package blockcrypt

import "github.com/vmcrypt/vmcrypt/image"

var _ image.NoWaitReader = (*Disk)(nil)

// ReadAtNoWait reads what the storage has in memory, if no claim of another is in
// the way.
func (d *Disk) ReadAtNoWait(p []byte, off int64) bool {
	storage, ok := d.storage.(image.NoWaitReader)
	if !ok || d.checkRange(off, int64(len(p))) != nil {
		return false
	}
	start, end := d.around(off, len(p))
	if end-start > pieceSize {
		return false
	}
	claim := d.claims.try(start, end)
	if claim == nil {
		return false
	}
	defer d.claims.end(claim)
	if d.closed {
		return false
	}
	if end-start == int64(len(p)) {
		return storage.ReadAtNoWait(p, start) && d.decrypt(p, start) == nil
	}
	piece := pieces.Get().(*[pieceSize]byte)
	defer pieces.Put(piece)
	sectors := piece[:end-start]
	if !storage.ReadAtNoWait(sectors, start) || d.decrypt(sectors, start) != nil {
		return false
	}
	copy(p, sectors[off-start:])
	return true
}
