package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/user"
	"slices"
	"strconv"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Groups are the names of the unix groups whose members may use the agent. One that
// does not exist has no members.
type Groups struct {
	View    string // may look
	Operate string // may look, unlock and lock
	Admin   string // may look, and what issues keys, once there is such a thing
}

// role is what a client may do.
type role int

const (
	stranger role = iota
	viewer
	operator
)

// access are the numbers of the Groups.
type access struct{ view, operate, admin uint32 }

// noGroup is the number of a group that does not exist: none has it.
const noGroup = ^uint32(0)

func (g Groups) resolve() access {
	return access{groupID(g.View), groupID(g.Operate), groupID(g.Admin)}
}

// groupID gives the number of a group, which may be its name.
func groupID(name string) uint32 {
	number := name
	if group, err := user.LookupGroup(name); err == nil {
		number = group.Gid
	}
	id, err := strconv.ParseUint(number, 10, 32)
	if err != nil {
		slog.Warn("there is no such group: nobody but root has its rights", "group", name)
		return noGroup
	}
	return uint32(id)
}

// peer is the process at the other end of a connection.
type peer struct {
	uid, pid int
	role     role
}

func (a access) peerOf(conn *net.UnixConn) (p peer, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return peer{}, err
	}
	controlErr := raw.Control(func(fd uintptr) {
		var cred *unix.Ucred
		if cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err != nil {
			return
		}
		var groups []uint32
		if groups, err = peerGroups(int(fd)); err == nil {
			p = peer{int(cred.Uid), int(cred.Pid), a.role(cred.Uid, append(groups, cred.Gid))}
		}
	})
	return p, errors.Join(controlErr, err)
}

func (a access) role(uid uint32, groups []uint32) role {
	switch {
	case uid == 0, int(uid) == os.Geteuid(), slices.Contains(groups, a.operate):
		return operator
	case slices.Contains(groups, a.view), slices.Contains(groups, a.admin):
		return viewer
	}
	return stranger
}

// maxGroups is how many supplementary groups a Linux process can have.
const maxGroups = 65536

// peerGroups gives the supplementary groups that the peer had when it connected:
// SO_PEERGROUPS of unix(7), for which x/sys/unix has no function.
func peerGroups(fd int) ([]uint32, error) {
	for n := 64; n <= maxGroups; n *= 32 {
		groups := make([]uint32, n)
		size := uint32(n * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		if errno == 0 {
			return groups[:size/4], nil
		}
		if errno != unix.ERANGE {
			return nil, os.NewSyscallError("getsockopt", errno)
		}
	}
	return nil, errors.New("a peer with more groups than Linux allows")
}

// gate lets clients connect, but not all the time somebody who may do nothing.
type gate struct {
	net.Listener
	access access

	mu        sync.Mutex
	strangers map[int]int // connections, by user
}

// maxStrangers is how many connections a user without any rights can have.
const maxStrangers = 8

func newGate(l net.Listener, a access) *gate {
	return &gate{Listener: l, access: a, strangers: map[int]int{}}
}

// visit is a connection whose peer is known.
type visit struct {
	net.Conn
	peer  peer
	leave func()
}

func (v *visit) Close() error {
	v.leave()
	return v.Conn.Close()
}

// Accept waits for a client that may connect.
func (g *gate) Accept() (net.Conn, error) {
	for {
		conn, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if v := g.enter(conn); v != nil {
			return v, nil
		}
		conn.Close()
	}
}

func (g *gate) enter(conn net.Conn) *visit {
	p, err := g.access.peerOf(conn.(*net.UnixConn))
	if err != nil {
		slog.Warn("a client can't be identified", "error", err)
		return nil
	}
	if p.role != stranger {
		return &visit{conn, p, func() {}}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.strangers[p.uid] >= maxStrangers {
		return nil
	}
	g.strangers[p.uid]++
	return &visit{conn, p, sync.OnceFunc(func() { g.left(p.uid) })}
}

func (g *gate) left(uid int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.strangers[uid]--; g.strangers[uid] == 0 {
		delete(g.strangers, uid)
	}
}

type peerKey struct{}

func withPeer(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, peerKey{}, conn.(*visit).peer)
}

// peerIn is who sent a request.
func peerIn(ctx context.Context) peer { return ctx.Value(peerKey{}).(peer) }

// ErrDenied is the error for who may not do what it asks for.
var ErrDenied = errors.New("permission denied")

// may refuses who has not enough rights.
func (p peer) may(g Groups, need role) error {
	if p.role >= need {
		return nil
	}
	group := g.Operate
	if need == viewer {
		group = g.View
	}
	return fmt.Errorf("%w: user %d is not in the group %s", ErrDenied, p.uid, group)
}
