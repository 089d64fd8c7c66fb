package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmcrypt/vmcrypt/agent"
	"github.com/vmcrypt/vmcrypt/agent/api"
)

// Limits of what is looked at in a datastore: who may write there must not be able to
// exhaust the agent, or to have it give answers too long for clients.
const (
	maxFiles       = 200_000 // files and folders
	maxDescriptors = 10_000
	maxText        = 128 << 20 // bytes of descriptors
	maxRead        = 1 << 20   // of which one has at most so many: package vmx reads no more
	maxConversions = 1000      // disks amid a conversion, for each of which files are read
	maxDepth       = 16        // folders within each other; each keeps a file open
	maxListed      = 32 << 20  // bytes that all datastores may add to an answer
	readAtOnce     = 256       // files and folders
)

// errLimit is the error for a datastore in which there is more.
var errLimit = errors.New("there is more in it than is looked at")

// scan gives the VMs in the datastores that have encrypted disks, as if all were
// locked, as far as they can be read. The error is that ctx has ended.
func (d *daemon) scan(ctx context.Context) (map[string]api.VM, error) {
	if err := d.scans.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer d.scans.Release(1)
	found := map[string]api.VM{}
	for _, root := range d.Datastores {
		s := &scan{
			datastores: d.Datastores, found: found,
			files: maxFiles, descriptors: maxDescriptors, text: maxText, conversions: maxConversions, listed: maxListed / len(d.Datastores),
		}
		err := s.datastore(ctx, root)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		d.wasRead(root, err)
	}
	return found, nil
}

// wasRead notes what kept a datastore from being read to its end, if anything, and logs
// what is new.
func (d *daemon) wasRead(root string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	was := d.unread[root]
	if d.unread[root] = err; err != nil && (was == nil || was.Error() != err.Error()) {
		slog.Warn("a datastore was not read to its end", "datastore", root, "error", err)
	}
}

// scan is a walk through one datastore.
type scan struct {
	datastores []string
	found      map[string]api.VM // by the paths of their descriptors

	files, descriptors, text, conversions, listed int   // how many there may still be
	leftOut                                       error // why something was
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
			return nil //nolint:nilerr // its end, or perhaps it has just been removed
		}
	}
}

func (s *scan) entry(ctx context.Context, folder *os.File, entry fs.DirEntry, depth int) error {
	switch s.files--; {
	case ctx.Err() != nil:
		return ctx.Err()
	case s.files < 0:
		return fmt.Errorf("%w: %d files and folders", errLimit, maxFiles)
	case entry.IsDir():
		return s.enter(ctx, folder, entry.Name(), depth+1)
	case entry.Type().IsRegular() && strings.EqualFold(filepath.Ext(entry.Name()), ".vmx"):
		return s.look(filepath.Join(folder.Name(), entry.Name()), entry)
	}
	return nil
}

// enter looks at what is in a folder within another.
func (s *scan) enter(ctx context.Context, parent *os.File, name string, depth int) error {
	if depth > maxDepth {
		s.leftOut = fmt.Errorf("%w: folders %d deep", errLimit, maxDepth)
		return nil
	}
	folder, err := openFolder(parent, name)
	if err != nil {
		return nil // perhaps it has just been removed
	}
	defer folder.Close()
	return s.folder(ctx, folder, depth)
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

// look adds the VM of a descriptor if it has encrypted disks.
func (s *scan) look(path string, entry fs.DirEntry) error {
	info, err := entry.Info()
	if err != nil {
		return nil //nolint:nilerr // it has just been removed
	}
	if err := s.count(info.Size()); err != nil {
		return err
	}
	t, err := agent.OpenBeneath(s.datastores, path)
	switch {
	case err != nil:
		return s.add(brokenVM(path, err))
	case t.Plain():
		return nil
	}
	if err := s.countConversions(t); err != nil {
		return err
	}
	return s.add(lockedVM(t))
}

func (s *scan) countConversions(t *agent.Target) error {
	for _, disk := range t.Disks {
		if disk.Record != nil && disk.Record.Unfinished() {
			s.conversions--
		}
	}
	if s.conversions < 0 {
		return fmt.Errorf("%w: %d disks amid a conversion", errLimit, maxConversions)
	}
	return nil
}

// count counts a descriptor of so many bytes.
func (s *scan) count(size int64) error {
	s.descriptors--
	s.text -= int(min(size, maxRead))
	switch {
	case s.descriptors < 0:
		return fmt.Errorf("%w: %d descriptors", errLimit, maxDescriptors)
	case s.text < 0:
		return fmt.Errorf("%w: %d bytes of descriptors", errLimit, maxText)
	}
	return nil
}

func (s *scan) add(vm *api.VM) error {
	text, err := json.Marshal(vm)
	if err != nil {
		return err
	}
	if s.listed -= len(text); s.listed < 0 {
		return fmt.Errorf("%w: VMs of which there is more to tell than fits into an answer", errLimit)
	}
	s.found[vm.Descriptor] = *vm
	return nil
}
