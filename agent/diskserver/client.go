package diskserver

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmcrypt/vmcrypt/internal/secret"
)

// maxReply bounds a reply in bytes: a description has at most what the header of a
// start message had.
const maxReply = maxHeader + 64<<10

// Client is a connection to the control socket of a disk server, for one request at a
// time. After an error it is of no more use. Errors are an *Error where the server
// gave one, and else of the connection: io.ErrUnexpectedEOF if the server has died.
type Client struct {
	conn *net.UnixConn
	in   *bufio.Reader
}

// Connect connects to the disk server of a directory, as of Start. The user of the
// sockets owns the directory, and may have put another socket there, or a link to one:
// the server has to be a process of root or the own user, and to say that the directory
// is its own. Where no process serves there, the error is fs.ErrNotExist or ECONNREFUSED.
func Connect(ctx context.Context, directory string) (*Client, error) {
	conn, err := dial(ctx, filepath.Join(directory, controlSocket))
	if err != nil {
		return nil, err
	}
	c := &Client{conn: conn, in: bufio.NewReader(conn)}
	if err := c.verify(ctx, directory); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// dial connects to the socket at a path, not to one that a symbolic link leads to, and
// to no other user's: not even to look at it.
func dial(ctx context.Context, path string) (*net.UnixConn, error) {
	f, err := os.OpenFile(path, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var stat unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &stat); err != nil {
		return nil, err
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFSOCK || !trusted(stat.Uid) {
		return nil, fmt.Errorf("%s: %w: not the socket of a disk server", path, fs.ErrPermission)
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, errors.Unwrap(err)) // without the number
	}
	return conn.(*net.UnixConn), nil
}

func (c *Client) verify(ctx context.Context, directory string) error {
	if err := checkPeer(c.conn); err != nil {
		return fmt.Errorf("%s: %w: no disk server, but %w", directory, fs.ErrPermission, err)
	}
	st, err := c.Status(ctx)
	if err != nil {
		return err
	}
	if st.Directory != filepath.Clean(directory) {
		return fmt.Errorf("%s: %w: the disk server there is that of %s", directory, fs.ErrPermission, st.Directory)
	}
	return nil
}

// Close ends the connection; the server goes on.
func (c *Client) Close() error { return c.conn.Close() }

// Status tells what the server does.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	return ask[Status](ctx, c, request{Operation: "status"}, nil)
}

// Describe gives all that the descriptor held about the VM's disks when the server
// was started.
func (c *Client) Describe(ctx context.Context) (*Description, error) {
	return ask[Description](ctx, c, request{Operation: "describe"}, nil)
}

// Rewrap wraps the data key of the disk at node under the 32 bytes of kek, which the
// server wipes at once. Beside the recipient that it gives, the record needs no change.
func (c *Client) Rewrap(ctx context.Context, node, alias, kekID string, kek *secret.Buffer) (*Recipient, error) {
	return ask[Recipient](ctx, c, request{Operation: "rewrap", Node: node, Alias: alias, KEKID: kekID}, kek)
}

// Stop has the server finish what is under way, flush, wipe its keys and end. When it
// returns, disks and directory are free for another. Failed is what went wrong on the
// way: what was not flushed may be lost.
func (c *Client) Stop(ctx context.Context) (failed []string, err error) {
	result, err := ask[stopResult](ctx, c, request{Operation: "stop"}, nil)
	if err != nil {
		return nil, err
	}
	return result.Failed, nil
}

// ask sends a request, with a key after it if there is one, and receives the result.
func ask[T any](ctx context.Context, c *Client, r request, key *secret.Buffer) (*T, error) {
	interrupted := context.AfterFunc(ctx, func() { _ = c.conn.SetDeadline(time.Unix(1, 0)) }) // fails for a closed one
	result := new(T)
	err := c.exchange(r, key, result)
	if !interrupted() && errors.Is(err, os.ErrDeadlineExceeded) {
		err = ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	return result, nil
}

func (c *Client) exchange(r request, key *secret.Buffer, result any) error {
	r.Version = version
	sent := json.NewEncoder(c.conn).Encode(r)
	if sent == nil && key != nil {
		_, sent = c.conn.Write(key.Bytes())
	}
	// One that refuses a request may do so before all of it is sent.
	rep := reply{Result: result}
	received := c.receive(&rep)
	switch {
	case received == nil && rep.Error != nil:
		return rep.Error
	case sent != nil:
		return sent
	case received != nil:
		return received
	case !rep.OK:
		return errors.New("disk server: a reply that is neither a result nor an error")
	}
	return nil
}

func (c *Client) receive(rep *reply) error {
	var line []byte
	for len(line) <= maxReply {
		part, err := c.in.ReadSlice('\n')
		line = append(line, part...)
		if err == nil {
			return json.Unmarshal(line, rep)
		}
		if errors.Is(err, io.EOF) {
			return io.ErrUnexpectedEOF
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
	}
	return errors.New("disk server: too long a reply")
}
