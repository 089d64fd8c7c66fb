package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Limits of what is looked at in a datastore: who may write there must not be able to
// exhaust who looks.
const (
	maxFiles       = 200_000 // files and folders
	maxDescriptors = 10_000
	maxText        = 128 << 20 // bytes of descriptors
	maxRead        = 1 << 20   // of which one has at most so many: package vmx reads no more
	maxDepth       = 16        // folders within each other; each keeps a file open
	readAtOnce     = 256       // files and folders
)

// ErrLimit is the error for a datastore in which there is more.
var ErrLimit = errors.New("there is more in it than is looked at")

// Scan has see look at each descriptor below root, which is one of the datastores: what
// is opened lies in these, as OpenBeneath has it. See gets the error, and no target,
// where a descriptor can't be opened; an error of its own ends the scan.
func Scan(ctx context.Context, datastores []string, root string, see func(path string, t *Target, err error) error) error {
	return newScan(datastores, see).datastore(ctx, root)
}

// scan is a walk through one datastore.
type scan struct {
	datastores []string
	see        func(path string, t *Target, err error) error

	// links, if set, hears of each symbolic link behind which VMs may lie that are not looked
	// at, with the reason.
	links func(problem string)

	files, descriptors, text int   // how many there may still be
	leftOut                  error // why something was
}

func newScan(datastores []string, see func(path string, t *Target, err error) error) *scan {
	return &scan{datastores: datastores, see: see, files: maxFiles, descriptors: maxDescriptors, text: maxText}
}

func (s *scan) datastore(ctx context.Context, root string) error {
	folder, err := os.OpenFile(root, unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer folder.Close()
	return cmp.Or(s.folder(ctx, folder, 0), s.leftOut)
}

// folder looks at what is in a folder. It reads a part at a time: there is no limit to
// how much can be in it.
func (s *scan) folder(ctx context.Context, folder *os.File, depth int) error {
	for {
		entries, err := folder.ReadDir(readAtOnce)
		for _, entry := range entries {
			if err := s.entry(ctx, folder, entry, depth); err != nil {
				return err
			}
		}
		if err != nil {
			s.miss(err)
			return nil
		}
	}
}

func (s *scan) entry(ctx context.Context, folder *os.File, entry fs.DirEntry, depth int) error {
	switch s.files--; {
	case ctx.Err() != nil:
		return ctx.Err()
	case s.files < 0:
		return fmt.Errorf("%w: %d files and folders", ErrLimit, maxFiles)
	case entry.IsDir():
		return s.enter(ctx, folder, entry.Name(), depth+1)
	case entry.Type().IsRegular() && strings.EqualFold(filepath.Ext(entry.Name()), ".vmx"):
		return s.look(filepath.Join(folder.Name(), entry.Name()), entry)
	case entry.Type()&fs.ModeSymlink != 0 && s.links != nil:
		s.follow(filepath.Join(folder.Name(), entry.Name()))
	}
	return nil
}

// follow tells of a symbolic link to a folder or a descriptor that is looked at in no
// datastore, and of one that leads nowhere: there may be VMs that are not mounted now.
func (s *scan) follow(link string) {
	target, info, err := whereTo(link)
	switch {
	case err != nil:
		s.links(fmt.Sprintf("%s: a symbolic link that can't be followed: %v", link, err))
	case !info.IsDir() && !isDescriptor(link) && !isDescriptor(target):
	case s.isSearched(target) && (info.IsDir() || isDescriptor(target)):
	default:
		s.links(fmt.Sprintf("%s: a symbolic link to %s, where nothing is looked at: name its folder in datastores, too", link, target))
	}
}

// whereTo gives what a path leads to, by a path without symbolic links.
func whereTo(path string) (target string, info fs.FileInfo, err error) {
	if target, err = filepath.EvalSymlinks(path); err == nil {
		info, err = os.Stat(target)
	}
	return target, info, err
}

// isSearched tells whether a path without links lies in a datastore, or is one.
func (s *scan) isSearched(path string) bool {
	return slices.ContainsFunc(s.datastores, func(root string) bool {
		root, _, err := whereTo(root)
		if err != nil {
			return false
		}
		name, err := filepath.Rel(root, path)
		return err == nil && filepath.IsLocal(name)
	})
}

// enter looks at what is in a folder within another.
func (s *scan) enter(ctx context.Context, parent *os.File, name string, depth int) error {
	if depth > maxDepth {
		s.leftOut = fmt.Errorf("%w: folders %d deep, such as %s", ErrLimit, maxDepth, filepath.Join(parent.Name(), name))
		return nil
	}
	folder, err := openFolder(parent, name)
	if err != nil {
		s.miss(err)
		return nil
	}
	defer folder.Close()
	return s.folder(ctx, folder, depth)
}

// miss notes why a folder was left out, unless it ends there or has just been removed. What
// can't be read may need any key.
func (s *scan) miss(err error) {
	if !errors.Is(err, io.EOF) && !errors.Is(err, fs.ErrNotExist) {
		s.leftOut = err
	}
}

// openFolder opens a folder by its name in another: by its path, each level would be
// looked up once more. It follows no symbolic link.
func openFolder(parent *os.File, name string) (*os.File, error) {
	path := filepath.Join(parent.Name(), name)
	fd, err := unix.Openat(int(parent.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "openat", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// look opens a descriptor.
func (s *scan) look(path string, entry fs.DirEntry) error {
	info, err := entry.Info()
	if err != nil {
		return nil //nolint:nilerr // it has just been removed
	}
	if err := s.count(info.Size()); err != nil {
		return err
	}
	t, err := OpenBeneath(s.datastores, path)
	return s.see(path, t, err)
}

// count counts a descriptor of so many bytes.
func (s *scan) count(size int64) error {
	s.descriptors--
	s.text -= int(min(size, maxRead))
	switch {
	case s.descriptors < 0:
		return fmt.Errorf("%w: %d descriptors", ErrLimit, maxDescriptors)
	case s.text < 0:
		return fmt.Errorf("%w: %d bytes of descriptors", ErrLimit, maxText)
	}
	return nil
}
