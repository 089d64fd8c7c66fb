package agent

import (
	"cmp"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/google/uuid"

	"github.com/vmcrypt/vmcrypt/agent/diskserver"
	"github.com/vmcrypt/vmcrypt/blockcrypt"
	"github.com/vmcrypt/vmcrypt/image"
	"github.com/vmcrypt/vmcrypt/internal/secret"
	"github.com/vmcrypt/vmcrypt/internal/text"
)

// UnlockOptions says how the disks of a target are served.
type UnlockOptions struct {
	ReadOnly   bool
	Directory  string // for the sockets, as in diskserver.Start
	SocketUser diskserver.User
	Command    *exec.Cmd // a "vmcrypt disk-server"
	// Release hears which keys are about to leave this process. An error keeps them.
	Release func([]Release) error
	// Started, if set, hears the number of the disk server, which has no keys yet.
	Started func(pid int)
}

// Release is a disk whose data key is handed to its disk server, and the KEK by which
// it was had.
type Release struct {
	Node     string
	DiskUUID uuid.UUID
	Alias    string
	KEKID    string
}

// Unlock has the encrypted disks of a target served by a process of their own: all of
// them, or none. Its plain disks are left alone.
func (h *Host) Unlock(ctx context.Context, t *Target, opts UnlockOptions) error {
	disks, err := t.encrypted()
	if err != nil {
		return err
	}
	keys := newKeyring(h)
	defer keys.wipe()
	keys.awaitAll(disks)
	if h.Turns != nil {
		if err := h.Turns.Acquire(ctx, 1); err != nil {
			return err
		}
		defer h.Turns.Release(1)
	}
	u := &unlocking{UnlockOptions: opts, target: t, keys: keys}
	defer u.close()
	for _, d := range disks {
		if err := u.open(d); err != nil {
			return err
		}
	}
	return u.launch(ctx)
}

// encrypted lists the disks of a target that can be unlocked, or soon: whether one is
// amid a conversion is for later, when it is known whether that runs.
func (t *Target) encrypted() (disks []Disk, err error) {
	for _, d := range t.Disks {
		if d.Record != nil {
			disks = append(disks, d)
		}
	}
	if len(disks) == 0 {
		return nil, t.checkState(t.Disks[0], true)
	}
	return disks, nil
}

// awaitAll has the keys of disks kept that others fetch while this run waits.
func (k *keyring) awaitAll(disks []Disk) {
	if k.host.Keys == nil {
		return
	}
	for _, d := range disks {
		for _, r := range d.Record.Recipients {
			k.await(kekRef{r.Alias, r.KEKID})
		}
	}
}

// unlocking is the disks of a target on their way to a disk server.
type unlocking struct {
	UnlockOptions
	target *Target
	keys   *keyring
	disks  []Disk
	files  []*image.File
	deks   []*secret.Buffer
}

// open opens and locks a disk.
func (u *unlocking) open(d Disk) error {
	mode := image.ReadWrite
	if u.ReadOnly {
		mode = image.ReadOnly
	}
	f, err := d.open(mode)
	if err != nil {
		return fmt.Errorf("disk %s: %w", d.Node, err)
	}
	u.disks, u.files = append(u.disks, d), append(u.files, f)
	return nil
}

// launch starts the disk server of the disks that are open.
func (u *unlocking) launch(ctx context.Context) error {
	for i, d := range u.disks {
		if err := u.unwrap(ctx, d, u.files[i]); err != nil {
			return err
		}
	}
	if err := u.Release(u.releases()); err != nil {
		return err
	}
	return diskserver.Launch(ctx, u.Command, u.start())
}

func (u *unlocking) unwrap(ctx context.Context, d Disk, f *image.File) error {
	key, err := u.keys.unwrap(ctx, d)
	if err != nil {
		return err
	}
	u.deks = append(u.deks, key)
	if err := d.checkSize(f); err != nil {
		return fmt.Errorf("disk %s: %w", d.Node, err)
	}
	return nil
}

func (u *unlocking) releases() (out []Release) {
	for _, d := range u.disks {
		by := u.keys.used[d.Record.DiskUUID]
		out = append(out, Release{Node: d.Node, DiskUUID: d.Record.DiskUUID, Alias: by.Alias, KEKID: by.KEKID})
	}
	return out
}

func (u *unlocking) start() *diskserver.Start {
	s := &diskserver.Start{
		VM: u.target.VM(), Directory: u.Directory, SocketUser: u.SocketUser, Engine: u.keys.host.engineName(),
		Started: u.Started,
	}
	for i, d := range u.disks {
		s.Disks = append(s.Disks, diskserver.Unlocked{
			Disk: diskserver.Disk{Node: d.Node, ReadOnly: u.ReadOnly, Path: d.Path, Record: diskserver.RecordOf(d.Record)},
			File: u.files[i], Key: u.deks[i],
		})
	}
	return s
}

// engineName is how a disk server is told which engine to use: not by its name where
// that is the fastest, since it may be of another release.
func (h *Host) engineName() string {
	if h.Engine == (blockcrypt.Engine{}) {
		return h.Engine.Name()
	}
	return ""
}

// close wipes keys, and lets go of disks that no disk server has.
func (u *unlocking) close() {
	destroyAll(u.deks)
	for _, f := range u.files {
		f.Close()
	}
}

// VM tells which virtual machine a target is. A bare image is one by its own name,
// and by the UUID of its disk. Of long names and UUIDs it has the first 256 bytes.
func (t *Target) VM() diskserver.VM {
	vm := diskserver.VM{Descriptor: t.Descriptor, Name: strings.TrimSuffix(filepath.Base(t.Descriptor), filepath.Ext(t.Descriptor))}
	if t.isImage() {
		if r := t.Disks[0].Record; r != nil {
			vm.UUID = r.DiskUUID.String()
		}
		return vm
	}
	if name, ok := t.file.Get("displayName"); ok {
		vm.Name = cmp.Or(text.Clip(name, maxName), vm.Name)
	}
	id, _ := t.file.Get("uuid.bios")
	vm.UUID = text.Clip(id, maxName)
	return vm
}

// maxName bounds the name and the UUID of a VM, in bytes. In its descriptor they could
// have 256 KiB each.
const maxName = 256

// isImage tells a bare image, even where its descriptor was opened as a VM's.
func (t *Target) isImage() bool {
	return t.bare || len(t.Disks) == 1 && t.Descriptor == t.Disks[0].Path+".vmx"
}
