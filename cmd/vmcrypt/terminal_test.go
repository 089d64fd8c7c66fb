package main

import (
	"bytes"
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// terminal makes a terminal, and what a person's hands are to it.
func terminal(t *testing.T) (end, hands *os.File) {
	t.Helper()
	hands, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("this host has no terminals: %v", err)
	}
	t.Cleanup(func() { hands.Close() })
	fd := int(hands.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	end, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end.Close() })
	return end, hands
}

// typing runs vmcrypt at a terminal at which the lines are typed.
func (h *home) typing(lines string, args ...string) result {
	h.t.Helper()
	end, hands := terminal(h.t)
	if _, err := hands.WriteString(lines); err != nil {
		h.t.Fatal(err)
	}
	cmd := h.command(h.t.Context(), args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = end, &stdout, &stderr
	_ = cmd.Run() // the exit code tells
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}
