package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/vmcrypt/vmcrypt/blockcrypt"
	"github.com/vmcrypt/vmcrypt/image"
)

// childArgument makes this program do one of the things that it measures, or
// that would distort what it measures of others: Linux counts the memory of the
// parent as the child's.
const childArgument = "child"

// self is the command for a child.
func self(what, from, to string) []string {
	return []string{"/proc/self/exe", childArgument, what, from, to}
}

func child(what, from, to string) error {
	switch what {
	case "copy":
		return copyFile(from, to, image.Transform{})
	case "encrypt":
		return encryptFile(from, to)
	case "touch":
		return touch(from)
	case "serve":
		return serve(from, to)
	}
	return fmt.Errorf("a child can't %s", what)
}

// copyFile is the pipeline of vmcrypt's conversions, and no more.
func copyFile(from, to string, transform image.Transform) error {
	src, err := image.Open(from, image.Raw, image.ReadOnly)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := image.Create(to, src.Size())
	if err != nil {
		return err
	}
	defer dst.Close()
	if err := image.Copy(context.Background(), dst, src, transform, nil); err != nil {
		return err
	}
	return dst.Flush()
}

func encryptFile(from, to string) error {
	var key [blockcrypt.KeySize]byte
	_, _ = rand.Read(key[:]) // never fails
	engine, err := blockcrypt.Fastest()
	if err != nil {
		return err
	}
	c, err := engine.NewCipher(key[:], 512)
	if err != nil {
		return err
	}
	defer c.Wipe()
	return copyFile(from, to, blockcrypt.Encryption(c, blockcrypt.Preserve))
}

// touch uses as many bytes of memory once. A virtual machine may have given idle
// memory back to its host; whoever needs memory next would wait for it.
func touch(bytes string) error {
	n, err := strconv.Atoi(bytes)
	if err != nil {
		return err
	}
	memory, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	for at := 0; at < n; at += os.Getpagesize() {
		memory[at] = 1
	}
	return unix.Munmap(memory)
}
