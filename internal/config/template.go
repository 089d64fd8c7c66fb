package config

import (
	_ "embed"
	"strconv"
	"strings"
)

//go:embed template.yaml
var template string

// LocalAlias is the alias of the key manager that ships with vmcrypt, as
// "vmcrypt init" configures it.
const LocalAlias = "local"

// ImageFolder is where libvirt keeps disks unless it is told otherwise.
const ImageFolder = "/var/lib/libvirt/images"

// Template is the commented configuration that "vmcrypt init" writes, with the
// address that the local key manager will listen on and the agent's datastores.
func Template(address string, datastores ...string) []byte {
	line := "# datastores: [" + ImageFolder + "]"
	if len(datastores) > 0 {
		quoted := make([]string, len(datastores))
		for i, folder := range datastores {
			quoted[i] = strconv.Quote(folder) // is YAML, too
		}
		line = "datastores: [" + strings.Join(quoted, ", ") + "]"
	}
	return []byte(strings.NewReplacer("@ADDRESS@", address, "@DATASTORES@", line).Replace(template))
}
