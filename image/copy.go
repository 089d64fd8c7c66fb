package image

import (
	"context"
	"fmt"
	"iter"
	"sync"

	"golang.org/x/sync/errgroup"
)

const (
	// copyPiece is what one worker moves at a time, in bytes.
	copyPiece = 1 << 20
	// copyWindow bounds the map of holes that is held in memory, to a few MiB
	// for holes everywhere. It is a multiple of copyAlign.
	copyWindow = 256 << 20
	// copyAlign is what the borders of data and holes are rounded to: whole
	// crypto sectors of every size, and what direct transfers ask for.
	copyAlign = 4096
	// copyHole bounds what is discarded at a time: a file system without holes
	// takes long over it. It is a multiple of copyAlign.
	copyHole = 64 << 20
	// copyWorkers is how many pieces are on the way at once: enough to keep a
	// disk busy with reading and writing while others are transformed or, between
	// two system calls, wait for a processor.
	copyWorkers = 8
)

// Transform changes the content of a disk on its way to another. The zero
// Transform leaves it as it is.
type Transform struct {
	// Data, if set, changes p, the bytes at offset, in place. Both offset and
	// length are multiples of 4096, but for the length at the end of the disk.
	// It is called by several goroutines at once.
	Data func(p []byte, offset int64) error
	// Holes says that holes are data too: the zeros that they read as.
	// Otherwise they stay holes.
	Holes bool
}

// Copy copies src, changed by transform, to dst, a disk of the same size. Data
// is copied by a few workers, out of order and, from and to files, past the
// page cache where that is faster; holes are discarded on dst. It keeps a few
// MiB in memory, which it wipes. Progress, where it is not nil, is told the
// number of bytes done since it was last called, holes included; it is called
// by one goroutine at a time.
//
// The first error ends the copy and names the offset where it happened; when
// ctx ends, so does the copy. Dst is not flushed.
func Copy(ctx context.Context, dst, src Disk, transform Transform, progress func(bytes int64)) error {
	if dst.Size() != src.Size() {
		return fmt.Errorf("cannot copy a disk of %d bytes to one of %d bytes", src.Size(), dst.Size())
	}
	if progress == nil {
		progress = func(int64) {}
	}
	blank, err := isBlank(dst)
	if err != nil {
		return fmt.Errorf("map of the holes: %w", err)
	}
	src, srcDone := PastCache(src)
	defer srcDone()
	dst, dstDone := PastCache(dst)
	defer dstDone()
	buffers, wipe, err := MapBuffers(copyWorkers, copyPiece)
	if err != nil {
		return err
	}
	defer wipe()
	group, ctx := errgroup.WithContext(ctx)
	c := &copier{dst: dst, src: src, blank: blank, transform: transform, progress: progress, pieces: make(chan Extent)}
	group.Go(func() error { return c.plan(ctx) })
	for _, buf := range buffers {
		group.Go(func() error { return c.work(ctx, buf) })
	}
	return group.Wait()
}

// isBlank reports whether a disk is one hole, as new files are.
func isBlank(d Disk) (bool, error) {
	extents, err := d.Extents(0, d.Size())
	return len(extents) == 1 && extents[0].Hole, err
}

type copier struct {
	dst, src  Disk
	blank     bool // dst is all hole: there is nothing to discard
	transform Transform
	pieces    chan Extent

	reporting sync.Mutex
	progress  func(bytes int64)
}

// plan cuts src into pieces for the workers.
func (c *copier) plan(ctx context.Context) error {
	defer close(c.pieces)
	for offset := int64(0); offset < c.src.Size(); offset += copyWindow {
		runs, err := c.window(offset, min(offset+copyWindow, c.src.Size()))
		if err != nil {
			return err
		}
		for _, run := range runs {
			for piece := range pieces(run) {
				select {
				case c.pieces <- piece:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
	}
	return ctx.Err()
}

// window maps the data and the holes from offset to end, and reserves the space
// for the data that goes past the page cache all at once: file systems stop for
// that.
func (c *copier) window(offset, end int64) ([]Extent, error) {
	var extents []Extent
	if !c.transform.Holes {
		var err error
		if extents, err = c.src.Extents(offset, end-offset); err != nil {
			return nil, fmt.Errorf("map of the holes at offset %d: %w", offset, err)
		}
	}
	runs := cut(extents, offset, end)
	file, ok := c.dst.(interface {
		Reserve(offset, length int64) error
	})
	for _, run := range runs {
		if !ok || run.Hole || run.Length < directLeast {
			continue
		}
		if err := file.Reserve(run.Offset, run.Length); err != nil {
			return nil, fmt.Errorf("copy at offset %d: %w", run.Offset, err)
		}
	}
	return runs, nil
}

// cut turns the map of a window into runs with aligned borders, data and holes
// by turns. A hole shrinks to them; what remains at its sides is copied as the
// data it is.
func cut(extents []Extent, offset, end int64) []Extent {
	var runs []Extent
	add := func(until int64, hole bool) {
		if offset < until {
			runs = append(runs, Extent{Offset: offset, Length: until - offset, Hole: hole})
			offset = until
		}
	}
	for _, e := range extents {
		hole, holeEnd := roundUp(e.Offset), e.Offset+e.Length
		if holeEnd != end {
			holeEnd -= holeEnd % copyAlign
		}
		if e.Hole && hole < holeEnd {
			add(hole, false)
			add(holeEnd, true)
		}
	}
	add(end, false)
	return runs
}

func roundUp(n int64) int64 {
	return (n + copyAlign - 1) / copyAlign * copyAlign
}

// pieces cuts a run into what one worker does at a time.
func pieces(run Extent) iter.Seq[Extent] {
	size := int64(copyPiece)
	if run.Hole {
		size = copyHole
	}
	return func(yield func(Extent) bool) {
		offset, end := run.Offset, run.Offset+run.Length
		for offset < end {
			n := min(size-offset%size, end-offset)
			if !yield(Extent{Offset: offset, Length: n, Hole: run.Hole}) {
				return
			}
			offset += n
		}
	}
}

// work copies pieces by way of buf until there are no more.
func (c *copier) work(ctx context.Context, buf []byte) error {
	for piece := range c.pieces {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := c.copyPiece(piece, buf); err != nil {
			return fmt.Errorf("copy at offset %d: %w", piece.Offset, err)
		}
		c.report(piece.Length)
	}
	return nil
}

func (c *copier) copyPiece(piece Extent, buf []byte) error {
	if piece.Hole {
		if c.blank {
			return nil
		}
		return c.dst.Discard(piece.Offset, piece.Length)
	}
	buf = buf[:piece.Length]
	if n, err := c.src.ReadAt(buf, piece.Offset); n < len(buf) {
		return err
	}
	if c.transform.Data != nil {
		if err := c.transform.Data(buf, piece.Offset); err != nil {
			return err
		}
	}
	_, err := c.dst.WriteAt(buf, piece.Offset)
	return err
}

func (c *copier) report(bytes int64) {
	c.reporting.Lock()
	defer c.reporting.Unlock()
	c.progress(bytes)
}
