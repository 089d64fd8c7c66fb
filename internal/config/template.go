package config

import (
	_ "embed"
	"strings"
)

//go:embed template.yaml
var template string

// LocalAlias is the alias of the key manager that ships with vmcrypt, as
// "vmcrypt init" configures it.
const LocalAlias = "local"

// Template is the commented configuration that "vmcrypt init" writes, with the
// address that the local key manager will listen on.
func Template(address string) []byte {
	return []byte(strings.ReplaceAll(template, "@ADDRESS@", address))
}
