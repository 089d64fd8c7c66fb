package agent

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/vmcrypt/vmcrypt/image"
	"github.com/vmcrypt/vmcrypt/internal/listen"
	"github.com/vmcrypt/vmcrypt/nbd"
)

// ServeOptions says which disk is served, and where.
type ServeOptions struct {
	Disk     string // node; may be empty for the only disk
	Socket   string // path of the unix socket, which has at most listen.MaxPath bytes
	ReadOnly bool
}

// Serve serves the plaintext of an encrypted disk over NBD until ctx ends. Its socket
// is for its owner only. Listening hears the disk's node and the URI once clients can
// connect. In the end requests under way are finished, the disk is flushed, its key
// wiped and the socket removed; the error is what failed of that.
//
// The disk is locked all the time: for others who read it, too, unless it is served
// for reading only.
func (h *Host) Serve(ctx context.Context, t *Target, opts ServeOptions, listening func(node, uri string)) error {
	d, err := t.disk(opts.Disk)
	if err != nil {
		return err
	}
	if d.Record == nil { // amid a conversion it may be: once it is locked, that is known
		return t.checkState(d, true)
	}
	plain, err := h.openToServe(ctx, d, opts.ReadOnly)
	if err != nil {
		return err
	}
	err = d.serve(ctx, plain, opts, listening)
	return errors.Join(err, plain.Close())
}

func (h *Host) openToServe(ctx context.Context, d Disk, readOnly bool) (image.Disk, error) {
	keys := newKeyring(h)
	defer keys.wipe()
	mode := image.ReadWrite
	if readOnly {
		mode = image.ReadOnly
	}
	return d.openUnlocked(ctx, keys, mode)
}

func (d Disk) serve(ctx context.Context, plain image.Disk, opts ServeOptions, listening func(node, uri string)) error {
	server, err := nbd.New(nbd.Export{Name: d.Node, Disk: plain, ReadOnly: opts.ReadOnly})
	if err != nil {
		return err
	}
	listener, err := listen.Private(ctx, opts.Socket)
	if err != nil {
		return err
	}
	listening(d.Node, NBDURI(d.Node, opts.Socket))
	return server.Serve(ctx, listener)
}

// NBDURI tells clients where a disk is served, by the URI specification of NBD. Some
// of them take a plus for what it is, hence no plus for a space.
func NBDURI(node, socket string) string {
	query := strings.NewReplacer("+", "%20", "%2F", "/", "%3A", ":").Replace(url.QueryEscape(socket))
	return fmt.Sprintf("nbd+unix:///%s?socket=%s", url.PathEscape(node), query)
}
