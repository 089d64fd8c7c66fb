package main

import (
	"bytes"
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
	return confirmed(first)
}

// confirmed has a passphrase typed once more, and destroys it if that differs.
func confirmed(first *secret.Buffer) (*secret.Buffer, error) {
	second, err := prompt("the same again: ")
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
		return prompt("passphrase of the backup: ")
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

func prompt(text string) (*secret.Buffer, error) {
	fmt.Fprint(os.Stderr, text)
	line, err := term.ReadPassword(int(os.Stdin.Fd()))
	fmt.Fprintln(os.Stderr)
	if err != nil {
		return nil, fmt.Errorf("read the passphrase: %w", err)
	}
	return passphraseOf(line)
}

func readPassphrase(f *os.File) (*secret.Buffer, error) {
	buf := make([]byte, maxPassphrase+1)
	defer secret.Wipe(buf)
	n, err := io.ReadFull(f, buf)
	if err != nil && err != io.ErrUnexpectedEOF && err != io.EOF {
		return nil, fmt.Errorf("read the passphrase from %s: %w", f.Name(), err)
	}
	line, _, _ := bytes.Cut(buf[:n], []byte("\n"))
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
