package kek

import (
	"slices"
	"testing"

	"github.com/ovh/kmip-go"

	"github.com/vmcrypt/vmcrypt/internal/ovhkmip"
)

// TestOVH runs against a key manager of a third make, in each version that may be
// the newest it speaks.
func TestOVH(t *testing.T) {
	all := []kmip.ProtocolVersion{kmip.V1_0, kmip.V1_1, kmip.V1_2, kmip.V1_3, kmip.V1_4}
	for i, v := range all {
		t.Run("KMIP "+v.String(), func(t *testing.T) {
			server := ovhkmip.Start(t, slices.Clone(all[:i+1])...)
			c := open(t, server.PKI, server.Address)
			if s := c.Status(t.Context())[0]; s.State != StateOK || s.Version != v.String() || s.TLS != "TLS 1.3" || s.Vendor != ovhkmip.Vendor {
				t.Errorf("status %+v, want %s", s, v)
			}
			lifeOfKeys(t, c, ErrNotFound) // it forgets destroyed keys
		})
	}
}
