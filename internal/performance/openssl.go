package main

import (
	"bufio"
	"context"
	_ "embed" // the program that uses OpenSSL
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/vmcrypt/vmcrypt/blockcrypt"
	"github.com/vmcrypt/vmcrypt/internal/measure"
)

//go:embed openssl/sample.c
var openSSLProgram []byte

// openSSL is a running program that takes samples of OpenSSL's AES-XTS.
type openSSL struct {
	version string
	cmd     *exec.Cmd
	stdin   io.WriteCloser
	stdout  *bufio.Reader
}

// startOpenSSL compiles the program, starts it on a CPU, and looks whether it
// gives the same ciphertext.
func startOpenSSL(ctx context.Context, cpu int) (*openSSL, error) {
	folder, err := os.MkdirTemp("", "vmcrypt-openssl-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(folder) // it runs on
	program := filepath.Join(folder, "sample")
	if err := os.WriteFile(program+".c", openSSLProgram, 0o600); err != nil {
		return nil, err
	}
	if _, err := run(ctx, []string{"gcc", "-O2", "-o", program, program + ".c", "-lcrypto"}); err != nil {
		return nil, err
	}
	o := &openSSL{cmd: exec.CommandContext(ctx, program, fmt.Sprint(cpu))} //nolint:gosec // compiled above
	if err := o.start(); err != nil {
		return nil, err
	}
	return o, o.check()
}

func (o *openSSL) start() (err error) {
	o.cmd.Stderr = os.Stderr
	if o.stdin, err = o.cmd.StdinPipe(); err != nil {
		return err
	}
	stdout, err := o.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	o.stdout = bufio.NewReader(stdout)
	return o.cmd.Start()
}

// check reads what the program introduces itself with.
func (o *openSSL) check() error {
	version, err := o.readLine()
	if err != nil {
		return err
	}
	got, err := o.readLine()
	if err != nil {
		return err
	}
	want, err := lastBlocks()
	if err == nil && got != want {
		err = fmt.Errorf("%s encrypted to %s, we to %s", version, got, want)
	}
	o.version = version
	return err
}

func (o *openSSL) readLine() (string, error) {
	line, err := o.stdout.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("the program that samples OpenSSL ended: %w", err)
	}
	return strings.TrimSpace(line), nil
}

// lastBlocks is what the program has to introduce itself with.
func lastBlocks() (string, error) {
	text := ""
	for _, sectorSize := range sectorSizes {
		c, err := blockcrypt.Engine{}.NewCipher(benchKey(), sectorSize)
		if err != nil {
			return "", err
		}
		p := make([]byte, inCacheSize)
		if err := c.Encrypt(p, p, 0); err != nil {
			return "", err
		}
		text += hex.EncodeToString(p[len(p)-16:])
	}
	return text, nil
}

// benchKey is the bytes from 0 to 63.
func benchKey() []byte {
	key := make([]byte, blockcrypt.KeySize)
	for i := range key {
		key[i] = byte(i)
	}
	return key
}

// sampler asks for how long it takes to go through some bytes, some times.
func (o *openSSL) sampler(op string, sectorSize, bytes, passes int) measure.Sampler {
	return func() (time.Duration, error) {
		if _, err := fmt.Fprintln(o.stdin, op, sectorSize, bytes, passes); err != nil {
			return 0, err
		}
		line, err := o.readLine()
		if err != nil {
			return 0, err
		}
		var ns int64
		if _, err := fmt.Sscan(line, &ns); err != nil {
			return 0, err
		}
		return time.Duration(ns), nil
	}
}

// close ends the program, which has no more to read.
func (o *openSSL) close() error {
	return errors.Join(o.stdin.Close(), o.cmd.Wait())
}
