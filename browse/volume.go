package browse

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"
)

const (
	maxEntries  = 1 << 20   // names in one folder
	maxDirBytes = 256 << 20 // bytes of one folder
	maxLinks    = 40        // symbolic links followed for one path, as in Linux
	maxTarget   = 4096      // bytes of a symbolic link
)

// volume is one filesystem.
type volume struct {
	section
	kind string
	root file
	fold bool // names match whatever their case
}

// file is anything a folder can hold, the root folder included.
type file interface {
	info() info
	// entries gives the names in a folder, without . and .. .
	entries() ([]dirent, error)
	// content calls visit for each part of a file that holds data, in order.
	// What lies between is zero.
	content(visit func(run) error) error
	// target is what a symbolic link points to.
	target() (string, error)
}

// info is what is known of a file besides its name.
type info struct {
	typ     Type
	size    int64 // in bytes
	modTime time.Time
}

// dirent is a name in a folder. Opening it may read the disk.
type dirent struct {
	name string
	open func() (file, error)
}

// run is a part of a file: length bytes at offset at of the file are found at
// offset pos of the volume.
type run struct {
	at, length, pos int64
}

// listFile lists a folder, or file itself under name if it is none.
func listFile(f file, name string) ([]Entry, error) {
	if f.info().typ != Dir {
		e, err := entry(name, f)
		return []Entry{e}, err
	}
	dirents, err := f.entries()
	if err != nil {
		return nil, err
	}
	list := make([]Entry, 0, len(dirents))
	for _, d := range dirents {
		f, err := d.open()
		if err != nil {
			return nil, fmt.Errorf("%q: %w", d.name, err)
		}
		e, err := entry(d.name, f)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", d.name, err)
		}
		list = append(list, e)
	}
	return list, nil
}

func entry(name string, f file) (Entry, error) {
	i := f.info()
	e := Entry{Name: name, Type: i.typ, ModTime: i.modTime}
	if i.typ == File {
		e.Size = i.size
	}
	if i.typ != Symlink {
		return e, nil
	}
	// A link that cannot be read is still an entry of the folder.
	var err error
	if e.Target, err = f.target(); errors.Is(err, ErrUnsupported) {
		err = nil
	}
	return e, err
}

// catFile writes exactly the size of f in bytes.
func catFile(w io.Writer, v *volume, f file) error {
	i := f.info()
	switch i.typ {
	case Dir:
		return ErrIsDir
	case File:
	default:
		return fmt.Errorf("it is no regular file: %w", ErrUnsupported)
	}
	buf := make([]byte, min(copySize, max(i.size, 1)))
	var done int64
	err := f.content(func(r run) error {
		if r.at < done || r.length < 0 {
			return fmt.Errorf("its parts overlap: %w", ErrCorrupt)
		}
		if r.at >= i.size {
			return nil // blocks kept beyond the end of the file
		}
		if err := v.zeroTo(w, r.at-done, buf); err != nil {
			return err
		}
		n := min(r.length, i.size-r.at)
		done = r.at + n
		return v.copyTo(w, r.pos, n, buf)
	})
	if err != nil {
		return err
	}
	return v.zeroTo(w, i.size-done, buf)
}

// resolve follows parts from the root folder, symbolic links included. These
// never lead out of the volume: / is its root, and .. of the root is the root.
func (v *volume) resolve(parts []string) (file, error) {
	trail, links := []file{v.root}, 0
	for len(parts) > 0 {
		name := parts[0]
		parts = parts[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			trail = trail[:max(1, len(trail)-1)]
			continue
		}
		f, err := v.lookup(trail[len(trail)-1], name)
		if err != nil {
			return nil, err
		}
		if f.info().typ != Symlink {
			trail = append(trail, f)
			continue
		}
		if links++; links > maxLinks {
			return nil, fmt.Errorf("more than %d symbolic links: %w", maxLinks, ErrCorrupt)
		}
		target, err := f.target()
		if err != nil {
			return nil, err
		}
		if strings.HasPrefix(target, "/") {
			trail = trail[:1]
		}
		parts = slices.Concat(strings.Split(target, "/"), parts)
	}
	return trail[len(trail)-1], nil
}

// lookup finds name in dir: by its exact spelling first.
func (v *volume) lookup(dir file, name string) (file, error) {
	if dir.info().typ != Dir {
		return nil, fmt.Errorf("before %q: %w", name, ErrNotDir)
	}
	dirents, err := dir.entries()
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(dirents, func(d dirent) bool { return d.name == name })
	if i < 0 && v.fold {
		i = slices.IndexFunc(dirents, func(d dirent) bool { return strings.EqualFold(d.name, name) })
	}
	if i < 0 {
		return nil, fmt.Errorf("%q: %w", name, fs.ErrNotExist)
	}
	return dirents[i].open()
}

// readTarget reads the content of f as the target of a symbolic link.
func readTarget(s section, f file) (string, error) {
	if size := f.info().size; size < 1 || size > maxTarget {
		return "", fmt.Errorf("symbolic link of %d bytes: %w", size, ErrCorrupt)
	}
	var b strings.Builder
	err := f.content(func(r run) error {
		if r.at != int64(b.Len()) {
			return fmt.Errorf("symbolic link with a hole: %w", ErrCorrupt)
		}
		part, err := s.read(r.pos, int(min(r.length, f.info().size-r.at)))
		b.Write(part)
		return err
	})
	if err == nil && int64(b.Len()) != f.info().size {
		err = fmt.Errorf("symbolic link with a hole: %w", ErrCorrupt)
	}
	return b.String(), err
}

// checkName refuses names that no filesystem can hold, since they could not be
// told from a path.
func checkName(name string) error {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("folder holds the name %q: %w", name, ErrCorrupt)
	}
	return nil
}
