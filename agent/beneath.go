package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmcrypt/vmcrypt/image"
)

// ErrOutside is the error for a path that leads out of the folders that it has to stay in.
var ErrOutside = errors.New("not in a datastore")

// OpenBeneath is Open for a path that somebody else chose: the descriptor and its
// disks have to lie in the given folders, and no symbolic link may lead to them. The
// formats of disks come from their names. The path is absolute.
func OpenBeneath(datastores []string, path string) (*Target, error) {
	path = filepath.Clean(path)
	if isDescriptor(path) {
		return openVM(path, datastores)
	}
	return openImage(path, "", datastores)
}

// folders are those that files have to lie in; nil for anywhere.
type folders []string

// place gives the folder that a path lies in, and its name from there.
func (f folders) place(path string) (folder, name string, err error) {
	for _, folder := range f {
		name, err := filepath.Rel(folder, path)
		if err == nil && filepath.IsLocal(name) && name != "." {
			return folder, name, nil
		}
	}
	return "", "", fmt.Errorf("%w: %s lies in none of %s", ErrOutside, path, strings.Join(f, ", "))
}

// open opens a file for reading.
func (f folders) open(path string) (*os.File, error) {
	folder, name, err := f.place(path)
	if err != nil {
		return nil, err
	}
	file, err := image.OpenFileBeneath(folder, name)
	return file, explainLink(err)
}

// openDisk opens and locks a disk.
func (f folders) openDisk(path string, format image.Format, mode image.Mode) (*image.File, error) {
	folder, name, err := f.place(path)
	if err != nil {
		return nil, err
	}
	disk, err := image.OpenBeneath(folder, name, format, mode)
	return disk, explainLink(err)
}

// inspect looks at a disk without locking it.
func (f folders) inspect(path string, format image.Format) (image.Info, error) {
	folder, name, err := f.place(path)
	if err != nil {
		return image.Info{}, err
	}
	info, err := image.InspectBeneath(folder, name, format)
	return info, explainLink(err)
}

// openRegular opens a file of vmcrypt's own for reading, as openRegular does anywhere.
func (f folders) openRegular(path string) (*os.File, error) {
	file, err := f.open(path)
	if err != nil {
		return nil, err
	}
	if err := checkRegular(file); err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// explainLink says what openat2 means by its error.
func explainLink(err error) error {
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.EXDEV) {
		return fmt.Errorf("%w: there is a symbolic link on the way: %w", ErrOutside, err)
	}
	return err
}
