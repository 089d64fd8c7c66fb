// Package config reads vmcrypt's one configuration file and knows where it and
// vmcrypt's state lie.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/vmcrypt/vmcrypt/kek"
)

// maxSize bounds the configuration file, in bytes.
const maxSize = 1 << 20

// Config is the configuration file, config.yaml. A key that is not one of these
// is an error.
type Config struct {
	// DefaultAlias is the alias that disks are encrypted under unless --kms names
	// another one.
	DefaultAlias string `yaml:"defaultAlias"`
	// Engine chooses the AES-XTS implementation: "auto" (the default), the
	// fastest that this CPU has, or "crypto-aes", Go's own.
	Engine string `yaml:"engine"`
	// Aliases maps each alias, as it stands in descriptors, to its key managers.
	Aliases map[string]kek.Config `yaml:"aliases"`
	// Datastores are the folders that the agent may open disks and descriptors in.
	Datastores []string `yaml:"datastores"`
	// Agent configures the host agent.
	Agent Agent `yaml:"agent"`
}

// EngineAuto is the value of Engine that leaves the choice to vmcrypt.
const EngineAuto = "auto"

// Agent is the part of the configuration that the host agent reads.
type Agent struct {
	// Socket is the path of the agent's API socket.
	Socket string `yaml:"socket"`
}

// Load reads the configuration at path. Relative paths in it are taken from the
// folder it lies in. An error names the file and, where it can, line and key.
func Load(path string) (*Config, error) {
	data, err := read(path)
	if err != nil {
		return nil, err
	}
	c := &Config{Engine: EngineAuto}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(c); err != nil && !errors.Is(err, io.EOF) {
		return nil, explain(path, err)
	}
	if err := dec.Decode(new(Config)); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: more than one YAML document", path)
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	c.resolve(filepath.Dir(path))
	return c, nil
}

func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("no configuration at %s: make one with \"vmcrypt init\", or name one with --config", path)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(data) > maxSize {
		return nil, fmt.Errorf("%s: longer than %d bytes", path, maxSize)
	}
	return data, nil
}

// Alias returns the key managers of an alias.
func (c *Config) Alias(name string) (kek.Config, bool) {
	k, ok := c.Aliases[name]
	return k, ok
}

// AliasNames lists the configured aliases in alphabetical order.
func (c *Config) AliasNames() []string {
	names := make([]string, 0, len(c.Aliases))
	for name := range c.Aliases {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

func (c *Config) check() error {
	if c.Engine != EngineAuto && c.Engine != "crypto-aes" {
		return fmt.Errorf("engine: %q is neither auto nor crypto-aes", c.Engine)
	}
	if c.DefaultAlias != "" {
		if _, ok := c.Aliases[c.DefaultAlias]; !ok {
			return fmt.Errorf("defaultAlias: %q is not among the aliases", c.DefaultAlias)
		}
	}
	for _, name := range c.AliasNames() {
		if !isAlias(name) {
			return fmt.Errorf("aliases: %q: an alias is 1 to 256 bytes of printable text", name)
		}
		if len(c.Aliases[name].Servers) == 0 {
			return fmt.Errorf("aliases: %s: servers: name at least one key manager", name)
		}
	}
	return nil
}

// isAlias tells whether a descriptor can hold the alias.
func isAlias(name string) bool {
	return name != "" && len(name) <= 256 && utf8.ValidString(name) &&
		!strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) })
}

func (c *Config) resolve(dir string) {
	for name, k := range c.Aliases {
		for _, p := range []*string{&k.ClientCert, &k.ClientKey, &k.CA} {
			if *p != "" && !filepath.IsAbs(*p) {
				*p = filepath.Join(dir, *p)
			}
		}
		c.Aliases[name] = k
	}
}

var unknownKey = regexp.MustCompile(`^line (\d+): field (.*) not found in type .*$`)

// explain turns the YAML library's words into "file:line: unknown key".
func explain(path string, err error) error {
	var te *yaml.TypeError
	if !errors.As(err, &te) {
		return fmt.Errorf("%s: %s", path, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	lines := make([]string, len(te.Errors))
	for i, e := range te.Errors {
		lines[i] = path + ": " + e
		if m := unknownKey.FindStringSubmatch(e); m != nil {
			lines[i] = fmt.Sprintf("%s:%s: unknown key %q", path, m[1], m[2])
		}
	}
	return errors.New(strings.Join(lines, "\n"))
}
