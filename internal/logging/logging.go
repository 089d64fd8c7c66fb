// Package logging says how the log lines of vmcrypt's daemons look: one line an event, of
// key=value pairs, with values in quotes where they have spaces or line breaks in them.
//
//	slog.SetDefault(slog.New(logging.Handler(os.Stderr)))
package logging

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Handler writes to a file. Where systemd's journal is at its other end, a line begins
// with a priority (sd-daemon(3)), and has neither time nor level: the journal has both.
func Handler(f *os.File) slog.Handler {
	if isJournal(f, os.Getenv("JOURNAL_STREAM")) {
		return newJournal(f)
	}
	return slog.NewTextHandler(f, nil)
}

// isJournal tells whether a file is the stream whose device and inode systemd has put
// into the environment (systemd.exec(5)): children may have another standard error.
func isJournal(f *os.File, stream string) bool {
	var stat unix.Stat_t
	if stream == "" || unix.Fstat(int(f.Fd()), &stat) != nil {
		return false
	}
	return stream == fmt.Sprintf("%d:%d", stat.Dev, stat.Ino)
}

// journal is a handler that puts the priority before each line.
type journal struct {
	slog.Handler // writes to line
	line         *line
}

// line is a line to be written, with what comes before it.
type line struct {
	mu     sync.Mutex
	out    io.Writer
	prefix string
}

func newJournal(out io.Writer) *journal {
	l := &line{out: out}
	return &journal{slog.NewTextHandler(l, &slog.HandlerOptions{ReplaceAttr: withoutTime}), l}
}

func withoutTime(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey) {
		return slog.Attr{}
	}
	return a
}

// Write writes a line with what comes before it at once: several processes may write to
// one stream.
func (l *line) Write(p []byte) (int, error) {
	n, err := l.out.Write(append([]byte(l.prefix), p...))
	return max(n-len(l.prefix), 0), err
}

// Handle writes a record as one line.
func (j *journal) Handle(ctx context.Context, r slog.Record) error {
	j.line.mu.Lock()
	defer j.line.mu.Unlock()
	j.line.prefix = priority(r.Level)
	return j.Handler.Handle(ctx, r)
}

// WithAttrs is as slog.Handler has it.
func (j *journal) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &journal{j.Handler.WithAttrs(attrs), j.line}
}

// WithGroup is as slog.Handler has it.
func (j *journal) WithGroup(name string) slog.Handler {
	return &journal{j.Handler.WithGroup(name), j.line}
}

// priority is that of syslog(3), as sd-daemon(3) writes it.
func priority(level slog.Level) string {
	switch {
	case level >= slog.LevelError:
		return "<3>"
	case level >= slog.LevelWarn:
		return "<4>"
	case level >= slog.LevelInfo:
		return "<6>"
	}
	return "<7>"
}
