package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/vmcrypt/vmcrypt/agent"
	"github.com/vmcrypt/vmcrypt/blockcrypt"
	"github.com/vmcrypt/vmcrypt/internal/config"
	"github.com/vmcrypt/vmcrypt/kek"
	"github.com/vmcrypt/vmcrypt/kms"
)

// environment is what a command runs in: the configuration and the local key
// manager.
type environment struct {
	config *config.Config
	paths  config.Paths
	home   kms.Home
	engine blockcrypt.Engine

	clusters kek.Clusters // that are used over and over
}

func newEnvironment(c *cli.Context) (*environment, error) {
	home, paths, err := locate(c)
	if err != nil {
		return nil, err
	}
	cfg, err := config.Load(paths.File)
	if err != nil {
		return nil, err
	}
	return &environment{config: cfg, paths: paths, home: home, engine: chooseEngine(cfg)}, nil
}

// chooseEngine warns where a faster engine does not work: all the same, this host
// encrypts and decrypts rightly.
func chooseEngine(cfg *config.Config) blockcrypt.Engine {
	if cfg.Engine != config.EngineAuto {
		return blockcrypt.Engine{}
	}
	engine, warning := blockcrypt.Fastest()
	if warning != nil {
		fmt.Fprintf(os.Stderr, "vmcrypt: warning: %s; using %s. Is this CPU sound?\n", plainText(warning.Error()), engine.Name())
	}
	return engine
}

// locate finds the key manager's home, and where vmcrypt's other things are.
func locate(c *cli.Context) (kms.Home, config.Paths, error) {
	p, err := config.Locate(c.String("config"))
	if err != nil {
		return kms.Home{}, config.Paths{}, err
	}
	ask := &rootPassphrase{c: c}
	return kms.Home{Config: p.File, Dir: filepath.Join(p.State, "kms"), Passphrase: ask.get}, p, nil
}

// host is the agent's view of this machine.
func (e *environment) host() *agent.Host {
	return &agent.Host{
		Cluster: e.cluster, Engine: e.engine, Datastores: e.config.Datastores, KeyManagerVMs: e.keyManagerVMs(),
	}
}

func (e *environment) keyManagerVMs() map[string][]string {
	all := map[string][]string{}
	for alias, cfg := range e.config.Aliases {
		for _, s := range cfg.Servers {
			all[alias] = append(all[alias], s.VM)
		}
	}
	return all
}

// cluster opens the key managers of an alias. The local one needs no server: it
// is served in-process where none runs.
func (e *environment) cluster(alias string) (*kek.Cluster, error) {
	cfg, ok := e.config.Alias(alias)
	if !ok {
		return nil, fmt.Errorf("%w %q: the configuration has only %s",
			agent.ErrAlias, alias, strings.Join(e.config.AliasNames(), ", "))
	}
	dial, err := e.dialer(alias)
	if err != nil {
		return nil, err
	}
	if dial != nil { // no connection is kept to the local key manager
		return kek.Open(alias, cfg, dial)
	}
	return e.clusters.Get(alias, func() (*kek.Cluster, error) { return kek.Open(alias, cfg, nil) })
}

// dialer says how the key managers of an alias are reached, which can change while the
// agent runs; nil means by TCP.
func (e *environment) dialer(alias string) (kek.DialFunc, error) {
	if alias == config.LocalAlias && !e.home.Exists() {
		return e.dialLost, nil
	}
	local, err := e.isLocal(alias)
	if err != nil || !local {
		return nil, err
	}
	return e.home.Dial, nil
}

// errLost: the local key manager does not answer and is not in its place either.
var errLost = errors.New("the key manager of this host is missing")

// dialLost connects to a key manager that goes by the local one's name: it runs
// elsewhere, or is lost.
func (e *environment) dialLost(ctx context.Context, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errLost, err)
	}
	return conn, nil
}

// isLocal tells whether an alias leads to this host's own key manager: it has the
// name that init gave it, and trusts that key manager and no other.
func (e *environment) isLocal(alias string) (bool, error) {
	cfg, ok := e.config.Alias(alias)
	if !ok || alias != config.LocalAlias || cfg.CA == "" || !e.home.Exists() {
		return false, nil
	}
	return e.home.IsCA(cfg.CA)
}

// alias is the one to encrypt under.
func (e *environment) alias(c *cli.Context) (string, error) {
	if alias := c.String("kms"); alias != "" {
		return alias, nil
	}
	if e.config.DefaultAlias == "" {
		return "", usageError{fmt.Errorf("name an alias with --kms, or set defaultAlias in the configuration")}
	}
	return e.config.DefaultAlias, nil
}

// requireHome fails where there is no local key manager to work on.
func requireHome(h kms.Home) error {
	if h.Exists() {
		return nil
	}
	return fmt.Errorf("there is no key manager in %s: \"vmcrypt init\" makes one, \"vmcrypt kms restore\" brings one back", h.Dir)
}
