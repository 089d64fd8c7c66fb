// Package durable writes files that survive power loss and appear whole or not
// at all.
//
// Everything is written under a temporary name beside its target,
// `.<name>.<random>.vmcrypt-tmp`, synced, and then renamed. [WriteFile] replaces
// the target; [Create] and [Publish] never do. A folder is built under the name
// that [MkdirTemp] gives and moved into place by [Publish].
//
// A failed fsync ends the operation with an error and is not tried again: after
// one failure the kernel may have dropped the data and report success the next
// time. After a crash a temporary name may be left behind; nothing reads it, and
// it can be deleted.
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrNotDurable is the error for a file that has its name, as all others see, but
// may lose it in a power cut.
var ErrNotDurable = errors.New("it is there, but may not outlast a power cut")

// The system calls that tests replace to see what their failure leaves behind.
var (
	fsync     = (*os.File).Sync
	renameat2 = unix.Renameat2
	link      = os.Link
)

// WriteFile writes data to path and replaces a file that is there. Readers see
// the old content or the new, never a mixture, also after power loss.
//
// A new file gets perm, less the umask. An existing one keeps its permissions
// and owner, and where the owner cannot be kept nothing is written; its access
// lists and other extended attributes are not carried over. If path is a
// symbolic link, the file it leads to is replaced and the link stays; a link to
// nothing is refused, as is anything that is no regular file.
//
// After an error the file is as it was, unless that is ErrNotDurable.
func WriteFile(path string, data []byte, perm fs.FileMode) error {
	path, old, err := resolve(path)
	if err != nil {
		return err
	}
	if old != nil {
		perm = 0o600 // no wider than the owner until the old file's are set
	}
	p, err := Create(path, perm)
	if err != nil {
		return err
	}
	defer p.Abort()
	if err := p.keepAttributes(old); err != nil {
		return err
	}
	if _, err := p.Write(data); err != nil {
		return err
	}
	return p.replace()
}

// WriteForOwner is WriteFile in a folder of another user, whom root does it for: the file
// gets the folder's owner, and nothing that this user put there leads elsewhere, for a
// symbolic link at path is replaced.
func WriteForOwner(path string, data []byte, perm fs.FileMode) error {
	p, err := Create(path, perm)
	if err != nil {
		return err
	}
	defer p.Abort()
	if err := GiveToOwner(p.file); err != nil {
		return err
	}
	if _, err := p.Write(data); err != nil {
		return err
	}
	return p.replace()
}

// GiveToOwner gives a file that root has just made in a folder of another user to that
// user.
func GiveToOwner(f *os.File) error {
	if os.Geteuid() != 0 {
		return nil
	}
	folder, err := os.Stat(filepath.Dir(f.Name()))
	if err != nil {
		return err
	}
	return keepOwner(f, folder)
}

// resolve follows symbolic links to the file that is to be replaced. The
// returned info is nil where there is no file yet.
func resolve(path string) (string, fs.FileInfo, error) {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return path, nil, nil
	}
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", nil, err
	}
	info, err := os.Stat(target)
	if err != nil {
		return "", nil, err
	}
	if !info.Mode().IsRegular() {
		return "", nil, fmt.Errorf("%s is not a regular file", path)
	}
	return target, info, nil
}

// Pending is a file that is not there yet: it has a temporary name until
// Publish or, without a trace, Abort.
type Pending struct {
	file *os.File
	path string // where it will be
	tmp  string // where it is; "" when published or aborted
}

// Create makes a temporary file beside path, with perm less the umask.
// An existing path is refused only by Publish.
func Create(path string, perm fs.FileMode) (*Pending, error) {
	tmp := TempName(path)
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return nil, err
	}
	return &Pending{file: f, path: path, tmp: tmp}, nil
}

// Write appends to the file.
func (p *Pending) Write(b []byte) (int, error) { return p.file.Write(b) }

// Name is the temporary name, under which the file can be read back before it
// is published.
func (p *Pending) Name() string { return p.tmp }

// Publish makes the file durable under its own name. It fails with
// [fs.ErrExist] if something has that name, and leaves no temporary file
// whether it fails or not.
func (p *Pending) Publish() error {
	defer p.Abort()
	if err := p.syncAndClose(); err != nil {
		return err
	}
	if err := renameNew(p.tmp, p.path); err != nil {
		return err
	}
	return p.published()
}

// Abort removes the temporary file. After Publish it does nothing.
func (p *Pending) Abort() {
	if p.tmp == "" {
		return
	}
	p.file.Close()
	os.Remove(p.tmp)
	p.tmp = ""
}

// replace is Publish for a path that may exist.
func (p *Pending) replace() error {
	if err := p.syncAndClose(); err != nil {
		return err
	}
	if err := os.Rename(p.tmp, p.path); err != nil {
		return err
	}
	return p.published()
}

// published makes the new name durable, and the temporary one history.
func (p *Pending) published() error {
	p.tmp = ""
	return syncName(p.path)
}

func (p *Pending) syncAndClose() error {
	if err := fsync(p.file); err != nil {
		return err
	}
	return p.file.Close()
}

// keepAttributes gives the file the owner and permissions of the one it is
// going to replace. The owner comes first, as changing it clears setuid bits.
func (p *Pending) keepAttributes(old fs.FileInfo) error {
	if old == nil {
		return nil
	}
	if err := keepOwner(p.file, old); err != nil {
		return fmt.Errorf("keep the owner of %s: %w", p.path, err)
	}
	return p.file.Chmod(old.Mode())
}

func keepOwner(f *os.File, old fs.FileInfo) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	have, want := info.Sys().(*syscall.Stat_t), old.Sys().(*syscall.Stat_t)
	if have.Uid == want.Uid && have.Gid == want.Gid {
		return nil
	}
	return f.Chown(int(want.Uid), int(want.Gid))
}
