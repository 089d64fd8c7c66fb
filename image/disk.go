// Package image gives every disk format one face: random access to the
// disk's sectors, with its size, its holes, discard and flush.
//
//	disk, err := image.Open("web01.vmdk", image.VMDK, image.ReadOnly)
//	copied, err := image.Create("web01-copy.img", disk.Size())
//	err = image.Copy(ctx, copied, disk, image.Transform{}, nil)
//	err = copied.Flush()
//
// An open disk is locked as QEMU locks its images: what is being copied cannot
// change, and no virtual machine starts on what is being written.
//
// The format of a disk comes from its descriptor or from the user, never from
// the disk's own bytes: a guest writes those, and could make a raw disk look
// like a format that names other files of the host.
package image

import "io"

// Disk is the content of a virtual disk as random-access storage. Offsets and
// lengths are in bytes. Reads and writes may be unaligned and concurrent; those
// that lie partly outside the disk fail without changing anything, and so do
// the other methods.
type Disk interface {
	io.ReaderAt
	io.WriterAt
	io.Closer

	// Size is the size of the disk in bytes.
	Size() int64
	// Flush makes every completed write durable.
	Flush() error
	// Discard makes length bytes at offset read as zeros and gives their space
	// back where the storage can.
	Discard(offset, length int64) error
	// Extents maps length bytes at offset: which parts hold data and which are
	// holes, in order and without gaps. What is no hole may still be zero.
	Extents(offset, length int64) ([]Extent, error)
}

// OverWriter is a Disk that writes faster what nobody needs any more.
type OverWriter interface {
	// WriteOver is WriteAt, but p has other bytes thereafter.
	WriteOver(p []byte, offset int64) (int, error)
}

// Extent is a range of a disk that is either a hole or holds data.
type Extent struct {
	Offset, Length int64 // in bytes
	Hole           bool  // reads as zeros and takes no space
}
