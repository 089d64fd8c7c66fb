package browse

import (
	"context"
	"fmt"
	"io"

	"github.com/vmcrypt/vmcrypt/image"
)

const (
	pageSize = 4096    // bytes of metadata read and kept at a time
	maxPages = 16      // pages kept
	readCost = 64      // bytes of the budget that any read takes
	copySize = 1 << 20 // bytes of content copied at a time

	// metadataBudget bounds the metadata read for one call, in bytes: enough to
	// list a folder of half a million files, little enough to end in seconds.
	metadataBudget = 2 << 30
)

// reader reads a disk for one call: metadata through a small cache and against
// a budget, so that no structure on the disk can keep it busy for long.
type reader struct {
	ctx    context.Context
	disk   io.ReaderAt
	size   int64
	budget int64
	pages  map[int64][]byte
	recent []int64 // keys of pages, oldest first
}

// section is a range of a disk: a partition, or all of it.
type section struct {
	*reader
	start, size int64
}

func newSection(ctx context.Context, d image.Disk) section {
	r := &reader{ctx: ctx, disk: d, size: d.Size(), budget: metadataBudget, pages: map[int64][]byte{}}
	return section{r, 0, r.size}
}

// sub is the section of size bytes at offset start of s.
func (s section) sub(start, size int64) (section, error) {
	if err := s.check(start, size); err != nil {
		return section{}, err
	}
	return section{s.reader, s.start + start, size}, nil
}

// check refuses ranges that lie partly outside the section.
func (s section) check(offset, length int64) error {
	if offset < 0 || length < 0 || offset > s.size || length > s.size-offset {
		return fmt.Errorf("%d bytes at %d lie beyond the end: %w", length, offset, ErrCorrupt)
	}
	return nil
}

// read returns length bytes of metadata at offset. The caller owns them and has
// bounded length.
func (s section) read(offset int64, length int) ([]byte, error) {
	if err := s.check(offset, int64(length)); err != nil {
		return nil, err
	}
	if err := s.spend(int64(length) + readCost); err != nil {
		return nil, err
	}
	b := make([]byte, length)
	for n := 0; n < length; {
		at := s.start + offset + int64(n)
		page, err := s.page(at / pageSize)
		if err != nil {
			return nil, err
		}
		n += copy(b[n:], page[at%pageSize:])
	}
	return b, nil
}

// spend takes n bytes off the budget. What the cache holds is charged too, so
// that going in circles over it ends.
func (r *reader) spend(n int64) error {
	if r.budget -= n; r.budget < 0 {
		return fmt.Errorf("its metadata is too large or runs in circles: %w", ErrUnsupported)
	}
	return r.ctx.Err()
}

// page returns page number n of the disk; the last one may be short.
func (r *reader) page(n int64) ([]byte, error) {
	if p, ok := r.pages[n]; ok {
		return p, nil
	}
	if err := r.spend(pageSize); err != nil {
		return nil, err
	}
	p := make([]byte, min(pageSize, r.size-n*pageSize))
	if err := readFull(r.disk, p, n*pageSize); err != nil {
		return nil, err
	}
	if len(r.recent) == maxPages {
		delete(r.pages, r.recent[0])
		r.recent = r.recent[1:]
	}
	r.pages[n], r.recent = p, append(r.recent, n)
	return p, nil
}

// readFull fills b. io.ReaderAt may report io.EOF for a read that ends at the
// end of the disk.
func readFull(r io.ReaderAt, b []byte, offset int64) error {
	n, err := r.ReadAt(b, offset)
	if n == len(b) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %d bytes of the disk at %d: %w", len(b), offset, err)
}

// copyTo writes length bytes of content at offset to w.
func (s section) copyTo(w io.Writer, offset, length int64, buf []byte) error {
	if err := s.check(offset, length); err != nil {
		return err
	}
	for length > 0 {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		b := buf[:min(length, int64(len(buf)))]
		if err := readFull(s.disk, b, s.start+offset); err != nil {
			return err
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
		offset, length = offset+int64(len(b)), length-int64(len(b))
	}
	return nil
}

// zeroTo writes length zeros to w.
func (s section) zeroTo(w io.Writer, length int64, buf []byte) error {
	clear(buf[:min(length, int64(len(buf)))])
	for length > 0 {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		n, err := w.Write(buf[:min(length, int64(len(buf)))])
		if err != nil {
			return err
		}
		length -= int64(n)
	}
	return nil
}
