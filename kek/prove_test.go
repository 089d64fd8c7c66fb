package kek

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/gemalto/kmip-go/kmip14"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// TestProve: nothing is encrypted with a key that a key manager lacks, or has otherwise.
func TestProve(t *testing.T) {
	lacks := func() *fake { return &fake{edit: fail(kmip14.OperationGet, kmip14.ResultReasonItemNotFound, "")} }
	other := &fake{edit: given(func(r *kmipwire.GetResponse) { r.SymmetricKey.KeyBlock.KeyValue.KeyMaterial[0] ^= 1 })}
	down := func() *fake { return &fake{raw: closes(kmip14.OperationDiscoverVersions)} }
	for name, test := range map[string]struct {
		others []*fake
		least  int
		want   string // "" for good
	}{
		"alone":               {nil, 0, ""},
		"all":                 {[]*fake{{}, {}}, 0, ""},
		"one down":            {[]*fake{down(), {}}, 0, ""},
		"one down, all count": {[]*fake{down(), {}}, 3, "2 of 3"},
		"one lacks it":        {[]*fake{lacks(), {}}, 0, "2 of 3"},
		"one may lack it":     {[]*fake{lacks(), {}}, 2, ""},
		"one differs":         {[]*fake{other, {}}, 1, "another key"},
		"one has it inactive": {[]*fake{{edit: state(kmip14.StateDeactivated)}}, 0, "not active"},
		"one has revoked it":  {[]*fake{{edit: state(kmip14.StateCompromised)}}, 1, "compromised"},
		"one has lost it":     {[]*fake{{edit: state(kmip14.StateDestroyed)}}, 1, "destroyed"},
		"one is late":         {[]*fake{{edit: state(kmip14.StatePreActive)}}, 0, "not active here yet"},
		"one mixes keys up":   {[]*fake{{edit: given(func(r *kmipwire.GetResponse) { r.UniqueIdentifier = "8" })}}, 0, "1 of 2"},
		"one may be late":     {[]*fake{{edit: state(kmip14.StatePreActive)}}, 1, ""},
	} {
		c := cluster(t, append([]*fake{{}}, test.others...)...)
		c.replicaWait, c.minReplicas = 10*time.Millisecond, test.least
		key, err := c.Get(t.Context(), "7")
		if err != nil {
			t.Fatal(err)
		}
		err = c.Prove(t.Context(), key)
		key.Destroy()
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil {
			expect(t, err, ErrUnproven)
		}
	}
}

// TestProveDoesNotWaitInVain: nobody is waited for when enough have the key, or it can't be
// used whatever the others say.
func TestProveDoesNotWaitInVain(t *testing.T) {
	lacks := &fake{edit: fail(kmip14.OperationGet, kmip14.ResultReasonItemNotFound, "")}
	denies := &fake{edit: fail(kmip14.OperationGet, kmip14.ResultReasonPermissionDenied, "")}
	revoked := &fake{edit: state(kmip14.StateDeactivated)}
	for name, test := range map[string]struct {
		other *fake
		least int
		good  bool
	}{
		"enough have it": {&fake{}, 2, true}, "one denies it": {denies, 0, false}, "one has revoked it": {revoked, 2, false},
	} {
		t.Run(name, func(t *testing.T) {
			c := cluster(t, &fake{}, lacks, test.other)
			c.replicaWait, c.minReplicas = time.Hour, test.least
			key, err := c.Get(t.Context(), "7")
			if err != nil {
				t.Fatal(err)
			}
			defer key.Destroy()
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			if err := c.Prove(ctx, key); ctx.Err() != nil || (err == nil) != test.good {
				t.Errorf("%v, %v", err, ctx.Err())
			}
		})
	}
}

// TestProveWithoutServers: that none can be reached says nothing of the key.
func TestProveWithoutServers(t *testing.T) {
	first, second := &fake{}, &fake{}
	c := cluster(t, first, second)
	key, err := c.Get(t.Context(), "7")
	if err != nil {
		t.Fatal(err)
	}
	defer key.Destroy()
	for _, f := range []*fake{first, second} {
		f.mu.Lock()
		f.raw = func(kmip14.Operation, []byte) []byte { return nil }
		f.mu.Unlock()
	}
	err = c.Prove(t.Context(), key)
	expect(t, err, ErrUnavailable)
	for _, f := range []*fake{first, second} {
		if !strings.Contains(err.Error(), f.address+": ") {
			t.Errorf("%s is not named: %v", f.address, err)
		}
	}
}

// TestProveWaits: a replica that is late is waited for.
func TestProveWaits(t *testing.T) {
	late := &fake{}
	asked := 0
	late.edit = func(op kmip14.Operation, resp *kmipwire.ResponseMessage) {
		if op != kmip14.OperationGet {
			return
		}
		if asked++; asked < 3 {
			fail(op, kmip14.ResultReasonItemNotFound, "")(op, resp)
		}
	}
	c := cluster(t, &fake{}, late)
	key, err := c.Get(t.Context(), "7")
	if err != nil {
		t.Fatal(err)
	}
	defer key.Destroy()
	if err := c.Prove(t.Context(), key); err != nil || asked != 3 {
		t.Errorf("asked %d times: %v", asked, err)
	}
}
