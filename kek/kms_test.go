package kek

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"testing"

	"github.com/gemalto/kmip-go/kmip14"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
	"github.com/vmcrypt/vmcrypt/kms"
)

// TestKMS runs against the key manager that ships with vmcrypt, in this process
// and over TCP.
func TestKMS(t *testing.T) {
	dir := t.TempDir()
	home := kms.Home{Config: filepath.Join(dir, "config.yaml"), Dir: filepath.Join(dir, "kms")}
	if err := home.Init([]byte("# made by a test\n")); err != nil {
		t.Fatal(err)
	}
	config := Config{
		Servers:    []Server{{Address: "127.0.0.1:5696"}},
		ClientCert: filepath.Join(dir, "client.pem"),
		ClientKey:  filepath.Join(dir, "client.key"),
		CA:         filepath.Join(dir, "ca.pem"),
	}
	local, err := Open("local", config, home.Dial)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("in process", func(t *testing.T) { testKMS(t, local) })

	config.Servers[0].Address = serve(t, home)
	remote, err := Open("remote", config, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("over TCP", func(t *testing.T) { testKMS(t, remote) })
	t.Run("in process while it serves", func(t *testing.T) { testKMS(t, local) })
}

// serve runs the key manager until the test ends and returns its address.
func serve(t *testing.T, home kms.Home) string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ready, ended := make(chan string, 1), make(chan error, 1)
	go func() {
		ended <- home.Serve(ctx, "127.0.0.1:0", func(a net.Addr) { ready <- a.String() })
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	select {
	case address := <-ready:
		return address
	case err := <-ended:
		t.Fatal(err)
		return ""
	}
}

func testKMS(t *testing.T, c *Cluster) {
	if s := c.Status(t.Context())[0]; s.State != StateOK || s.Version != "1.4" {
		t.Errorf("status %+v", s)
	}
	key, err := c.Create(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer key.Destroy()
	again, err := c.Get(t.Context(), key.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Destroy()
	if !again.Material.Equal(key.Material) || again.Usable() != nil {
		t.Errorf("another key came back: %+v", again)
	}
	_, err = c.Get(t.Context(), "no such key")
	expect(t, err, ErrNotFound)
	endLife(t, c, key.ID)
	_, err = c.Get(t.Context(), key.ID)
	expect(t, err, ErrDestroyed)
}

// endLife revokes a key, checks that it can still be fetched, and destroys it.
func endLife(t *testing.T, c *Cluster, id string) {
	t.Helper()
	do(t, c, kmip14.OperationRevoke, kmipwire.RevokeRequest{
		UniqueIdentifier: id,
		RevocationReason: kmipwire.RevocationReason{RevocationReasonCode: kmip14.RevocationReasonCodeCessationOfOperation},
	}, new(kmipwire.RevokeResponse))
	old, err := c.Get(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Destroy()
	if old.State != Deactivated || !errors.Is(old.Usable(), ErrInactive) {
		t.Errorf("a revoked key is %s and usable: %v", old.State, old.Usable())
	}
	do(t, c, kmip14.OperationDestroy, kmipwire.DestroyRequest{UniqueIdentifier: id}, new(kmipwire.DestroyResponse))
}

// do has the key manager do one operation that this package has no use for.
func do(t *testing.T, c *Cluster, op kmip14.Operation, request, response any) {
	t.Helper()
	_, err := ask(t.Context(), c, func(ctx context.Context, s *session) (any, error) { return nil, s.call(ctx, op, request, response) }, func(any) {})
	if err != nil {
		t.Fatal(err)
	}
}
