package kms

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// certificateCheck is how often the files are looked at, at most.
const certificateCheck = time.Second

// certificates are the server's, read again when their files change.
type certificates struct {
	home  Home
	admit func(*x509.Certificate) error

	mu      sync.Mutex
	config  *tls.Config
	version [3]fileVersion // that config is of, or that could not be read
	checked time.Time
}

// fileVersion tells whether a file is still the same.
type fileVersion struct {
	size int64
	mod  time.Time
}

// certificates requires clients to show a certificate of the home's CA that
// admit has nothing against.
func (h Home) certificates(admit func(*x509.Certificate) error) (_ *certificates, err error) {
	c := &certificates{home: h, admit: admit, version: h.certificateVersion(), checked: time.Now()}
	c.config, err = c.read()
	return c, err
}

// tls is the configuration for one connection, which calls greeted when the
// client has said hello.
func (c *certificates) tls(greeted func()) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			greeted()
			return c.current(), nil
		},
	}
}

// current gives the configuration for a connection. Files that make no sense,
// perhaps because they are just being replaced, leave the former one in force.
func (c *certificates) current() *tls.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.checked) < certificateCheck {
		return c.config
	}
	c.checked = time.Now()
	version := c.home.certificateVersion()
	if version == c.version {
		return c.config
	}
	c.version = version
	config, err := c.read()
	if err != nil {
		slog.Error("key manager: its certificates have changed, but the former ones stay in force", "error", err)
		return c.config
	}
	slog.Info("key manager: certificates read again")
	c.config = config
	return config
}

func (h Home) certificateVersion() (v [3]fileVersion) {
	for i, name := range []string{"server.pem", "server.key", "ca.pem"} {
		if info, err := os.Stat(h.path(name)); err == nil {
			v[i] = fileVersion{info.Size(), info.ModTime()}
		}
	}
	return v
}

func (c *certificates) read() (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(c.home.path("server.pem"), c.home.path("server.key"))
	if err != nil {
		return nil, fmt.Errorf("certificate of the key manager in %s: %w", c.home.Dir, err)
	}
	ca, err := readSmall(c.home.path("ca.pem"))
	if err != nil {
		return nil, err
	}
	config := kmipwire.TLSConfig()
	config.Certificates = []tls.Certificate{cert}
	config.ClientAuth = tls.RequireAndVerifyClientCert
	config.ClientCAs = x509.NewCertPool()
	config.SessionTicketsDisabled = true // every connection proves its certificate
	config.VerifyConnection = func(s tls.ConnectionState) error { return c.admit(s.PeerCertificates[0]) }
	if !config.ClientCAs.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%s: no certificate in it", c.home.path("ca.pem"))
	}
	return config, nil
}
