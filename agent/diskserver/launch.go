package diskserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// Launch starts cmd, a "vmcrypt disk-server", as the disk server of s, in a session of
// its own. It returns when the disks are served, or with the reason why they are not,
// and then the process is gone. It waits for the process in the background, as cmd.Wait
// does, and for its start no longer than 30 s.
func Launch(ctx context.Context, cmd *exec.Cmd, s *Start) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	l, err := newLaunch(cmd, s)
	if err != nil {
		return err
	}
	defer l.close()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the disk server: %w", err)
	}
	if s.Started != nil { // before its number can be another's
		s.Started(cmd.Process.Pid)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	l.closeTheirs()
	err = l.talk(ctx, s)
	if err == nil {
		return nil
	}
	_ = cmd.Process.Kill() // fails if it has ended
	if how := <-ended; errors.Is(err, io.EOF) {
		err = fmt.Errorf("it ended: %w", how)
	}
	return fmt.Errorf("start the disk server: %w", err)
}

// launch is what passes between the starter and the process.
type launch struct {
	start, answer *os.File   // the starter's ends of the pipes
	theirs        []*os.File // the process's, and the disks
}

func newLaunch(cmd *exec.Cmd, s *Start) (l *launch, err error) {
	l = new(launch)
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if err := l.openPipes(); err != nil {
		return nil, err
	}
	for _, d := range s.Disks {
		file, err := d.File.Handover()
		if err != nil {
			return nil, err
		}
		l.theirs = append(l.theirs, file)
	}
	cmd.ExtraFiles = l.theirs
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	cmd.SysProcAttr.Setsid = true
	return l, nil
}

func (l *launch) openPipes() error {
	start, send, err := os.Pipe()
	if err != nil {
		return err
	}
	l.start, l.theirs = send, append(l.theirs, start)
	hear, answer, err := os.Pipe()
	if err != nil {
		return err
	}
	l.answer, l.theirs = hear, append(l.theirs, answer)
	return nil
}

// talk sends the start message and waits for the answer.
func (l *launch) talk(ctx context.Context, s *Start) error {
	interrupted := context.AfterFunc(ctx, func() {
		_ = l.start.SetDeadline(time.Unix(1, 0)) // these fail for closed ones
		_ = l.answer.SetDeadline(time.Unix(1, 0))
	})
	sent := s.send(l.start)
	l.start.Close() // its end is that of the message
	// A process that refuses the message says so, and takes no more of it.
	heard := l.hear()
	switch {
	case !interrupted() && errors.Is(errors.Join(sent, heard), os.ErrDeadlineExceeded):
		return ctx.Err()
	case heard != nil:
		return heard
	}
	return sent
}

// hear gives the process's answer: nil if it is ready, io.EOF if it ended.
func (l *launch) hear() error {
	var a answer
	switch err := json.NewDecoder(io.LimitReader(l.answer, maxRequest)).Decode(&a); {
	case err != nil:
		return err
	case a.Error != nil:
		return a.Error
	case !a.Ready:
		return errors.New("it neither is ready nor says why")
	}
	return nil
}

func (l *launch) close() {
	l.closeTheirs()
	for _, f := range []*os.File{l.start, l.answer} {
		f.Close() // fails for nil, too
	}
}

func (l *launch) closeTheirs() {
	for _, f := range l.theirs {
		f.Close()
	}
	l.theirs = nil
}
