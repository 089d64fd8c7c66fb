package kek

import (
	"testing"

	"github.com/vmcrypt/vmcrypt/internal/ovhkmip"
	"github.com/vmcrypt/vmcrypt/internal/pykmip"
)

// TestThreeMakes: one process works with key managers of three makes at once, each an
// alias.
func TestThreeMakes(t *testing.T) {
	py, ovh, home := pykmip.Start(t), ovhkmip.Start(t), newHome(t)
	config := configOf(home)
	config.Servers = []Server{{Address: serve(t, home)}}
	clusters := map[string]*Cluster{
		"ours": openConfig(t, config, nil), "PyKMIP": open(t, py.PKI, py.Address), "ovh/kmip-go": open(t, ovh.PKI, ovh.Address),
	}
	made := map[string]*Key{}
	for name, c := range clusters {
		key, err := c.Create(t.Context())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		defer key.Destroy()
		made[name] = key
	}
	for name, c := range clusters {
		if s := c.Status(t.Context()); len(s) != 1 || s[0].State != StateOK || s[0].Version != "1.4" || s[0].Err != nil {
			t.Errorf("%s: status %+v", name, s)
		}
		key, err := c.Get(t.Context(), made[name].ID)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !key.Material.Equal(made[name].Material) {
			t.Errorf("%s: another key came back", name)
		}
		key.Destroy()
	}
}
