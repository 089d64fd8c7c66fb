package kek

import (
	"errors"
	"testing"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
	"github.com/vmcrypt/vmcrypt/internal/pykmip"
)

// TestPyKMIP runs against a key manager that is not ours.
func TestPyKMIP(t *testing.T) {
	server := pykmip.Start(t)
	c := open(t, server.PKI, server.Address)

	t.Run("status", func(t *testing.T) {
		s := c.Status(t.Context())
		if len(s) != 1 || s[0].State != StateOK || s[0].Version != "1.4" || s[0].Err != nil {
			t.Errorf("got %+v", s)
		}
	})
	t.Run("create and get", func(t *testing.T) {
		created, err := c.Create(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer created.Destroy()
		got, err := c.Get(t.Context(), created.ID)
		if err != nil {
			t.Fatal(err)
		}
		defer got.Destroy()
		if !got.Material.Equal(created.Material) || got.Material.Len() != keySize || got.State != Active {
			t.Errorf("the key that comes back is not the one made: %+v", got)
		}
	})
	for _, version := range kmipwire.Versions() {
		t.Run("KMIP "+version.String(), func(t *testing.T) { testVersion(t, c, version) })
	}
	t.Run("life of a key", func(t *testing.T) { testLife(t, c) })
	t.Run("keys leave memory", func(t *testing.T) { testMemory(t, c) })
	t.Run("unknown key", func(t *testing.T) {
		if _, err := c.Get(t.Context(), "4711"); !errors.Is(err, ErrNotFound) {
			t.Errorf("got %v, want ErrNotFound", err)
		}
	})
	t.Run("stranger's certificate", func(t *testing.T) {
		stranger := pykmip.NewPKI(t)
		stranger.CA = server.CA
		_, err := open(t, stranger, server.Address).Create(t.Context())
		if !errors.Is(err, ErrDenied) || errors.Is(err, ErrUnavailable) {
			t.Errorf("got %v, want ErrDenied", err)
		}
	})
	t.Run("server's certificate as client's", func(t *testing.T) {
		wrong := server.PKI
		wrong.ClientCert, wrong.ClientKey = wrong.ServerCert, wrong.ServerKey
		if _, err := open(t, wrong, server.Address).Create(t.Context()); !errors.Is(err, ErrDenied) {
			t.Errorf("got %v, want ErrDenied", err)
		}
	})
}

// testVersion has a session speak an older version than it has agreed on.
func testVersion(t *testing.T, c *Cluster, version kmipwire.ProtocolVersion) {
	s, err := c.servers[0].connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.conn.Close()
	s.version = version
	name := newName()
	key, err := s.create(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer key.Destroy()
	found, err := s.find(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer found.Destroy()
	if found.ID != key.ID {
		t.Errorf("by its name %s, key %s is %s", name, key.ID, found.ID)
	}
}

func testLife(t *testing.T, c *Cluster) {
	key, err := c.Create(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	key.Destroy()
	endLife(t, c, key.ID)
	_, err = c.Get(t.Context(), key.ID)
	expect(t, err, ErrNotFound) // PyKMIP forgets destroyed keys
}

// open opens a cluster of the key managers at addresses.
func open(t *testing.T, pki pykmip.PKI, addresses ...string) *Cluster {
	t.Helper()
	config := Config{ClientCert: pki.ClientCert, ClientKey: pki.ClientKey, CA: pki.CA}
	for _, a := range addresses {
		config.Servers = append(config.Servers, Server{Address: a})
	}
	c, err := Open("test", config, nil)
	if err != nil {
		t.Fatal(err)
	}
	c.keep()
	t.Cleanup(c.release)
	return c
}
