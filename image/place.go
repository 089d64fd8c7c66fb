package image

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// place names a file: any path or, beneath a folder, one that leads nowhere else.
type place struct {
	folder string // empty for any path
	name   string // relative to the folder if there is one
}

func (p place) path() string { return filepath.Join(p.folder, p.name) }

// beside is the place of another file in the folder that the file lies in.
func (p place) beside(name string) place {
	return place{p.folder, filepath.Join(filepath.Dir(p.name), name)}
}

// open opens the file without waiting for the other end of a named pipe and
// without making a terminal ours. Flags are added to those of the mode.
func (p place) open(mode Mode, flags int) (*os.File, error) {
	if p.folder == "" {
		return openFile(p.name, p.name, mode, flags)
	}
	folder, err := os.OpenFile(p.folder, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer folder.Close()
	return finishOpen(p.path(), func() (int, error) {
		return unix.Openat2(int(folder.Fd()), p.name, &unix.OpenHow{
			Flags:   uint64(openFlags(mode, flags)),
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
		})
	})
}

// OpenBeneath is Open for the disk that name leads to from folder, if it gets
// there by no symbolic link and without leaving the folder. It is for names that
// others may have chosen.
func OpenBeneath(folder, name string, format Format, mode Mode) (*File, error) {
	p, err := beneath(folder, name)
	if err != nil {
		return nil, err
	}
	return p.openDisk(format, mode)
}

// OpenFileBeneath is OpenBeneath for a file that is no disk, to be read. Its kind
// is not looked at.
func OpenFileBeneath(folder, name string) (*os.File, error) {
	p, err := beneath(folder, name)
	if err != nil {
		return nil, err
	}
	return p.open(ReadOnly, 0)
}

func beneath(folder, name string) (place, error) {
	if !filepath.IsLocal(name) {
		return place{}, fmt.Errorf("%s is not a name of a file in %s", name, folder)
	}
	return place{folder, name}, nil
}
