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
// The servers of a cluster are asked in their order until one can help; those of other
// sites last. Each call makes its own connection, agrees on a version of KMIP, 1.4 to 1.0,
// and closes the connection, unless the cluster is one that Clusters keeps. No key is kept.
//
// Errors wrap one of the Err values, name alias and key manager, and never hold
// a byte of a key.
package kek

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

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
	// Timeout is how long a key manager that is connected may be silent before it has
	// failed. The default is 60s, as in vCenter.
	Timeout time.Duration `yaml:"timeout"`
	// ConnectTimeout is how long a connection to a key manager may take. The default is 10s.
	ConnectTimeout time.Duration `yaml:"connectTimeout"`
	// HedgeAfter is how long a key manager that is connected may be silent before the next
	// one of its site is asked, too, for what changes nothing. The default is 2s; with 0,
	// the next one is asked only after Timeout, as vCenter does.
	HedgeAfter *Duration `yaml:"hedgeAfter"`
	// ReplicaWait is how long a key manager may take to have a key that another one has
	// made. The default is 30s.
	ReplicaWait time.Duration `yaml:"replicaWait"`
	// MinReplicas is how many key managers have to give a key before anything is encrypted
	// with it. The default is all that can be reached, at least 1.
	MinReplicas int `yaml:"minReplicas"`
	// MaxConnections is how many connections are made to each key manager at most, besides
	// those of health checks. The default is 4.
	MaxConnections int `yaml:"maxConnections"`
	// MaxRate is how many operations a second each key manager is asked to do at most, as to
	// give a key or to make one; health checks don't count. The default, 0, is any number.
	MaxRate int `yaml:"maxRate"`
	// Site is that of this host: the configuration's site.
	Site string `yaml:"-"`
}

// Duration is a time with a unit, as in "2s"; or 0, which needs none.
type Duration time.Duration

// UnmarshalYAML implements the interface of package yaml.
func (d *Duration) UnmarshalYAML(unmarshal func(any) error) error {
	var number int
	if unmarshal(&number) == nil && number == 0 {
		*d = 0
		return nil
	}
	return unmarshal((*time.Duration)(d))
}

// The defaults of a Config.
const (
	defaultTimeout        = 60 * time.Second
	defaultConnectTimeout = 10 * time.Second
	defaultHedgeAfter     = 2 * time.Second
	defaultReplicaWait    = 30 * time.Second
	defaultMaxConnections = 4
	never                 = time.Duration(math.MaxInt64)
)

// Server is one key manager.
type Server struct {
	// Address is host:port; 5696 is KMIP's usual port. The key manager's
	// certificate must be for this host, a name or an IP address.
	Address string `yaml:"address"`
	// ServerName is the name that the key manager's certificate must be for, if that is
	// not the host of Address. It is sent as TLS's server name, too.
	ServerName string `yaml:"serverName"`
	// Pin is that of this server alone, before Config.Pin and Config.CA.
	Pin string `yaml:"pin"`
	// Site is where the key manager stands. Those of other sites than this host's are asked
	// only when each one of its own has failed.
	Site string `yaml:"site"`
	// VM is the virtual machine that runs the key manager, if one of this host does: its
	// UUID, or the path of its descriptor.
	VM string `yaml:"vm"`
}

// DialFunc makes a connection to a key manager, TLS not included. One with a method
// Transient() is closed after its first use.
type DialFunc func(ctx context.Context, address string) (net.Conn, error)

// Cluster is the key managers of one alias. It is safe for concurrent use.
type Cluster struct {
	alias       string
	site        string // the own one
	servers     []*server
	dial        DialFunc
	dialTimeout time.Duration
	timeout     time.Duration
	hedgeAfter  time.Duration
	replicaWait time.Duration
	minReplicas int
	timeouts    kmipwire.Timeouts
	limiter     *rate.Limiter
	trust       *trust
	observe     atomic.Pointer[func(Exchange)]

	kept  context.Context // until it is closed; nil for one that keeps no connections
	close context.CancelFunc
}

// Open reads the certificates of config and checks the addresses. It connects
// to nothing. A nil dial means TCP.
func Open(alias string, config Config, dial DialFunc) (*Cluster, error) {
	c := &Cluster{
		alias:       alias,
		dial:        dial,
		dialTimeout: cmp.Or(config.ConnectTimeout, defaultConnectTimeout),
		timeout:     cmp.Or(config.Timeout, defaultTimeout),
		hedgeAfter:  defaultHedgeAfter,
		replicaWait: cmp.Or(config.ReplicaWait, defaultReplicaWait),
		minReplicas: config.MinReplicas,
		limiter:     newLimiter(config.MaxRate),
	}
	c.timeouts = kmipwire.Timeouts{Handshake: c.timeout, Idle: c.timeout, Message: c.timeout}
	if config.HedgeAfter != nil {
		c.hedgeAfter = cmp.Or(time.Duration(*config.HedgeAfter), never)
	}
	if dial == nil {
		c.dial = tcp(c.dialTimeout)
	}
	err := checkLimits(config)
	if err == nil {
		err = c.addServers(config)
	}
	if err == nil {
		c.trust, err = openTrust(alias, config)
	}
	if err != nil {
		return nil, fmt.Errorf("alias %q: %w", alias, err)
	}
	return c, nil
}

func checkLimits(config Config) error {
	for key, limit := range map[string]time.Duration{
		"timeout": config.Timeout, "connectTimeout": config.ConnectTimeout, "replicaWait": config.ReplicaWait,
	} {
		if limit < 0 {
			return fmt.Errorf("%s: %v is less than nothing", key, limit)
		}
	}
	if config.HedgeAfter != nil && *config.HedgeAfter < 0 {
		return fmt.Errorf("hedgeAfter: %v is less than nothing", time.Duration(*config.HedgeAfter))
	}
	for key, limit := range map[string]int{"maxConnections": config.MaxConnections, "maxRate": config.MaxRate} {
		if limit < 0 {
			return fmt.Errorf("%s: %d is less than nothing", key, limit)
		}
	}
	return nil
}

func (c *Cluster) addServers(config Config) error {
	if len(config.Servers) == 0 {
		return errors.New("servers: at least one key manager is needed")
	}
	if config.MinReplicas < 0 || config.MinReplicas > len(config.Servers) {
		return fmt.Errorf("minReplicas: %d, but the alias has %d key managers", config.MinReplicas, len(config.Servers))
	}
	if err := checkAddresses(config.Servers); err != nil {
		return err
	}
	c.site = cmp.Or(config.Site, config.Servers[0].Site)
	places := cmp.Or(config.MaxConnections, defaultMaxConnections)
	for _, s := range config.Servers {
		c.servers = append(c.servers, &server{Server: s, cluster: c, places: make(chan struct{}, places)})
	}
	return nil
}

// checkAddresses also refuses a server that is named twice, and would count as two replicas.
func checkAddresses(servers []Server) error {
	named := map[[2]string]bool{}
	for _, s := range servers {
		host, port, err := net.SplitHostPort(s.Address)
		if err != nil || host == "" || port == "" {
			return fmt.Errorf("address %q: want host:port, as in kms.example.com:5696", s.Address)
		}
		who := [2]string{strings.ToLower(s.Address), strings.ToLower(s.name())}
		if named[who] {
			return fmt.Errorf("address %q: it is named twice", s.Address)
		}
		named[who] = true
	}
	return nil
}
