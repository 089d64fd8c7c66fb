package diskserver

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/vmcrypt/vmcrypt/blockcrypt"
	"github.com/vmcrypt/vmcrypt/dek"
	"github.com/vmcrypt/vmcrypt/image"
	"github.com/vmcrypt/vmcrypt/internal/secret"
)

// maxHeader is the greatest length in bytes of the header of a start message. A disk
// takes less than 1000 of them, and with 16 recipients less than 10,000.
const maxHeader = 1 << 20

// User owns the sockets of the disks: the one that QEMU runs as.
type User struct {
	UID uint32 `json:"uid"`
	GID uint32 `json:"gid"`
}

// Start is what a disk server is started with.
type Start struct {
	VM VM
	// Directory is for the sockets, NODE.sock for each disk and control.sock. It is
	// absolute and short, for a socket's path has at most 107 bytes. Its parent exists,
	// and only the agent's user can change that; the lock of the directory is there, too.
	Directory  string
	SocketUser User
	// Engine is the name of a blockcrypt.Engine; empty for the fastest.
	Engine string
	Disks  []Unlocked
	// Started, if set, hears the number of the process before it gets anything.
	Started func(pid int)
}

// Unlocked is a disk with its data key. Launch takes Format and DataPath from File.
// File and Key stay the caller's, who may close and destroy them once the disk server
// runs.
type Unlocked struct {
	Disk
	File *image.File // opened for reading only if the disk is ReadOnly
	Key  *secret.Buffer
}

// header is the part of a start message that holds no secret.
type header struct {
	Version    int    `json:"version"`
	VM         VM     `json:"vm"`
	Directory  string `json:"directory"`
	SocketUser User   `json:"socketUser"`
	Engine     string `json:"engine,omitempty"`
	Disks      []Disk `json:"disks"`
}

// send writes the start message: the length of the header in four bytes, big-endian,
// the header in JSON, and the keys.
func (s *Start) send(w io.Writer) error {
	h := header{Version: version, VM: s.VM, Directory: s.Directory, SocketUser: s.SocketUser, Engine: s.Engine}
	for _, d := range s.Disks {
		d.Format, d.DataPath = d.File.Format(), d.File.DataPath()
		h.Disks = append(h.Disks, d.Disk)
	}
	text, err := json.Marshal(h)
	if err != nil {
		return err
	}
	if _, err := w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(text))), text...)); err != nil {
		return err
	}
	for _, d := range s.Disks {
		if _, err := w.Write(d.Key.Bytes()); err != nil {
			return err
		}
	}
	return nil
}

// receive reads a start message, which is all that r has. The caller destroys the
// keys, one for each disk.
func receive(r io.Reader) (*header, []*secret.Buffer, error) {
	h, err := receiveHeader(r)
	if err != nil {
		return nil, nil, fmt.Errorf("start message: %w", err)
	}
	keys, err := receiveKeys(r, len(h.Disks))
	if err != nil {
		destroyAll(keys)
		return nil, nil, fmt.Errorf("start message: keys: %w", err)
	}
	return h, keys, nil
}

func receiveHeader(r io.Reader) (*header, error) {
	var length [4]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(length[:])
	if n > maxHeader {
		return nil, fmt.Errorf("a header of %d bytes, more than %d", n, maxHeader)
	}
	text := make([]byte, n)
	if _, err := io.ReadFull(r, text); err != nil {
		return nil, err
	}
	return parseHeader(text)
}

// parseHeader looks at the version before all else: in others the rest may differ.
func parseHeader(text []byte) (*header, error) {
	var v struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(text, &v); err != nil {
		return nil, err
	}
	if v.Version != version {
		return nil, fmt.Errorf("version %d; this release knows version %d", v.Version, version)
	}
	h := new(header)
	if err := json.Unmarshal(text, h); err != nil {
		return nil, err
	}
	return h, h.check()
}

func (h *header) check() error {
	if !filepath.IsAbs(h.Directory) || filepath.Clean(h.Directory) != h.Directory {
		return fmt.Errorf("directory %q: not an absolute path in its shortest form", h.Directory)
	}
	if len(h.Disks) == 0 {
		return errors.New("no disks")
	}
	if _, err := engine(h.Engine); err != nil {
		return err
	}
	sockets := map[string]bool{controlSocket: true}
	for _, d := range h.Disks {
		if err := d.check(); err != nil {
			return fmt.Errorf("disk %q: %w", d.Node, err)
		}
		if sockets[d.socket()] {
			return fmt.Errorf("disk %s is there twice", d.Node)
		}
		sockets[d.socket()] = true
	}
	for name := range sockets {
		if path := filepath.Join(h.Directory, name); len(path) > maxSocketPath {
			return fmt.Errorf("%s is longer than the %d bytes that a socket's path can have", path, maxSocketPath)
		}
	}
	return nil
}

// engine finds an Engine by its name; the fastest has none.
func engine(name string) (blockcrypt.Engine, error) {
	if name == "" {
		fastest, _ := blockcrypt.Fastest() // good in any case; the agent tells of the warning
		return fastest, nil
	}
	for _, e := range blockcrypt.Engines() {
		if e.Name() == name && e.Missing() == "" {
			return e, nil
		}
	}
	return blockcrypt.Engine{}, fmt.Errorf("engine %q: not in this release, or not for this CPU", name)
}

// receiveKeys reads n keys straight to where they stay, and the end of the message.
func receiveKeys(r io.Reader, n int) ([]*secret.Buffer, error) {
	var keys []*secret.Buffer
	for range n {
		key, err := secret.New(dek.Size)
		if err != nil {
			return keys, err
		}
		keys = append(keys, key)
		if _, err := io.ReadFull(r, key.Bytes()); err != nil {
			return keys, err
		}
	}
	if n, err := r.Read(make([]byte, 1)); n > 0 || !errors.Is(err, io.EOF) {
		return keys, errors.Join(errors.New("the message does not end after them"), err)
	}
	return keys, nil
}

func destroyAll(keys []*secret.Buffer) {
	for _, key := range keys {
		key.Destroy()
	}
}
