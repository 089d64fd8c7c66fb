package image

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"
)

const (
	// copyPiece is what one worker moves at a time, in bytes.
	copyPiece = 1 << 20
	// copyWindow bounds the map of holes that is held in memory. It is a
	// multiple of copyAlign.
	copyWindow = 1 << 30
	// copyAlign is what the borders of data and holes are rounded to, so that
	// an encrypted disk need not read a crypto sector to write a part of it.
	copyAlign = 4096
	// copyHole bounds what is discarded at a time: a disk that fills its holes
	// takes long over it. It is a multiple of copyAlign.
	copyHole = 64 << 20
	// copyWorkers is how many pieces are on the way at once.
	copyWorkers = 4
)

// Copy copies src to dst, a disk of the same size. Data is copied by a few
// workers, out of order; holes are discarded on dst. It keeps a few MiB in
// memory. Progress, where it is not nil, is told the number of bytes done since
// it was last called, holes included; it is called by one goroutine at a time.
//
// The first error ends the copy and names the offset where it happened; when
// ctx ends, so does the copy. Dst is not flushed.
func Copy(ctx context.Context, dst, src Disk, progress func(bytes int64)) error {
	if dst.Size() != src.Size() {
		return fmt.Errorf("cannot copy a disk of %d bytes to one of %d bytes", src.Size(), dst.Size())
	}
	if progress == nil {
		progress = func(int64) {}
	}
	group, ctx := errgroup.WithContext(ctx)
	c := &copier{dst: dst, src: src, progress: progress, pieces: make(chan Extent)}
	group.Go(func() error { return c.plan(ctx) })
	for range copyWorkers {
		group.Go(func() error { return c.work(ctx) })
	}
	return group.Wait()
}

type copier struct {
	dst, src Disk
	pieces   chan Extent

	reporting sync.Mutex
	progress  func(bytes int64)
}

// plan cuts src into pieces for the workers.
func (c *copier) plan(ctx context.Context) error {
	defer close(c.pieces)
	for offset := int64(0); offset < c.src.Size(); offset += copyWindow {
		end := min(offset+copyWindow, c.src.Size())
		extents, err := c.src.Extents(offset, end-offset)
		if err != nil {
			return fmt.Errorf("map of the holes at offset %d: %w", offset, err)
		}
		for _, piece := range cut(extents, offset, end) {
			select {
			case c.pieces <- piece:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return ctx.Err()
}

// cut turns the map of a window into pieces with aligned borders. A hole
// shrinks to them; what remains at its sides is copied as the data it is.
func cut(extents []Extent, offset, end int64) []Extent {
	var pieces []Extent
	for _, e := range extents {
		hole, holeEnd := roundUp(e.Offset), e.Offset+e.Length
		if holeEnd != end {
			holeEnd -= holeEnd % copyAlign
		}
		if e.Hole && hole < holeEnd {
			pieces = appendData(pieces, offset, hole)
			pieces = appendHole(pieces, hole, holeEnd)
			offset = holeEnd
		}
	}
	return appendData(pieces, offset, end)
}

func roundUp(n int64) int64 {
	return (n + copyAlign - 1) / copyAlign * copyAlign
}

// appendData appends the data from offset to end, in pieces.
func appendData(pieces []Extent, offset, end int64) []Extent {
	for offset < end {
		n := min(copyPiece-offset%copyPiece, end-offset)
		pieces = append(pieces, Extent{Offset: offset, Length: n})
		offset += n
	}
	return pieces
}

// appendHole appends the hole from offset to end, in pieces.
func appendHole(pieces []Extent, offset, end int64) []Extent {
	for offset < end {
		n := min(copyHole, end-offset)
		pieces = append(pieces, Extent{Offset: offset, Length: n, Hole: true})
		offset += n
	}
	return pieces
}

// work copies pieces until there are no more.
func (c *copier) work(ctx context.Context) error {
	buf := make([]byte, copyPiece)
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
		return c.dst.Discard(piece.Offset, piece.Length)
	}
	buf = buf[:piece.Length]
	if _, err := c.src.ReadAt(buf, piece.Offset); err != nil {
		return err
	}
	_, err := c.dst.WriteAt(buf, piece.Offset)
	return err
}

func (c *copier) report(bytes int64) {
	c.reporting.Lock()
	defer c.reporting.Unlock()
	c.progress(bytes)
}
