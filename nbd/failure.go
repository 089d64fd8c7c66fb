package nbd

import (
	"errors"
	"io/fs"
	"log/slog"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// trouble keeps a disk that fails from filling the log: a guest tries again and
// again.
type trouble struct {
	last   atomic.Int64 // when it was logged, in Unix nanoseconds
	silent atomic.Int64 // failures since that were not
}

// logInterval is between two messages on the same disk.
const logInterval = time.Second

// failed logs that the disk could not do a request and says what the client is
// told.
func (e *export) failed(what string, r request, err error) errno {
	code := errorCode(err)
	now, last := time.Now().UnixNano(), e.trouble.last.Load()
	if now-last < int64(logInterval) || !e.trouble.last.CompareAndSwap(last, now) {
		e.trouble.silent.Add(1)
		return code
	}
	slog.Error("nbd: the disk failed", "export", e.Name, "operation", what,
		"offset", r.offset, "length", r.length, "error", err, "unlogged", e.trouble.silent.Swap(0))
	return code
}

// errStopping is the error of a long request amid which the server ends.
var errStopping = errors.New("the server is about to end")

// errorCode gives the error value for what a disk said. Only few values may be
// sent (Spec, "Error values").
func errorCode(err error) errno {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EFBIG):
		return eNoSpc
	case errors.Is(err, fs.ErrPermission):
		return ePerm
	case errors.Is(err, fs.ErrClosed), errors.Is(err, errStopping):
		return eShutdown
	}
	return eIO
}

// name is what the log calls the command.
func (r request) name() string {
	switch r.command {
	case cmdFlush:
		return "flush"
	case cmdCache:
		return "cache"
	case cmdTrim:
		return "trim"
	}
	return "write zeroes"
}
