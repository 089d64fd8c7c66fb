package kek

import (
	"bytes"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/gemalto/kmip-go/kmip14"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
	"github.com/vmcrypt/vmcrypt/internal/pykmip"
)

// otherBytes has a key manager give another key than theKey.
var otherBytes = given(func(g *kmipwire.GetResponse) {
	g.SymmetricKey.KeyBlock.KeyValue.KeyMaterial = bytes.Repeat([]byte{'X'}, keySize)
})

// unlikeReplicas are key managers of which each has the key "7" in another way.
func unlikeReplicas(t *testing.T) (_ *Cluster, want []KeyResult) {
	t.Helper()
	pki := pykmip.NewPKI(t)
	var addresses []string
	for _, r := range []struct {
		edit func(kmip14.Operation, *kmipwire.ResponseMessage)
		want KeyResult
	}{
		{otherBytes, KeyDifferent},
		{nil, KeyOK},
		{fail(kmip14.OperationGet, kmip14.ResultReasonItemNotFound, "no such object"), KeyMissing},
		{state(kmip14.StateDeactivated), KeyInactive},
		{fail(kmip14.OperationGet, kmip14.ResultReasonPermissionDenied, "not yours"), KeyDenied},
		{state(kmip14.StateDestroyed), KeyMissing},
		{given(func(g *kmipwire.GetResponse) { g.ObjectType = kmip14.ObjectTypeCertificate }), KeyDifferent},
		{given(func(g *kmipwire.GetResponse) { g.UniqueIdentifier = "8" }), KeyUnreachable},
	} {
		f := &fake{pki: pki, edit: r.edit}
		startFake(t, f)
		addresses, want = append(addresses, f.address), append(want, r.want)
	}
	gone := listen(t, func(c net.Conn) { c.Close() })
	return open(t, pki, append(addresses, gone)...), append(want, KeyUnreachable)
}

func results(checks []KeyCheck) (all []KeyResult) {
	for _, k := range checks {
		all = append(all, k.Result)
	}
	return all
}

func TestCheck(t *testing.T) {
	c, want := unlikeReplicas(t)
	checks := c.check(t.Context(), "7", nil)
	if got := results(checks); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	for i, k := range checks {
		if (k.Detail == "") != (k.Result == KeyOK) || k.Address != c.servers[i].Address {
			t.Errorf("%+v", k)
		}
		if text := fmt.Sprintf("%+v", k); strings.Contains(text, string(theKey)) || strings.Contains(text, "XXXX") {
			t.Errorf("a key is in %q", text)
		}
	}
	for _, id := range []string{"", "8\n"} {
		if got := c.check(t.Context(), id, nil)[0]; got.Result != KeyMissing {
			t.Errorf("key %q: %+v", id, got)
		}
	}
}

// TestCheckTakesTheFirstOfTwo: where there is no majority.
func TestCheckTakesTheFirstOfTwo(t *testing.T) {
	first, second := &fake{edit: otherBytes}, &fake{}
	startFake(t, first)
	second.pki = first.pki
	startFake(t, second)
	got := results(open(t, first.pki, first.address, second.address).check(t.Context(), "7", nil))
	if want := []KeyResult{KeyOK, KeyDifferent}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// TestSurvey: each key manager is asked for all keys, unless it can't be reached, and each
// key is wiped when it was seen.
func TestSurvey(t *testing.T) {
	c, want := unlikeReplicas(t)
	connects := make(map[string]int)
	var mu sync.Mutex
	c.Observe(func(x Exchange) {
		mu.Lock()
		defer mu.Unlock()
		if x.Operation == "connect" {
			connects[x.Server]++
		}
	})
	got := map[string][]KeyResult{"7": make([]KeyResult, len(want)), "9": make([]KeyResult, len(want))}
	var keys []*Key
	c.Survey(t.Context(), []string{"7", "9"}, func(id string, server int, check KeyCheck, key *Key) {
		mu.Lock()
		defer mu.Unlock()
		got[id][server] = check.Result
		if key != nil {
			if key.Material.Len() != keySize {
				t.Error("a key is wiped too early")
			}
			keys = append(keys, key)
		}
	})
	want[0] = KeyOK // the keys are not compared
	if !slices.Equal(got["7"], want) {
		t.Errorf("%v, want %v", got["7"], want)
	}
	if got["9"][0] != KeyUnreachable || got["9"][2] != KeyMissing { // the fakes answer for "7"
		t.Errorf("another key: %v", got["9"])
	}
	if gone := c.servers[len(want)-1].Address; connects[gone] != 1 {
		t.Errorf("who can't be reached was asked %d times", connects[gone])
	}
	if len(keys) != 3 {
		t.Errorf("%d keys", len(keys))
	}
	for _, key := range keys {
		if key.Material.Len() != 0 {
			t.Error("a key was not wiped")
		}
	}
}
