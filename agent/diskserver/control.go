package diskserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmcrypt/vmcrypt/dek"
	"github.com/vmcrypt/vmcrypt/internal/secret"
	"github.com/vmcrypt/vmcrypt/nbd"
)

const (
	maxRequest  = 64 << 10 // bytes of a line
	maxControls = 16       // connections at once; others wait
	requestTime = time.Minute
	replyTime   = 10 * time.Second
	kekSize     = 32 // bytes
)

// The codes of an Error. Later releases may have others.
const (
	CodeMalformed = "malformed"  // no request, or one without what its operation needs
	CodeVersion   = "version"    // of a later release than the process
	CodeOperation = "operation"  // unknown
	CodeNoDisk    = "no-disk"    // at that node
	CodeStopping  = "stopping"   // the keys are gone
	CodeFailed    = "failed"     // for the reason in the message
	CodeDenied    = "permission" // neither root nor the process's own user
)

// Error is what a disk server says instead of doing what it was asked.
type Error struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

func (e *Error) Error() string { return "disk server: " + e.Message }

func failure(code, format string, args ...any) *Error {
	return &Error{code, fmt.Sprintf(format, args...)}
}

// request is a line to the control socket. Fields that it does not know are ignored.
type request struct {
	Version   int    `json:"version"`
	Operation string `json:"op"`
	Node      string `json:"node,omitempty"`
	Alias     string `json:"alias,omitempty"`
	KEKID     string `json:"kekID,omitempty"`
}

// reply is a line back. Its version is the highest that the process knows.
type reply struct {
	Version int    `json:"version"`
	OK      bool   `json:"ok,omitempty"`
	Error   *Error `json:"error,omitempty"`
	Result  any    `json:"result,omitempty"`
}

// Status is what a disk server does at the moment.
type Status struct {
	VM        VM           `json:"vm"`
	PID       int          `json:"pid"`
	Since     time.Time    `json:"since"`
	Release   string       `json:"release"`
	Directory string       `json:"directory"`
	Disks     []DiskStatus `json:"disks"`
	// LatencyBounds are those of the disks' Operations, in seconds.
	LatencyBounds []float64 `json:"latencyBounds,omitempty"`
}

// DiskStatus is what became of a disk since the process was started.
type DiskStatus struct {
	Node         string `json:"node"`
	Socket       string `json:"socket"` // its path
	ReadOnly     bool   `json:"readOnly"`
	BytesRead    uint64 `json:"bytesRead"`
	BytesWritten uint64 `json:"bytesWritten"`
	Connections  int    `json:"connections"`
	// Operations are of the requests that were answered. A process of an earlier release
	// tells of none.
	Operations []Operation `json:"operations,omitempty"`
}

// Operation is what became of the requests for one NBD command.
type Operation struct {
	Operation string            `json:"operation"` // as nbd.OperationStats has it
	Requests  []uint64          `json:"requests"`  // that took at most each of the LatencyBounds, and longer than all
	Nanos     uint64            `json:"nanos"`     // that all took together
	Errors    map[string]uint64 `json:"errors,omitempty"`
}

// Description is all that is needed to write a descriptor's records again.
type Description struct {
	VM    VM     `json:"vm"`
	Disks []Disk `json:"disks"`
}

// stopResult is the result of a stop.
type stopResult struct {
	Failed []string `json:"failed"`
}

// operations are what can be asked for. What follows the request's line, they read
// from in.
var operations = map[string]func(s *server, r *request, in io.Reader) (result any, failed *Error){
	"status":   func(s *server, _ *request, _ io.Reader) (any, *Error) { return s.status(), nil },
	"describe": func(s *server, _ *request, _ io.Reader) (any, *Error) { return Description{s.VM, s.Disks}, nil },
	"rewrap":   (*server).rewrap,
	"stop": func(s *server, _ *request, _ io.Reader) (any, *Error) {
		s.stop()
		<-s.stopped
		return stopResult{s.failed}, nil
	},
}

// serveControl serves the control socket, which others close, in the background. The
// function that it gives lets the clients have their replies, and waits for that.
func (s *server) serveControl() (end func()) {
	ended, cancel := context.WithCancel(context.Background())
	var clients sync.WaitGroup
	clients.Go(func() {
		places := make(chan struct{}, maxControls)
		for {
			conn, err := s.control.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil { // too many open files: that passes
				time.Sleep(100 * time.Millisecond)
				continue
			}
			places <- struct{}{}
			clients.Go(func() {
				defer func() { <-places }()
				s.serveClient(ended, conn.(*net.UnixConn))
			})
		}
	})
	return func() {
		cancel()
		clients.Wait()
	}
}

// serveClient answers the requests of a connection until one fails, after which
// nobody knows where the next begins, or ended is done.
func (s *server) serveClient(ended context.Context, conn *net.UnixConn) {
	defer conn.Close()
	if err := checkPeer(conn); err != nil {
		_ = s.reply(conn, nil, failure(CodeDenied, "%v", err)) // a courtesy
		return
	}
	defer context.AfterFunc(ended, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })() // fails for a closed one
	for {
		err := conn.SetReadDeadline(time.Now().Add(requestTime))
		if err != nil || ended.Err() != nil || !s.exchange(conn) {
			return
		}
	}
}

// exchange answers one request, and reports whether there may be another.
func (s *server) exchange(conn io.ReadWriter) bool {
	line, err := readLine(conn)
	if err != nil {
		return false
	}
	result, failed := s.do(line, conn)
	return s.reply(conn, result, failed) == nil && failed == nil
}

func (s *server) reply(conn io.Writer, result any, failed *Error) error {
	if c, ok := conn.(net.Conn); ok {
		if err := c.SetWriteDeadline(time.Now().Add(replyTime)); err != nil {
			return err
		}
	}
	return json.NewEncoder(conn).Encode(reply{version, failed == nil, failed, result})
}

// readLine reads a line and nothing beyond it, which may be a key: byte by byte. A
// line that is too long is given as far as it was read.
func readLine(r io.Reader) ([]byte, error) {
	var line []byte
	for next := make([]byte, 1); len(line) <= maxRequest; {
		if _, err := io.ReadFull(r, next); err != nil {
			return nil, err
		}
		if next[0] == '\n' {
			break
		}
		line = append(line, next[0])
	}
	return line, nil
}

// do does what a line asks for. What follows the line belongs to it.
func (s *server) do(line []byte, in io.Reader) (any, *Error) {
	if len(line) > maxRequest {
		return nil, failure(CodeMalformed, "the request is longer than %d bytes", maxRequest)
	}
	r := new(request)
	err := json.Unmarshal(line, r)
	switch {
	case r.Version > version: // of which the rest may be of other types
		return nil, failure(CodeVersion, "version %d; the highest known is %d", r.Version, version)
	case err != nil:
		return nil, failure(CodeMalformed, "%v", err)
	case r.Version < 1:
		return nil, failure(CodeMalformed, "no version")
	}
	operation, ok := operations[r.Operation]
	if !ok {
		return nil, failure(CodeOperation, "unknown operation %q", r.Operation)
	}
	return operation(s, r, in)
}

func (s *server) status() Status {
	st := Status{VM: s.VM, PID: os.Getpid(), Since: s.since, Release: s.release, Directory: s.Directory}
	for _, bound := range nbd.LatencyBounds() {
		st.LatencyBounds = append(st.LatencyBounds, bound.Seconds())
	}
	for _, d := range s.disks {
		n := d.nbd.Stats()[0]
		st.Disks = append(st.Disks, DiskStatus{
			Node: d.Node, Socket: s.socketOf(d), ReadOnly: d.ReadOnly,
			BytesRead: n.BytesRead, BytesWritten: n.BytesWritten, Connections: n.Connections,
			Operations: operationsOf(n.Operations),
		})
	}
	return st
}

func operationsOf(all []nbd.OperationStats) (out []Operation) {
	for _, o := range all {
		out = append(out, Operation{o.Operation, o.Requests, uint64(o.Time), o.Errors})
	}
	return out
}

// rewrap wraps the key of a disk under the KEK that follows the request. The
// record's MAC covers no recipients, and so stays.
func (s *server) rewrap(r *request, in io.Reader) (any, *Error) {
	kek, err := secret.New(kekSize)
	if err != nil {
		return nil, failure(CodeFailed, "%v", err)
	}
	defer kek.Destroy()
	if _, err := io.ReadFull(in, kek.Bytes()); err != nil {
		return nil, failure(CodeMalformed, "%d bytes of key-encryption key have to follow: %v", kekSize, err)
	}
	for _, d := range s.disks {
		if d.Node == r.Node {
			return d.rewrap(r.Alias, r.KEKID, kek)
		}
	}
	return nil, failure(CodeNoDisk, "no disk %q", r.Node)
}

func (d *disk) rewrap(alias, kekID string, kek *secret.Buffer) (any, *Error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.key.Len() == 0 {
		return nil, failure(CodeStopping, "the key is wiped: the server stops")
	}
	wrapped, err := dek.Wrap(d.key, kek, d.Record.binding(kekID))
	if err != nil {
		return nil, failure(CodeFailed, "%v", err)
	}
	recipient := Recipient{Alias: alias, KEKID: kekID, WrappedKey: wrapped}
	would := d.Disk
	would.Record.Recipients = []Recipient{recipient}
	if err := would.check(); err != nil {
		return nil, failure(CodeMalformed, "%v", err)
	}
	return recipient, nil
}

// checkPeer refuses processes of other users than root and our own.
func checkPeer(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	failed := raw.Control(func(fd uintptr) { peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(failed, err); err != nil {
		return err
	}
	if !trusted(peer.Uid) {
		return fmt.Errorf("a process of user %d is at the other end", peer.Uid)
	}
	return nil
}

// trusted tells whether a user is root or our own.
func trusted(uid uint32) bool { return uid == 0 || int(uid) == os.Geteuid() }
