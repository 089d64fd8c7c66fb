package main

import (
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"
)

// before stands in front of a key manager, and does something before the first connection
// to it is made.
func before(t *testing.T, address string, do func()) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for once := sync.OnceFunc(do); ; {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			once()
			go forward(conn, address)
		}
	}()
	return l.Addr().String()
}

func forward(conn net.Conn, address string) {
	defer conn.Close()
	to, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	go func() {
		defer to.Close()
		_, _ = io.Copy(to, conn)
	}()
	_, _ = io.Copy(conn, to)
}

// TestDestroyRacesWithEncrypt: a VM that comes to need a key while destroy-key is at work
// does not lose it.
func TestDestroyRacesWithEncrypt(t *testing.T) {
	t.Parallel()
	keys, datastore := newHome(t), t.TempDir()
	address := keys.serveKMS()
	path := filepath.Join(datastore, "disk.img")
	smallImage(t, path)
	id := parseJSON[keyResult](t, keys.ok("kms", "create-key", "--json")).ID
	other := emptyHome(t).client(keys, datastore, address)
	meanwhile := before(t, address, func() {
		other.run("encrypt", path, "--kek", id)
		other.run("kms", "revoke-key", id)
	})
	h := emptyHome(t).client(keys, datastore, meanwhile)
	h.fails(exitFailure, []string{path + ".vmx"}, "kms", "destroy-key", id, "--yes")
	other.ok("decrypt", path)
}
