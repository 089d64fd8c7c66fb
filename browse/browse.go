// Package browse looks into a disk without mounting it: it lists partitions and
// folders and reads files straight from the sectors of any [image.Disk], an
// encrypted one included. Nothing is written anywhere, so no plaintext reaches
// the host's storage.
//
//	listing, err := browse.List(ctx, disk, "")            // partitions, or the root folder
//	listing, err = browse.List(ctx, disk, "2:/etc")       // a folder of partition 2
//	err = browse.Cat(ctx, os.Stdout, disk, "2:/etc/fstab")
//
// GPT and MBR partition tables are read (logical partitions included), and
// FAT12, FAT16, FAT32, ext2, ext3, ext4 and ISO 9660 with Rock Ridge or Joliet.
//
// Every byte on the disk is the guest's and taken as hostile. Structures are
// checked before use, reading of metadata has a budget, folders and symbolic
// links have limits, symbolic links are followed inside their own filesystem
// only, and the context ends everything. What cannot be read right is refused
// with [ErrUnsupported] or [ErrCorrupt]; it is never cut short or guessed.
//
// Partition tables are parsed by go-diskfs, behind bounds and a recover. The
// filesystems are read by this package, since the readers of go-diskfs 1.9.4 are
// not fit for images that others made: they give wrong bytes for sparse ext4
// files, FAT32 files of odd sizes and ISO files of several extents; they cannot
// open ext4 without metadata checksums or with small inodes, FAT with one table,
// names that start with a dot or are longer than 247 bytes; and they loop, or
// take memory without bound, where a guest asks for it.
package browse

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/vmcrypt/vmcrypt/image"
)

var (
	// ErrPath means that the path is not written as N:/path or /path, or it does not say
	// which partition is meant.
	ErrPath = errors.New("not a usable path")
	// ErrNoFilesystem means that there is no filesystem, or none this package knows.
	ErrNoFilesystem = errors.New("no readable filesystem")
	// ErrIsDir means that a file was asked for and the path names a folder.
	ErrIsDir = errors.New("is a folder")
	// ErrNotDir means that a part of the path that should be a folder is not one.
	ErrNotDir = errors.New("not a folder")
	// ErrUnsupported means that the disk uses something that this package cannot read
	// right.
	ErrUnsupported = errors.New("cannot be read in place; decrypt the disk to a file and mount that")
	// ErrCorrupt means that what the disk says contradicts itself.
	ErrCorrupt = errors.New("damaged")
)

// Type says what an [Entry] is.
type Type string

// The types of entries. Devices, sockets and pipes are [Other].
const (
	File    Type = "file"
	Dir     Type = "dir"
	Symlink Type = "symlink"
	Other   Type = "other"
)

// Entry is one name in a folder. Name and Target are the guest's bytes as they
// are: they may hold control characters or invalid UTF-8, see [Printable].
type Entry struct {
	Name    string    `json:"name"`
	Type    Type      `json:"type"`
	Size    int64     `json:"size"`             // in bytes; 0 unless a file
	ModTime time.Time `json:"modTime,omitzero"` // FAT keeps local time, given here as UTC
	Target  string    `json:"target,omitempty"` // of a symlink
}

// Partition is one entry of a partition table.
type Partition struct {
	Number     int    `json:"number"`               // as in N:/path; logical partitions of an MBR start at 5
	Start      int64  `json:"start"`                // in bytes
	Size       int64  `json:"size"`                 // in bytes
	Type       string `json:"type"`                 // GPT: type GUID; MBR: 0x and two hex digits
	Name       string `json:"name,omitempty"`       // GPT only; the guest's bytes
	Filesystem string `json:"filesystem,omitempty"` // what it holds, where that is recognised
}

// Listing is what [List] found: a folder, the partitions, or both where a
// filesystem that spans the disk also carries a partition table (as bootable
// ISO images do).
type Listing struct {
	Table      string      `json:"table,omitempty"` // gpt or mbr
	Partitions []Partition `json:"partitions,omitempty"`
	Filesystem string      `json:"filesystem,omitempty"` // of Entries: fat12, fat16, fat32, ext4, iso9660
	Entries    []Entry     `json:"entries,omitempty"`    // in the folder's own order
}

// List lists a folder, or a single file. With an empty path it lists the
// partitions, or the root folder where the whole disk is one filesystem.
//
// A path is N:/path in partition N, or /path on a disk with one filesystem:
// either the whole disk or its only partition. Errors are [ErrPath],
// [ErrNoFilesystem], [io/fs.ErrNotExist], [ErrNotDir], [ErrUnsupported] or
// [ErrCorrupt], or come from d or ctx.
func List(ctx context.Context, d image.Disk, path string) (*Listing, error) {
	s := newSection(ctx, d)
	if path == "" {
		return overview(s)
	}
	v, f, name, err := find(s, path)
	if err != nil {
		return nil, err
	}
	l := &Listing{Filesystem: v.kind}
	l.Entries, err = listFile(f, name)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", path, err)
	}
	return l, nil
}

// Cat writes the content of a file to w: exactly as many bytes as the file has,
// or an error. Paths are those of [List]; of symbolic links the target is read.
// It adds [ErrIsDir] to the errors of List.
func Cat(ctx context.Context, w io.Writer, d image.Disk, path string) error {
	v, f, _, err := find(newSection(ctx, d), path)
	if err != nil {
		return err
	}
	if err := catFile(w, v, f); err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}
	return nil
}

// overview lists the partitions, the root folder of a filesystem that spans the
// disk, or both.
func overview(s section) (*Listing, error) {
	t, whole, err := layout(s)
	if err != nil {
		return nil, err
	}
	l := &Listing{}
	if t != nil {
		l.Table, l.Partitions = t.kind, t.parts
	}
	for i, p := range l.Partitions {
		l.Partitions[i].Filesystem = holds(s, p)
	}
	if !whole {
		return l, s.ctx.Err()
	}
	v, err := mount(s)
	if err != nil {
		return nil, err
	}
	l.Filesystem = v.kind
	l.Entries, err = listFile(v.root, "/")
	return l, err
}

// find opens the filesystem that path names and follows path in it. It returns
// the last name of the path too.
func find(s section, path string) (*volume, file, string, error) {
	loc, err := parsePath(path)
	if err != nil {
		return nil, nil, "", err
	}
	v, err := volumeAt(s, loc.partition)
	if err != nil {
		return nil, nil, "", fmt.Errorf("%q: %w", path, err)
	}
	f, err := v.resolve(loc.parts)
	if err != nil {
		return nil, nil, "", fmt.Errorf("%q: %w", path, err)
	}
	name := "/"
	if n := len(loc.parts); n > 0 {
		name = loc.parts[n-1]
	}
	return v, f, name, nil
}

// volumeAt opens the filesystem of partition number, or the only one for 0.
func volumeAt(s section, number int) (*volume, error) {
	t, whole, err := layout(s)
	if err != nil {
		return nil, err
	}
	if number == 0 && whole {
		return mount(s)
	}
	p, err := t.partition(number)
	if err != nil {
		return nil, err
	}
	part, err := s.sub(p.Start, p.Size)
	if err != nil {
		return nil, fmt.Errorf("partition %d: %w", p.Number, err)
	}
	v, err := mount(part)
	if err != nil {
		return nil, fmt.Errorf("partition %d: %w", p.Number, err)
	}
	return v, nil
}
