package agent

import (
	"context"
	"fmt"
	"io"

	"github.com/vmcrypt/vmcrypt/browse"
	"github.com/vmcrypt/vmcrypt/image"
)

// List lists what path names on a disk of the target: its partitions, or a
// folder. The disk may be encrypted or plain; node may be empty if it is the
// only one.
func (h *Host) List(ctx context.Context, t *Target, node, path string) (entries *browse.Listing, err error) {
	err = h.withContent(ctx, t, node, func(d image.Disk) error {
		entries, err = browse.List(ctx, d, path)
		return err
	})
	return entries, err
}

// Cat writes a file on a disk of the target to w.
func (h *Host) Cat(ctx context.Context, t *Target, node, path string, w io.Writer) error {
	return h.withContent(ctx, t, node, func(d image.Disk) error {
		return browse.Cat(ctx, w, d, path)
	})
}

// withContent hands the plaintext of a disk to use, for as long as that runs.
func (h *Host) withContent(ctx context.Context, t *Target, node string, use func(image.Disk) error) error {
	d, err := t.disk(node)
	if err != nil {
		return err
	}
	keys := newKeyring(h)
	content, err := openContent(ctx, keys, d)
	keys.wipe()
	if err != nil {
		return err
	}
	defer content.Close()
	if err := use(content); err != nil {
		return fmt.Errorf("disk %s (%s): %w", d.Node, d.Path, err)
	}
	return nil
}

func openContent(ctx context.Context, keys *keyring, d Disk) (image.Disk, error) {
	if d.Record == nil {
		return d.open(image.ReadOnly)
	}
	return d.openUnlocked(ctx, keys, image.ReadOnly)
}
