package main

import (
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"github.com/vmcrypt/vmcrypt/internal/config"
	"github.com/vmcrypt/vmcrypt/kek"
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

// TestDestroyWithoutTheDatastore: the folder of one that is not mounted is there, and empty.
func TestDestroyWithoutTheDatastore(t *testing.T) {
	t.Parallel()
	keys, datastore := newHome(t), t.TempDir()
	h := emptyHome(t).client(keys, datastore, keys.serveKMS())
	id := parseJSON[keyResult](t, h.ok("kms", "create-key", "--json")).ID
	h.ok("kms", "revoke-key", id)
	h.fails(exitFailure, []string{datastore, "not mounted"}, "kms", "destroy-key", id, "--yes")
	write(t, filepath.Join(datastore, "no VM"), nil)
	h.ok("kms", "destroy-key", id, "--yes")
}

// TestMayBeSame: aliases may lead to the same keys, by whatever names they call the servers.
func TestMayBeSame(t *testing.T) {
	t.Parallel()
	aliases := map[string]kek.Config{"a": {Servers: []kek.Server{{Address: "10.0.0.1:5696"}, {Address: "localhost:5696"}}}}
	for address, same := range map[string]bool{
		"localhost:5696": true, "LocalHost:5696": true, "127.0.0.1:5696": true, "10.0.0.1:5696": true,
		"127.0.0.1:5697": false, "10.0.0.2:5696": false, "no host:5696": true,
	} {
		aliases["b"] = kek.Config{Servers: []kek.Server{{Address: "10.0.0.3:5696"}, {Address: address}}}
		e := &environment{config: &config.Config{Aliases: aliases}}
		if got := e.mayBeSame(t.Context(), "b", "a"); got != same {
			t.Errorf("%s: %v", address, got)
		}
	}
	if e := (&environment{config: &config.Config{Aliases: aliases}}); !e.mayBeSame(t.Context(), "unknown", "a") {
		t.Error("an alias that is not configured may lead anywhere")
	}
}
