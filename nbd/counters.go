package nbd

import (
	"sync/atomic"
	"time"
)

// OperationStats is what became of the requests for one operation since the server was
// made, as far as they have been answered.
type OperationStats struct {
	// Operation is the command's name in the specification, in lower case: "read",
	// "write_zeroes". All that is no command is "unknown".
	Operation string
	// Requests has how many took at most each of LatencyBounds, but longer than the one
	// before, and last how many took longer than all.
	Requests []uint64
	// Time is what all of them took together, from when the server took a request to
	// when the reply to it was ready.
	Time time.Duration
	// Errors has how many failed, by the error value that the client was told: "EIO".
	Errors map[string]uint64
}

// LatencyBounds gives the bounds by which requests are counted.
func LatencyBounds() []time.Duration { return latencyBounds[:] }

var latencyBounds = [...]time.Duration{
	50 * time.Microsecond, 100 * time.Microsecond, 250 * time.Microsecond, 500 * time.Microsecond,
	time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond,
	50 * time.Millisecond, 250 * time.Millisecond, time.Second, 10 * time.Second,
}

// commandNames are the names of commands. The place of cmdDisc, which has no reply, is
// for what is no command.
var commandNames = [...]string{
	cmdRead: "read", cmdWrite: "write", cmdDisc: "unknown", cmdFlush: "flush", cmdTrim: "trim",
	cmdCache: "cache", cmdWriteZeroes: "write_zeroes", cmdBlockStatus: "block_status",
}

// failures are the error values that clients are told, and their names.
var failures = [...]struct {
	code errno
	name string
}{
	{ePerm, "EPERM"}, {eIO, "EIO"}, {eInval, "EINVAL"}, {eNoSpc, "ENOSPC"},
	{eOverflow, "EOVERFLOW"}, {eNotSup, "ENOTSUP"}, {eShutdown, "ESHUTDOWN"},
}

// counters count the requests to an export, by command.
type counters [len(commandNames)]counter

type counter struct {
	took     [len(latencyBounds) + 1]atomic.Uint64
	nanos    atomic.Uint64
	failures [len(failures)]atomic.Uint64
}

// started is when the process was; only times since then are of use.
var started = time.Now()

// sinceStart is the time that requests are measured by. It costs half of time.Now.
func sinceStart() time.Duration { return time.Since(started) }

// done counts a request whose reply is ready.
func (c *counters) done(r request, e errno) {
	n := c.of(r)
	took := sinceStart() - r.begun
	i := 0
	for i < len(latencyBounds) && took > latencyBounds[i] {
		i++
	}
	n.took[i].Add(1)
	n.nanos.Add(uint64(took))
	if e != 0 {
		n.failed(e)
	}
}

func (c *counters) of(r request) *counter {
	if int(r.asked) >= len(commandNames) {
		return &c[cmdDisc]
	}
	return &c[r.asked]
}

func (n *counter) failed(e errno) {
	for i := range failures {
		if failures[i].code == e {
			n.failures[i].Add(1)
		}
	}
}

// stats tells of the operations that there were.
func (c *counters) stats() []OperationStats {
	var all []OperationStats
	for i := range c {
		if s, used := c[i].stats(); used {
			s.Operation = commandNames[i]
			all = append(all, s)
		}
	}
	return all
}

func (n *counter) stats() (s OperationStats, used bool) {
	s = OperationStats{Requests: make([]uint64, len(n.took)), Time: time.Duration(n.nanos.Load()), Errors: map[string]uint64{}}
	for i := range n.took {
		s.Requests[i] = n.took[i].Load()
		used = used || s.Requests[i] > 0
	}
	for i := range failures {
		if count := n.failures[i].Load(); count > 0 {
			s.Errors[failures[i].name] = count
		}
	}
	return s, used
}
