package image

// BackgroundReader is a Disk that can have many reads under way for one goroutine.
type BackgroundReader interface {
	// OpenBackground prepares BeginReads, and reports whether the disk can do it. It
	// may open files and start threads, which the disk's Close ends; to call it again
	// changes nothing.
	OpenBackground() bool
	// BeginReads begins reads without waiting for them. Each is told once how it
	// went, at any time from now on. The disk's Close waits for them. The batch may
	// be changed.
	BeginReads(batch []BackgroundRead)
}

// BackgroundRead is a read of len(P) bytes at Offset. P is the disk's until the Reader
// is told.
type BackgroundRead struct {
	P      []byte
	Offset int64
	Reader Reader
}

// Reader is told how a BackgroundRead went.
type Reader interface {
	// ReadDone reports whether P has been read as a whole. If not, ReadAt reads it or
	// says why it can't. Others wait for ReadDone, which must not wait itself. What
	// it gives, unless nil, is called once those that ended at the same time have
	// been told, too: under the same rule, for what is best done for several at once.
	ReadDone(ok bool) (after func())
}

var _ BackgroundReader = (*File)(nil)

// OpenBackground makes a ring, where the kernel and the file system have good ones.
func (f *File) OpenBackground() bool {
	f.ringOnce.Do(func() { f.ring = openRing(f) })
	return f.ring != nil
}

// BeginReads reads by way of the page cache.
func (f *File) BeginReads(batch []BackgroundRead) {
	begun := batch[:0]
	for _, r := range batch {
		if f.within(r.Offset, int64(len(r.P))) != nil {
			r.Refuse()
			continue
		}
		begun = append(begun, r)
	}
	if f.ring != nil && f.ring.begin(begun) {
		return
	}
	for _, r := range begun {
		r.Refuse()
	}
}

// Refuse tells that a read is not begun.
func (r BackgroundRead) Refuse() {
	if after := r.Reader.ReadDone(false); after != nil {
		after()
	}
}
