package blockcrypt

import "github.com/vmcrypt/vmcrypt/image"

var _ image.BackgroundReader = (*Disk)(nil)

// OpenBackground prepares BeginReads if the storage has it.
func (d *Disk) OpenBackground() bool {
	storage, ok := d.storage.(image.BackgroundReader)
	return ok && storage.OpenBackground()
}

// BeginReads begins the reads of whole sectors that no claim of another is in the
// way of. OpenBackground has reported true before.
func (d *Disk) BeginReads(batch []image.BackgroundRead) {
	begun := batch[:0]
	for _, r := range batch {
		claimed := d.claimRead(r)
		if claimed == nil {
			r.Refuse()
			continue
		}
		r.Reader = claimed
		begun = append(begun, r)
	}
	d.storage.(image.BackgroundReader).BeginReads(begun)
}

// claimedRead is a read of sectors that are claimed until they are decrypted.
type claimedRead struct {
	image.BackgroundRead
	disk  *Disk
	claim *claim
}

// claimRead gives nil for what has to wait, or is not for BeginReads.
func (d *Disk) claimRead(r image.BackgroundRead) *claimedRead {
	length := int64(len(r.P))
	if d.checkRange(r.Offset, length) != nil {
		return nil
	}
	start, end := d.around(r.Offset, len(r.P))
	if end-start != length {
		return nil
	}
	claim := d.claims.try(start, end)
	if claim == nil {
		return nil
	}
	if d.closed {
		d.claims.end(claim)
		return nil
	}
	return &claimedRead{r, d, claim}
}

// ReadDone decrypts what was read.
func (r *claimedRead) ReadDone(ok bool) (after func()) {
	ok = ok && r.disk.decrypt(r.P, r.Offset) == nil
	r.disk.claims.end(r.claim)
	return r.Reader.ReadDone(ok)
}
