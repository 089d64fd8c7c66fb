package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// QEMU says what it does with an image, and what it lets others do, by read
// locks on single bytes of the file (block/file-posix.c): on permBase+n it does
// n, on sharedBase+n it lets nobody else do n.
const (
	permBase   = 100
	sharedBase = 200
)

// Things done with an image, by QEMU's bit numbers.
const (
	consistentRead = iota
	write
	writeUnchanged
	resize
)

// claim is what a mode does with an image and what it bears from nobody else.
type claim struct{ does, forbids []int64 }

var claims = map[Mode]claim{
	ReadOnly: {
		does:    []int64{consistentRead},
		forbids: []int64{write, resize},
	},
	ReadWrite: {
		does:    []int64{consistentRead, write},
		forbids: []int64{consistentRead, write, writeUnchanged, resize},
	},
}

// lock takes the locks of the file's mode, and then looks whether anyone holds
// what contradicts them: in this order, of two that come at once at least one
// notices. The locks are those of the open file description, and go with it.
func (f *File) lock() error {
	return f.control(func(fd int) error {
		c := claims[f.mode]
		if err := f.lockBytes(fd, c); err != nil {
			return err
		}
		for _, n := range c.does {
			if err := f.checkByte(fd, sharedBase+n); err != nil {
				return err
			}
		}
		for _, n := range c.forbids {
			if err := f.checkByte(fd, permBase+n); err != nil {
				return err
			}
		}
		return nil
	})
}

func (f *File) lockBytes(fd int, c claim) error {
	var bytes []int64
	for _, n := range c.does {
		bytes = append(bytes, permBase+n)
	}
	for _, n := range c.forbids {
		bytes = append(bytes, sharedBase+n)
	}
	for _, b := range bytes {
		lock := unix.Flock_t{Type: unix.F_RDLCK, Start: b, Len: 1}
		if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &lock); err != nil {
			return f.lockError(fd, err)
		}
	}
	return nil
}

// checkByte reports ErrInUse if another open file description holds byte b.
func (f *File) checkByte(fd int, b int64) error {
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: b, Len: 1}
	if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &lock); err != nil {
		return f.lockError(fd, err)
	}
	if lock.Type != unix.F_UNLCK {
		return f.inUse(fd)
	}
	return nil
}

// lockError explains why a lock could not be taken. A file system without
// locks is no way around them: what is copied or changed while a virtual
// machine runs on it is lost.
func (f *File) lockError(fd int, err error) error {
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return f.inUse(fd)
	}
	return fmt.Errorf("cannot lock %s, so cannot know that no virtual machine uses it: %w; "+
		"enable locks on its file system or move it to another", f.file.Name(), err)
}

func (f *File) inUse(fd int) error {
	by := ""
	if who := holders(fd); who != "" {
		by = " by " + who
	}
	return fmt.Errorf("%s: %w%s", f.file.Name(), ErrInUse, by)
}

// holders names the other processes that have the file behind fd open, as far
// as /proc shows them. It follows no foreign link, which could hang.
func holders(fd int) string {
	target, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return ""
	}
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*") // the pattern is well-formed
	seen := map[string]bool{fmt.Sprint(os.Getpid()): true}
	var names []string
	for _, link := range links {
		pid := strings.Split(link, "/")[2]
		if other, err := os.Readlink(link); err == nil && other == target && !seen[pid] {
			seen[pid] = true
			names = append(names, processName(pid))
		}
	}
	return strings.Join(names, ", ")
}

// processName is the name of a process, quoted since it is the process's own
// choice, and its number.
func processName(pid string) string {
	name, err := os.ReadFile("/proc/" + pid + "/comm")
	if err != nil {
		return "process " + pid
	}
	return fmt.Sprintf("%q (process %s)", strings.TrimSuffix(string(name), "\n"), pid)
}
