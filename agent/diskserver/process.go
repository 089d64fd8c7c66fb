package diskserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmcrypt/vmcrypt/blockcrypt"
	"github.com/vmcrypt/vmcrypt/dek"
	"github.com/vmcrypt/vmcrypt/image"
	"github.com/vmcrypt/vmcrypt/internal/secret"
	"github.com/vmcrypt/vmcrypt/nbd"
)

// The descriptors that the process is started with.
const (
	startFD     = 3 // a pipe to read the start message from
	answerFD    = 4 // a pipe to write the answer to
	firstDiskFD = 5 // the disks' files, in the order of the start message
)

// startTime is how long the start message may take, and Launch waits for the answer.
const startTime = 30 * time.Second

// answer is what the starter hears, in a line of JSON: one of them.
type answer struct {
	Ready bool   `json:"ready,omitempty"`
	Error *Error `json:"error,omitempty"`
}

// server serves the disks of a VM.
type server struct {
	header
	release string
	since   time.Time
	disks   []*disk
	lock    *os.File // of Directory
	control net.Listener

	stop    context.CancelFunc // of run
	stopped chan struct{}      // closed when nothing is served and the keys are gone
	failed  []string           // on the way there
}

// disk is a disk being served.
type disk struct {
	Disk
	plain    *blockcrypt.Disk
	nbd      *nbd.Server
	listener net.Listener

	mu  sync.Mutex     // over key
	key *secret.Buffer // destroyed when the disk is closed
}

// Run is the whole life of a disk server's process, until ctx ends or its control
// socket hears a stop. Release is the program's version. The error is why it could
// not start or what failed at the end, a flush for instance.
func Run(ctx context.Context, release string) error {
	// It ends when asked to, not with a terminal or a peer.
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGPIPE)
	nbd.SpareProcessor()
	pipe, err := inherited(answerFD)
	if err != nil {
		return err
	}
	defer pipe.Close()
	s, err := start(release)
	if err != nil {
		tell(pipe, answer{Error: &Error{CodeFailed, err.Error()}}) //nolint:errcheck // it is returned, too
		return err
	}
	if err := tell(pipe, answer{Ready: true}); err != nil {
		// Nobody knows that the disks are unlocked.
		s.close()
		return fmt.Errorf("answer the starter: %w", err)
	}
	pipe.Close()
	return s.run(ctx)
}

func tell(pipe *os.File, a answer) error { return json.NewEncoder(pipe).Encode(a) }

// start does all that can fail, and confines the process.
func start(release string) (*server, error) {
	h, keys, err := receiveStart()
	if err != nil {
		return nil, err
	}
	defer destroyAll(keys) // but those that became a disk's
	s := &server{header: *h, release: release, since: time.Now().UTC(), stopped: make(chan struct{})}
	for i := range h.Disks {
		file := os.NewFile(uintptr(firstDiskFD+i), h.Disks[i].DataPath)
		if err := s.add(h.Disks[i], file, keys[i]); err != nil {
			s.close()
			return nil, fmt.Errorf("disk %s: %w", h.Disks[i].Node, err)
		}
		keys[i] = nil
	}
	if err := errors.Join(s.listen(), confine()); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func receiveStart() (*header, []*secret.Buffer, error) {
	pipe, err := inherited(startFD)
	if err != nil {
		return nil, nil, err
	}
	defer pipe.Close()
	if err := pipe.SetReadDeadline(time.Now().Add(startTime)); err != nil {
		return nil, nil, fmt.Errorf("start message: %w", err)
	}
	return receive(pipe)
}

// inherited gives a pipe of the starter, whose reads and writes may have deadlines.
func inherited(fd int) (*os.File, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil || stat.Mode&unix.S_IFMT != unix.S_IFIFO {
		return nil, fmt.Errorf("descriptor %d is not a pipe: the agent starts this, not people", fd)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("pipe from the starter: %w", err)
	}
	return os.NewFile(uintptr(fd), "pipe"), nil
}

// add opens the plaintext of a disk. The server owns file and key unless it fails.
func (s *server) add(d Disk, file *os.File, key *secret.Buffer) error {
	plain, err := s.open(&d, file, key)
	if err != nil {
		return err
	}
	server, err := nbd.New(nbd.Export{Name: d.Node, Description: s.VM.Name, Disk: plain, ReadOnly: d.ReadOnly})
	if err != nil {
		return errors.Join(err, plain.Close())
	}
	s.disks = append(s.disks, &disk{Disk: d, plain: plain, nbd: server, key: key})
	return nil
}

// open gives the plaintext of a disk whose record is authentic.
func (s *server) open(d *Disk, file *os.File, key *secret.Buffer) (*blockcrypt.Disk, error) {
	if err := dek.VerifyMAC(d.Record.MAC, d.Record.dekState(), key); err != nil {
		return nil, err
	}
	with, err := engine(s.Engine)
	if err != nil {
		return nil, err
	}
	mode := image.ReadWrite
	if d.ReadOnly {
		mode = image.ReadOnly
	}
	storage, err := image.Adopt(file, d.Format, mode, d.Record.Size)
	if err != nil {
		return nil, err
	}
	cipher, err := with.NewCipher(key.Bytes(), d.Record.SectorSize)
	if err != nil {
		return nil, errors.Join(err, storage.Close())
	}
	plain, err := blockcrypt.NewDisk(storage, cipher, blockcrypt.HolePolicy(d.Record.Holes))
	if err != nil {
		cipher.Wipe()
		return nil, errors.Join(err, storage.Close())
	}
	return plain, nil
}

// run serves until ctx ends, a client has it stop, or a socket fails.
func (s *server) run(ctx context.Context) error {
	ctx, s.stop = context.WithCancel(ctx)
	defer s.stop()
	endControl := s.serveControl()
	failed := make([]error, len(s.disks)+1)
	var serving sync.WaitGroup
	for i, d := range s.disks {
		serving.Go(func() {
			defer s.stop()
			failed[i] = d.nbd.Serve(ctx, d.listener) // flushes at its end
		})
	}
	serving.Wait()
	failed[len(s.disks)] = s.close()
	s.end(failed)
	endControl()
	return errors.Join(failed...)
}

// end tells those who wait for the end what failed on the way.
func (s *server) end(failed []error) {
	s.failed = []string{}
	for _, err := range failed {
		if err != nil {
			s.failed = append(s.failed, err.Error())
		}
	}
	close(s.stopped)
}

// close wipes the keys, and lets go of disks, sockets and directory.
func (s *server) close() error {
	var failed []error
	for _, d := range s.disks {
		if d.listener != nil {
			d.listener.Close()
		}
		if err := d.close(); err != nil {
			failed = append(failed, fmt.Errorf("disk %s: %w", d.Node, err))
		}
	}
	if s.control != nil {
		s.control.Close()
	}
	s.lock.Close() // fails for nil, too
	return errors.Join(failed...)
}

func (d *disk) close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.key.Destroy()
	return d.plain.Close()
}

// socketOf is the path of a disk's socket.
func (s *server) socketOf(d *disk) string { return filepath.Join(s.Directory, d.socket()) }
