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
	"slices"
	"sort"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"
	"go.yaml.in/yaml/v3"

	"github.com/vmcrypt/vmcrypt/internal/listen"
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
	// Site is where this host stands: key managers of other sites are asked only when each
	// one of this has failed. The default is the site of an alias's first key manager.
	Site string `yaml:"site"`
	// Datastores are the folders that the agent may open disks and descriptors in. It
	// goes nowhere else, and follows no symbolic link below them.
	Datastores []string `yaml:"datastores"`
	// Agent configures the host agent.
	Agent Agent `yaml:"agent"`
	// KMS configures the key manager that ships with vmcrypt.
	KMS KMS `yaml:"kms"`
}

// EngineAuto is the value of Engine that leaves the choice to vmcrypt.
const EngineAuto = "auto"

// Agent is the part of the configuration that the host agent reads.
type Agent struct {
	// Socket is the path of the agent's API socket. The sockets of the disks that it
	// serves are below vms in the same folder. The default is /run/vmcrypt/agent.sock
	// for root, and agent.sock in vmcrypt's runtime folder for others.
	Socket string `yaml:"socket"`
	// QEMUUser is the user that QEMU runs as, by name or number, who gets the sockets
	// of the disks. The default is libvirt-qemu, or qemu, if there is such a user, and
	// else the agent's own.
	QEMUUser string `yaml:"qemuUser"`
	// HTTP is where the agent has its status page: a loopback address with a port, such
	// as 127.0.0.1:9180, or the absolute path of a unix socket. Without it, there is none.
	HTTP string `yaml:"http"`
	// Groups are the unix groups whose members may use the agent, besides root.
	Groups Groups `yaml:"groups"`
	// Metrics is where Prometheus scrapes the agent: the absolute path of a unix socket,
	// which the group View may connect to, or HOST:PORT of a loopback address, which
	// everybody on the host may. The default is nowhere.
	Metrics string `yaml:"metrics"`
}

// KMS is the part of the configuration that "vmcrypt kms serve" reads.
type KMS struct {
	// Metrics is where Prometheus scrapes the key manager: as Agent.Metrics, but only
	// the key manager's user may connect to a socket.
	Metrics string `yaml:"metrics"`
}

// Groups are names of unix groups.
type Groups struct {
	// View may see which VMs there are. The default is vmcrypt-view.
	View string `yaml:"view"`
	// Operate may also unlock and lock them. The default is vmcrypt-operate.
	Operate string `yaml:"operate"`
	// Admin may see what View sees, and is for what issues keys. The default is
	// vmcrypt-admin.
	Admin string `yaml:"admin"`
}

// Load reads the configuration at path. Relative paths in it are taken from the
// folder it lies in. An error names the file and, where it can, line and key.
func Load(path string) (*Config, error) {
	data, err := read(path)
	if err != nil {
		return nil, err
	}
	c := &Config{
		Engine: EngineAuto,
		Agent:  Agent{Groups: Groups{View: "vmcrypt-view", Operate: "vmcrypt-operate", Admin: "vmcrypt-admin"}},
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(c); err != nil && !errors.Is(err, io.EOF) {
		return nil, explain(path, err)
	}
	if err := dec.Decode(new(Config)); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: more than one YAML document", path)
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("%s:%d: %w", path, err.line(data), err)
	}
	if err := checkWhole(data); err != nil {
		return nil, fmt.Errorf("%s:%w", path, err)
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

// keyError is what is wrong with the value of a key, which others lead to.
type keyError struct {
	keys []string
	text string
}

func wrong(text string, keys ...string) *keyError { return &keyError{keys, text} }

func (e *keyError) Error() string { return strings.Join(e.keys, ": ") + ": " + e.text }

// line is where the key, or the last that is there of those that lead to it, stands in
// a configuration that could be decoded.
func (e *keyError) line(data []byte) int {
	var document yaml.Node
	if err := yaml.Unmarshal(data, &document); err != nil || len(document.Content) == 0 {
		return 1
	}
	node, line := document.Content[0], 1
	for _, key := range e.keys {
		i := slices.IndexFunc(node.Content, func(n *yaml.Node) bool { return n.Value == key })
		if i < 0 || i+1 >= len(node.Content) {
			break
		}
		line, node = node.Content[i].Line, node.Content[i+1]
	}
	return line
}

func (c *Config) check() *keyError {
	if c.Engine != EngineAuto && c.Engine != "crypto-aes" {
		return wrong(fmt.Sprintf("%q is neither auto nor crypto-aes", c.Engine), "engine")
	}
	if c.DefaultAlias != "" {
		if _, ok := c.Aliases[c.DefaultAlias]; !ok {
			return wrong(fmt.Sprintf("%q is not among the aliases", c.DefaultAlias), "defaultAlias")
		}
	}
	for _, name := range c.AliasNames() {
		if !isAlias(name) {
			return wrong("an alias is 1 to 256 bytes of printable text", "aliases", name)
		}
		if len(c.Aliases[name].Servers) == 0 {
			return wrong("name at least one key manager", "aliases", name, "servers")
		}
		if err := c.checkPins(name); err != nil {
			return err
		}
		for _, s := range c.Aliases[name].Servers {
			if _, err := parseUUID(s.VM); s.VM != "" && !isDescriptor(s.VM) && err != nil {
				return wrong(fmt.Sprintf("vm: %q is neither a UUID nor the path of a .vmx", s.VM), "aliases", name, "servers")
			}
		}
	}
	if err := c.checkAddresses(); err != nil {
		return err
	}
	return c.checkDatastores()
}

// checkWhole refuses fractions, which the YAML library cuts: of half a key a second nothing
// would be left, and that means any number.
func checkWhole(data []byte) error {
	var document struct {
		Aliases map[string]map[string]yaml.Node `yaml:"aliases"`
	}
	if err := yaml.Unmarshal(data, &document); err != nil {
		return fmt.Errorf("1: %w", err) // it was decoded before
	}
	for _, alias := range document.Aliases {
		for _, key := range []string{"maxConnections", "maxRate", "minReplicas"} {
			if node := alias[key]; node.ShortTag() == "!!float" {
				return fmt.Errorf("%d: %s: %s is no whole number", node.Line, key, node.Value)
			}
		}
	}
	return nil
}

func (c *Config) checkPins(alias string) *keyError {
	k := c.Aliases[alias]
	if k.Pin != "" && k.CA != "" {
		return wrong("name either pin or ca, not both", "aliases", alias, "pin")
	}
	if _, err := kek.ParseFingerprint(k.Pin); k.Pin != "" && err != nil {
		return wrong(err.Error(), "aliases", alias, "pin")
	}
	for _, s := range k.Servers {
		if _, err := kek.ParseFingerprint(s.Pin); s.Pin != "" && err != nil {
			return wrong(err.Error(), "aliases", alias, "servers", s.Address, "pin")
		}
	}
	return nil
}

// checkAddresses checks those that only this host may reach.
func (c *Config) checkAddresses() *keyError {
	for _, at := range []struct{ section, key, address string }{
		{"agent", "http", c.Agent.HTTP}, {"agent", "metrics", c.Agent.Metrics}, {"kms", "metrics", c.KMS.Metrics},
	} {
		if at.address == "" {
			continue
		}
		if err := listen.CheckLocal(at.address); err != nil {
			return wrong(err.Error(), at.section, at.key)
		}
	}
	return nil
}

func (c *Config) checkDatastores() *keyError {
	for _, folder := range c.Datastores {
		if clean := filepath.Clean(folder); folder == "" || clean == "/" {
			return wrong(fmt.Sprintf("%q would let the agent open any file: name a folder for VMs", folder), "datastores")
		}
	}
	return nil
}

// isAlias tells whether a descriptor can hold the alias.
func isAlias(name string) bool {
	return name != "" && len(name) <= 256 && utf8.ValidString(name) &&
		!strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) })
}

// isDescriptor tells a VM's descriptor from its UUID.
func isDescriptor(vm string) bool { return strings.EqualFold(filepath.Ext(vm), ".vmx") }

// parseUUID reads a UUID as libvirt or VMware's descriptors write it, or in braces, or as a
// URN (RFC 9562), and gives it as libvirt does.
func parseUUID(text string) (string, error) {
	digits := strings.TrimPrefix(strings.ToLower(text), "urn:uuid:")
	id, err := uuid.Parse(strings.NewReplacer(" ", "", "-", "", "{", "", "}", "").Replace(digits))
	return id.String(), err
}

func (c *Config) resolve(dir string) {
	for i, folder := range c.Datastores {
		if !filepath.IsAbs(folder) {
			folder = filepath.Join(dir, folder)
		}
		c.Datastores[i] = filepath.Clean(folder)
	}
	if c.Agent.Socket != "" && !filepath.IsAbs(c.Agent.Socket) {
		c.Agent.Socket = filepath.Join(dir, c.Agent.Socket)
	}
	for name, k := range c.Aliases {
		k.Site = c.Site
		for _, p := range []*string{&k.ClientCert, &k.ClientKey, &k.CA} {
			if *p != "" && !filepath.IsAbs(*p) {
				*p = filepath.Join(dir, *p)
			}
		}
		for i, s := range k.Servers {
			k.Servers[i].VM = resolveVM(dir, s.VM)
		}
		c.Aliases[name] = k
	}
}

// resolveVM gives the one spelling of a VM's UUID, or the absolute path of its descriptor.
func resolveVM(dir, vm string) string {
	id, err := parseUUID(vm)
	switch {
	case err == nil && !isDescriptor(vm):
		return id
	case isDescriptor(vm) && !filepath.IsAbs(vm):
		return filepath.Join(dir, vm)
	}
	return vm
}

var (
	unknownKey = regexp.MustCompile(`^line (\d+): field (.*) not found in type .*$`)
	noUnit     = regexp.MustCompile("^line (\\d+): cannot unmarshal !!(?:int|float) `(.*)` into time.Duration$")
)

// explain turns the YAML library's words into "file:line: unknown key" and the like.
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
		if m := noUnit.FindStringSubmatch(e); m != nil {
			lines[i] = fmt.Sprintf("%s:%s: %s is a time without a unit: want %[3]ss, for instance", path, m[1], m[2])
		}
	}
	return errors.New(strings.Join(lines, "\n"))
}
