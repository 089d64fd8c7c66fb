package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/vmcrypt/vmcrypt/internal/secret"
)

// maxPassphrase bounds a passphrase, in bytes.
const maxPassphrase = 4096

func passphraseFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "passphrase-file", Usage: "take the passphrase from the first line of `FILE`, \"-\" for standard input (default: ask for it)", TakesFile: true},
	}
}

// newPassphrase gets a passphrase that protects something from now on: who types
// it types it twice.
func newPassphrase(c *cli.Context) (*secret.Buffer, error) {
	first, err := askPassphrase(c)
	if err != nil || !typed(c) {
		return first, err
	}
	return confirmed(c.Context, first)
}

// confirmed has a passphrase typed once more, and destroys it if that differs.
func confirmed(ctx context.Context, first *secret.Buffer) (*secret.Buffer, error) {
	second, err := prompt(ctx, "the same again: ")
	if err != nil {
		first.Destroy()
		return nil, err
	}
	defer second.Destroy()
	if !first.Equal(second) {
		first.Destroy()
		return nil, errors.New("the two passphrases differ")
	}
	return first, nil
}

// askPassphrase gets a passphrase from the file that a flag names, from the
// terminal or, where standard input is none, from its first line.
func askPassphrase(c *cli.Context) (*secret.Buffer, error) {
	if typed(c) {
		return prompt(c.Context, "passphrase of the backup: ")
	}
	file := c.String("passphrase-file")
	if file == "" {
		file = "-"
	}
	return passphraseFrom(file)
}

// typed says whether the passphrase comes from a person at the terminal.
func typed(c *cli.Context) bool {
	return c.String("passphrase-file") == "" && term.IsTerminal(int(os.Stdin.Fd()))
}

// prompt reads a line from the terminal without showing it. When ctx ends, it
// gives the terminal back as it was and leaves the reading to the end of the
// process.
func prompt(ctx context.Context, text string) (*secret.Buffer, error) {
	in := int(os.Stdin.Fd())
	before, err := term.GetState(in)
	if err != nil {
		return nil, fmt.Errorf("read the passphrase: %w", err)
	}
	fmt.Fprint(os.Stderr, text)
	defer fmt.Fprintln(os.Stderr)
	read := make(chan error, 1)
	var line []byte
	go func() {
		var err error
		line, err = term.ReadPassword(in)
		read <- err
	}()
	select {
	case err = <-read:
	case <-ctx.Done():
		return nil, errors.Join(ctx.Err(), term.Restore(in, before))
	}
	if err != nil {
		return nil, fmt.Errorf("read the passphrase: %w", err)
	}
	return passphraseOf(line)
}

// readPassphrase reads up to the first line feed, and not a byte more.
func readPassphrase(f *os.File) (*secret.Buffer, error) {
	line := make([]byte, 0, maxPassphrase+1)
	defer func() { secret.Wipe(line[:cap(line)]) }()
	for len(line) < cap(line) {
		n, err := f.Read(line[len(line) : len(line)+1])
		if err != nil && err != io.EOF {
			return nil, fmt.Errorf("read the passphrase from %s: %w", f.Name(), err)
		}
		if n == 0 || line[:len(line)+1][len(line)] == '\n' {
			break
		}
		line = line[:len(line)+1]
	}
	return passphraseOf(bytes.TrimSuffix(line, []byte("\r")))
}

func passphraseOf(line []byte) (*secret.Buffer, error) {
	if len(line) == 0 {
		return nil, errors.New("the passphrase is empty: type it, pipe it in, or name its file with --passphrase-file")
	}
	if len(line) > maxPassphrase {
		return nil, fmt.Errorf("the passphrase is longer than %d bytes", maxPassphrase)
	}
	return secret.Take(line)
}
