// Package kek fetches key-encryption keys from a cluster of KMIP key managers.
//
//	cluster, err := kek.Open("KMSCluster", config, nil)
//	...
//	key, err := cluster.Create(ctx)  // a new AES-256 key, active
//	key, err := cluster.Get(ctx, id) // one that exists
//	...
//	defer key.Destroy()
//	wrapped, err := dek.Wrap(dataKey, key.Material, binding)
//
// The cluster and vmcrypt prove who they are by certificates (TLS 1.2 or 1.3).
// Each call makes its own connection, agrees on a version of KMIP, 1.4 to 1.0,
// and closes the connection: between calls nothing is held, neither a
// connection nor a key.
//
// Errors wrap one of the Err values, name alias and key manager, and never hold
// a byte of a key.
package kek

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// Config says where the key managers of an alias are and how each side proves
// who it is.
type Config struct {
	// Servers are the key managers of the cluster, which replicate each other.
	// They are tried in this order.
	Servers []Server `yaml:"servers"`
	// ClientCert is the path of the certificate that vmcrypt shows to the key
	// managers: PEM, with intermediate certificates after it.
	ClientCert string `yaml:"clientCert"`
	// ClientKey is the path of the private key of ClientCert: PEM, unencrypted,
	// readable by vmcrypt alone.
	ClientKey string `yaml:"clientKey"`
	// CA is the path of the certificates of the authorities that may vouch for
	// the key managers: PEM. The system's authorities do not count.
	CA string `yaml:"ca"`
	// Pin is the fingerprint of the one certificate that the key managers may show, as
	// "sha256:HEX" of its DER form: instead of CA, and of what it says about names.
	Pin string `yaml:"pin"`
}

// Server is one key manager.
type Server struct {
	// Address is host:port; 5696 is KMIP's usual port. The key manager's
	// certificate must be for this host, a name or an IP address.
	Address string `yaml:"address"`
	// ServerName is what its certificate must be for instead, and the name that it is
	// asked for in TLS (SNI).
	ServerName string `yaml:"serverName"`
	// Pin is that of this server alone, before Config.Pin and Config.CA.
	Pin string `yaml:"pin"`
}

// DialFunc makes a connection to a key manager, TLS not included.
type DialFunc func(ctx context.Context, address string) (net.Conn, error)

// Cluster is the key managers of one alias. It holds no connection and is safe
// for concurrent use.
type Cluster struct {
	alias       string
	servers     []Server
	dial        DialFunc
	dialTimeout time.Duration
	timeouts    kmipwire.Timeouts
	trust       *trust
	observe     func(Exchange)
}

// Open reads the certificates of config and checks the addresses. It connects
// to nothing. A nil dial means TCP.
func Open(alias string, config Config, dial DialFunc) (*Cluster, error) {
	c := &Cluster{
		alias:       alias,
		servers:     config.Servers,
		dial:        dial,
		dialTimeout: 10 * time.Second,
		timeouts:    kmipwire.DefaultTimeouts,
		observe:     func(Exchange) {},
	}
	if dial == nil {
		c.dial = dialTCP
	}
	err := c.checkServers(config)
	if err == nil {
		c.trust, err = openTrust(alias, config)
	}
	if err != nil {
		return nil, fmt.Errorf("alias %q: %w", alias, err)
	}
	return c, nil
}

func dialTCP(ctx context.Context, address string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", address)
}

func (c *Cluster) checkServers(config Config) error {
	if len(config.Servers) == 0 {
		return errors.New("servers: at least one key manager is needed")
	}
	for _, s := range config.Servers {
		host, port, err := net.SplitHostPort(s.Address)
		if err != nil || host == "" || port == "" {
			return fmt.Errorf("address %q: want host:port, as in kms.example.com:5696", s.Address)
		}
	}
	return nil
}
