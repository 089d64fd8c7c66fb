package kms_test

import (
	"errors"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"github.com/vmcrypt/vmcrypt/kek"
	"github.com/vmcrypt/vmcrypt/kms"
)

// TestLocalCluster uses the key manager as vmcrypt does: through package kek,
// as the alias "local".
func TestLocalCluster(t *testing.T) {
	dir := t.TempDir()
	home := kms.Home{Config: filepath.Join(dir, "config.yaml"), Dir: filepath.Join(dir, "kms")}
	if err := home.Init(nil); err != nil {
		t.Fatal(err)
	}
	t.Run("in-process", func(t *testing.T) { useCluster(t, home) })
	done := make(chan error, 1)
	ready := make(chan struct{})
	go func() {
		done <- home.Serve(t.Context(), "127.0.0.1:0", func(net.Addr) { close(ready) })
	}()
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	t.Run("served", func(t *testing.T) { useCluster(t, home) })
}

func useCluster(t *testing.T, home kms.Home) {
	c, err := kek.Open("local", kek.Config{
		Servers:    []kek.Server{{Address: "127.0.0.1:5696"}},
		ClientCert: filepath.Join(home.ConfigDir(), "client.pem"),
		ClientKey:  filepath.Join(home.ConfigDir(), "client.key"),
		CA:         filepath.Join(home.ConfigDir(), "ca.pem"),
	}, home.Dial)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := createAndGet(t, c); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, s := range c.Status(t.Context()) {
		if s.Err != nil || s.Version != "1.4" {
			t.Errorf("status %+v", s)
		}
	}
	if _, err := c.Get(t.Context(), "00000000-0000-4000-8000-000000000000"); !errors.Is(err, kek.ErrNotFound) {
		t.Errorf("unknown key: %v", err)
	}
}

func createAndGet(t *testing.T, c *kek.Cluster) error {
	made, err := c.Create(t.Context())
	if err != nil {
		return err
	}
	defer made.Destroy()
	got, err := c.Get(t.Context(), made.ID)
	if err != nil {
		return err
	}
	defer got.Destroy()
	if !got.Material.Equal(made.Material) {
		return errors.New("another key came back")
	}
	return nil
}
