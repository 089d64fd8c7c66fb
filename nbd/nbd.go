// Package nbd serves disks over the Network Block Device protocol, as QEMU, the
// Linux kernel and libnbd speak it.
//
//	server, err := nbd.New(nbd.Export{Name: "scsi0:0", Disk: disk})
//	listener, err := net.Listen("unix", "/run/vmcrypt/web01/scsi0:0")
//	err = server.Serve(ctx, listener)
//
// It is the fixed newstyle of the specification, which is proto.md of
// https://github.com/NetworkBlockDevice/nbd, with structured replies and the
// metadata context base:allocation, without TLS: docs/nbd.md tells what is spoken
// and what bounds there are. "Spec" in comments is that document.
//
// Each connection has a goroutine that answers all requests that have arrived,
// and sends the replies together. What would keep the others waiting is done
// beside it. Memory is bounded whatever clients send: large requests are served in
// pieces.
package nbd

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/vmcrypt/vmcrypt/image"
)

// Export is a disk and what clients are told of it.
type Export struct {
	// Name is what clients ask for, in UTF-8 and of at most 4096 bytes.
	Name string
	// Description is for people, under the same limits; it may be empty.
	Description string
	// Disk stays the caller's, who must not close it while it is served. Reads
	// from an image.NoWaitReader are much faster, and those of what is not in memory
	// from an image.BackgroundReader, which New opens as such.
	Disk image.Disk
	// ReadOnly refuses all that would change the disk.
	ReadOnly bool
}

// Stats is what happened to an export since its server was made.
type Stats struct {
	Export       string // its name
	BytesRead    uint64
	BytesWritten uint64 // zeroes and trims not counted
	Connections  int    // at the moment
	Operations   []OperationStats
}

// Server serves one or more exports.
type Server struct {
	exports []*export
	places  chan struct{} // one for each connection that may be open
	spare   chan *buffer  // for requests done beside their connection
	// negotiation is how long the first phase may take, grace how long at the
	// end clients may take for the replies to requests under way.
	negotiation, grace time.Duration
}

// export is an Export being served.
type export struct {
	Export
	size       uint64
	noWait     image.NoWaitReader     // nil if the disk has no such thing
	background image.BackgroundReader // likewise
	// write is WriteAt or WriteOver: what is to be written may change.
	write    func(p []byte, offset int64) (int, error)
	read     atomic.Uint64
	written  atomic.Uint64
	open     atomic.Int64 // connections
	counters counters
	trouble  trouble
}

const (
	// maxConnections is how many clients a server bears at once, those that
	// negotiate included. QEMU takes up to 16 for a disk.
	maxConnections = 32
	// maxBeside is how many requests a server does beside their connections, and
	// so the depth it brings to cold storage.
	maxBeside = 64
)

// New makes a server. It refuses names that the protocol can't bear or that
// come twice. A server of one disk has it as the default export, too.
func New(exports ...Export) (*Server, error) {
	s := &Server{
		places:      make(chan struct{}, maxConnections),
		spare:       make(chan *buffer, maxBeside),
		negotiation: 10 * time.Second,
		grace:       5 * time.Second,
	}
	for _, e := range exports {
		if err := s.add(e); err != nil {
			return nil, fmt.Errorf("export %q: %w", e.Name, err)
		}
	}
	for range maxBeside {
		s.spare <- new(buffer)
	}
	return s, nil
}

func (s *Server) add(e Export) error {
	for _, text := range []string{e.Name, e.Description} {
		if len(text) > maxString || !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
			return fmt.Errorf("name and description must be UTF-8 of at most %d bytes without NUL", maxString)
		}
	}
	if s.named(e.Name) != nil {
		return errors.New("the name is taken")
	}
	noWait, _ := e.Disk.(image.NoWaitReader)
	s.exports = append(s.exports, &export{
		Export: e, size: uint64(e.Disk.Size()), noWait: noWait, background: backgroundOf(e.Disk), write: writeOf(e.Disk),
	})
	return nil
}

func writeOf(disk image.Disk) func(p []byte, offset int64) (int, error) {
	if o, ok := disk.(image.OverWriter); ok {
		return o.WriteOver
	}
	return disk.WriteAt
}

// backgroundOf gives what reads in the background, nil if the disk can't.
func backgroundOf(disk image.Disk) image.BackgroundReader {
	if b, ok := disk.(image.BackgroundReader); ok && b.OpenBackground() {
		return b
	}
	return nil
}

// named gives the export of a name, nil if there is none.
func (s *Server) named(name string) *export {
	for _, e := range s.exports {
		if e.Name == name {
			return e
		}
	}
	return nil
}

// find gives the export that a client means. The empty name is the default
// export: the only one.
func (s *Server) find(name string) *export {
	if e := s.named(name); e != nil || name != "" || len(s.exports) != 1 {
		return e
	}
	return s.exports[0]
}

// Stats tells of each export, in the order given to New.
func (s *Server) Stats() []Stats {
	all := make([]Stats, len(s.exports))
	for i, e := range s.exports {
		all[i] = Stats{e.Name, e.read.Load(), e.written.Load(), int(e.open.Load()), e.counters.stats()}
	}
	return all
}
