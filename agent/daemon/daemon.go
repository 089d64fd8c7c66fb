// Package daemon is the host agent: it unlocks the disks of virtual machines when it is
// asked to, has each VM's served by a process of its own (package diskserver), and knows
// them again after it was restarted. Its clients are those of package api.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"github.com/vmcrypt/vmcrypt/agent"
	"github.com/vmcrypt/vmcrypt/agent/diskserver"
	"github.com/vmcrypt/vmcrypt/internal/audit"
	"github.com/vmcrypt/vmcrypt/internal/listen"
)

// Config is what an agent needs to know.
type Config struct {
	Release    string   // the program's version
	Socket     string   // the path to listen at; disk servers have theirs in vms beside it
	State      string   // the folder of the audit log and of the status page's token
	HTTP       string   // where the status page is, as listen.CheckLocal takes it; "" for none
	Datastores []string // absolute paths: nothing outside of them is opened
	Groups     Groups
	Metrics    string           // where they are scraped, as listen.CheckLocal takes it; "" for nowhere
	SocketUser diskserver.User  // the user that QEMU runs as
	Host       *agent.Host      // with Keys and Turns
	Aliases    []Alias          // of the key managers, as the configuration has them
	DiskServer func() *exec.Cmd // "vmcrypt disk-server"
	// Explain tells what an error means to a program, and what its user can do.
	Explain func(error) (exitCode int, hint string)
}

// ErrRunning is the error where another agent has the socket.
var ErrRunning = errors.New("an agent is running already")

// daemon is an agent that runs.
type daemon struct {
	Config
	access access
	own    peer // the agent itself
	since  time.Time
	boot   string // this run of the kernel
	folder string // of the disk servers' directories
	audit  *audit.Log
	health *health
	scans  *semaphore.Weighted // lets one scan run at a time, however many clients ask for one

	metrics *meters

	mu       sync.Mutex
	machines map[string]*machine // by the paths of their descriptors
	unread   map[string]error    // by datastore: what kept the last scan from reading it to its end

	background sync.WaitGroup
	ctx        context.Context // ends with the agent
	unlocked   chan struct{}   // tells forget that keys were in memory
}

// Run is an agent until ctx ends. It calls ready when it listens. Disk servers go on
// when it has returned.
func Run(ctx context.Context, c Config, ready func()) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	d, err := newDaemon(ctx, c)
	if err != nil {
		return err
	}
	lock, err := d.claim()
	if err != nil {
		return err
	}
	defer lock.Close()
	if d.audit, err = audit.Open(c.State, audit.Head{}); err != nil {
		return err
	}
	defer d.audit.Close()
	defer d.background.Wait()
	defer stop()
	d.background.Go(d.forget)
	d.background.Go(d.keepAsking)
	if err := d.adopt(); err != nil {
		return err
	}
	l, err := d.listen()
	if err != nil {
		return err
	}
	d.serveMetrics()
	d.openPage()
	ready()
	return d.serve(l)
}

func newDaemon(ctx context.Context, c Config) (*daemon, error) {
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	d := &daemon{
		Config: c, access: c.Groups.resolve(), own: peer{uid: os.Geteuid(), pid: os.Getpid()}, since: time.Now().UTC(),
		boot: boot, folder: folderOf(c.Socket),
		health: newHealth(c.Aliases), scans: semaphore.NewWeighted(1), machines: map[string]*machine{}, unread: map[string]error{},
		ctx: ctx, unlocked: make(chan struct{}, 1),
	}
	d.metrics = newMeters(d)
	d.Host = d.metrics.observed(d.Host)
	return d, d.checkPaths()
}

// checkPaths refuses places at which there can be no sockets.
func (d *daemon) checkPaths() error {
	longest := filepath.Join(d.directoryOf(""), "nvme15:15.sock")
	for _, path := range []string{d.Socket, longest} {
		if len(path) > listen.MaxPath {
			return fmt.Errorf("the socket %s would have a path of %d bytes, and it may have %d: configure a shorter path for that of the agent",
				path, len(path), listen.MaxPath)
		}
	}
	return nil
}

// claim makes the agent's folders, and keeps other agents away from them until the
// file is closed.
func (d *daemon) claim() (*os.File, error) {
	if err := d.makeFolders(); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(d.Socket+".lock", os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fmt.Errorf("%w, and has %s", ErrRunning, d.Socket)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// makeFolders makes the agent's folders. Who uses sockets has to get there; what is in
// the state is nobody's business.
func (d *daemon) makeFolders() error {
	defer unix.Umask(unix.Umask(0o022))
	if err := os.MkdirAll(d.folder, 0o755); err != nil { //nolint:gosec // as is said above
		return err
	}
	var stat unix.Stat_t
	if err := unix.Lstat(d.folder, &stat); err != nil {
		return err
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFDIR || int(stat.Uid) != d.own.uid || stat.Mode&0o022 != 0 {
		return fmt.Errorf("%s is not a folder that user %d alone can change: others could put sockets there", d.folder, d.own.uid)
	}
	return os.MkdirAll(d.State, 0o700)
}

// listen makes the agent's socket, in place of that of an agent that is no more. All
// users may connect, to be told in words what they may not do.
func (d *daemon) listen() (net.Listener, error) {
	l, err := listen.Private(d.ctx, d.Socket)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(d.Socket, 0o666); err != nil { //nolint:gosec // as is said above
		return nil, errors.Join(err, l.Close())
	}
	return newGate(l, d.access), nil
}

// Limits of what clients send, and of how long they take.
const (
	maxRequest  = 64 << 10 // bytes
	requestTime = 10 * time.Second
	idleTime    = 2 * time.Minute
	endTime     = 10 * time.Second // for requests under way when the agent ends
)

func (d *daemon) serve(l net.Listener) error {
	s := &http.Server{
		Handler: d.routes(), ConnContext: withPeer, ErrorLog: slog.NewLogLogger(slog.Default().Handler(), slog.LevelWarn),
		ReadHeaderTimeout: requestTime, ReadTimeout: requestTime, IdleTimeout: idleTime, MaxHeaderBytes: maxRequest,
		// Who is amid an unlock when the agent ends gets an answer.
		BaseContext: func(net.Listener) context.Context { return context.WithoutCancel(d.ctx) },
	}
	ended := make(chan struct{})
	context.AfterFunc(d.ctx, func() {
		defer close(ended)
		ctx, cancel := context.WithTimeout(context.Background(), endTime)
		defer cancel()
		if s.Shutdown(ctx) != nil {
			s.Close()
		}
	})
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	<-ended
	return nil
}

// forget has the collector erase what is left of keys, soon after they were used:
// left alone, it would come by in minutes.
func (d *daemon) forget() {
	for {
		select {
		case <-d.unlocked:
			runtime.GC()
		case <-d.ctx.Done():
			return
		}
		select {
		case <-time.After(forgetPause):
		case <-d.ctx.Done():
		}
	}
}

// forgetPause keeps a thousand unlocks from collecting a thousand times.
const forgetPause = 100 * time.Millisecond

// usedKeys has forget run.
func (d *daemon) usedKeys() {
	select {
	case d.unlocked <- struct{}{}:
	default: // it is about to
	}
}
