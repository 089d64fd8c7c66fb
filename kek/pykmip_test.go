package kek

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
	"github.com/vmcrypt/vmcrypt/internal/pykmip"
)

// TestPyKMIP runs against a key manager that is not ours.
func TestPyKMIP(t *testing.T) {
	server := pykmip.Start(t)
	for _, v := range slices.Backward(kmipwire.Versions()) { // the newest remains
		t.Run("KMIP "+v.String(), func(t *testing.T) {
			server.SpeakUpTo(t, v.String())
			c := open(t, server.PKI, server.Address)
			if s := c.Status(t.Context())[0]; s.State != StateOK || s.Version != v.String() || s.Err != nil || !strings.HasPrefix(s.Vendor, "PyKMIP ") {
				t.Errorf("status %+v, want %s", s, v)
			}
			lifeOfKeys(t, c, ErrNotFound) // it forgets destroyed keys
		})
	}
	t.Run("keys leave memory", func(t *testing.T) { testMemory(t, open(t, server.PKI, server.Address)) })
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
