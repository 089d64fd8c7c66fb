package kek

import (
	"context"
	"errors"
	"maps"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gemalto/kmip-go/kmip14"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
	"github.com/vmcrypt/vmcrypt/kms"
)

// newKMS is a client of a new key manager that ships with vmcrypt.
func newKMS(t *testing.T) *Cluster {
	t.Helper()
	dir := t.TempDir()
	home := kms.Home{Config: filepath.Join(dir, "config.yaml"), Dir: filepath.Join(dir, "kms")}
	if err := home.Init([]byte("# made by a test\n")); err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	c, err := Open("test", Config{
		Servers:    []Server{{Address: "127.0.0.1:5696"}},
		ClientCert: at("client.pem"), ClientKey: at("client.key"), CA: at("ca.pem"),
	}, home.Dial)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func create(t *testing.T, c *Cluster) string {
	t.Helper()
	key, err := c.Create(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	key.Destroy()
	return key.ID
}

func TestLifeOfKeys(t *testing.T) {
	c := newKMS(t)
	id := lifeOfKeys(t, c, ErrDestroyed)
	if got := c.check(t.Context(), id, nil)[0]; got.Result != KeyMissing || !strings.Contains(got.Detail, "destroyed") {
		t.Errorf("%+v", got)
	}
	if err := c.Destroy(t.Context(), id); err != nil {
		t.Errorf("there is nothing to do: %v", err)
	}
}

// lifeOfKeys has a key manager without keys do all that vmcrypt asks of one, and gives the
// ID of a key that was destroyed, which fails with gone.
func lifeOfKeys(t *testing.T, c *Cluster, gone error) string {
	t.Helper()
	_, _, err := c.Canary(t.Context())
	expect(t, err, ErrNotFound)
	first, second := create(t, c), create(t, c)
	for _, id := range []string{first, second} {
		checkFound(t, c, id)
	}
	expectStates(t, c, map[string]State{first: Active, second: Active})
	if id, checks, err := c.Canary(t.Context()); id != first && id != second || err != nil || checks[0].Result != KeyOK {
		t.Errorf("canary %q: %+v, %v", id, checks, err)
	}

	expect(t, c.Destroy(t.Context(), first), ErrInUse)
	for range 2 { // the second time there is nothing to do
		revoke(t, c, first, false)
	}
	if id, _, err := c.Canary(t.Context()); id != second || err != nil {
		t.Errorf("any key: %q, %v", id, err)
	}
	revoke(t, c, second, true)
	expectStates(t, c, map[string]State{first: Deactivated, second: Compromised})
	if got := c.check(t.Context(), first, nil)[0]; got.Result != KeyInactive || !strings.Contains(got.Detail, "deactivated") {
		t.Errorf("%+v", got)
	}
	checkRefused(t, c, first)

	for i, id := range []string{first, second} {
		if err := c.Destroy(t.Context(), id); err != nil {
			t.Error(err)
		}
		expectStates(t, c, []map[string]State{{second: Compromised}, {}}[i])
		_, err := c.Get(t.Context(), id)
		expect(t, err, gone)
		expect(t, c.Revoke(t.Context(), id, false), gone)
	}
	for _, id := range []string{"4711", ""} {
		expect(t, c.Revoke(t.Context(), id, false), ErrNotFound)
		expect(t, c.Destroy(t.Context(), id), ErrNotFound)
		_, err := c.Get(t.Context(), id)
		expect(t, err, ErrNotFound)
	}
	return first
}

func revoke(t *testing.T, c *Cluster, id string, compromised bool) {
	t.Helper()
	if err := c.Revoke(t.Context(), id, compromised); err != nil {
		t.Error(err)
	}
}

// checkFound looks for an active key by its ID and by its name.
func checkFound(t *testing.T, c *Cluster, id string) {
	t.Helper()
	key, err := c.Get(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer key.Destroy()
	if err := c.Prove(t.Context(), key); err != nil || key.State != Active || key.Usable() != nil || key.Material.Len() != keySize {
		t.Errorf("%+v, %v", key, err)
	}
	find := func(ctx context.Context, s *session) (*Key, error) {
		info, err := s.describe(ctx, id)
		if err != nil {
			return nil, err
		}
		return s.find(ctx, info.Name)
	}
	found, err := ask(t.Context(), c, find, (*Key).Destroy)
	if err != nil {
		t.Fatal(err)
	}
	defer found.Destroy()
	if found.ID != id || !found.Material.Equal(key.Material) {
		t.Errorf("by its name key %s is %s", id, found.ID)
	}
}

// checkRefused: a key that is deactivated is given, but is good for nothing new.
func checkRefused(t *testing.T, c *Cluster, id string) {
	t.Helper()
	key, err := c.Get(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer key.Destroy()
	expect(t, key.Usable(), ErrInactive)
	if err := c.Prove(t.Context(), key); !errors.Is(err, ErrUnproven) {
		t.Error(err)
	}
}

// TestExpired: a key whose time is over is not for wrapping, though its state says active,
// and not what key managers are tried with.
func TestExpired(t *testing.T) {
	for name, test := range map[string]struct {
		attribute string
		at        time.Time
		want      State
	}{
		"protect stop date":      {kmipwire.AttrProtectStopDate, time.Now(), Expired},
		"deactivation date":      {kmipwire.AttrDeactivationDate, time.Now().Add(-time.Hour), Expired},
		"dates to come":          {kmipwire.AttrDeactivationDate, time.Now().Add(time.Hour), Active},
		"date that says nothing": {kmipwire.AttrInitialDate, time.Now().Add(-time.Hour), Active},
	} {
		// Its key has no name, by which Canary does not look for it either.
		c := startFake(t, &fake{names: []string{""}, edit: item(kmip14.OperationGetAttributes, func(i *kmipwire.ResponseBatchItem) {
			resp := i.ResponsePayload.(*kmipwire.GetAttributesResponse)
			resp.Attribute = append(resp.Attribute, kmipwire.Attribute{AttributeName: test.attribute, AttributeValue: test.at})
		})})
		key, err := c.Get(t.Context(), "7")
		if err != nil {
			t.Fatal(err)
		}
		if key.State != test.want || (key.Usable() == nil) != (test.want == Active) {
			t.Errorf("%s: %s: %v", name, key.State, key.Usable())
		}
		key.Destroy()
		expect(t, c.Destroy(t.Context(), "7"), ErrInUse)
		if _, _, err := c.Canary(t.Context()); (err == nil) != (test.want == Active) {
			t.Errorf("%s: any key: %v", name, err)
		}
	}
}

// TestChangeOfAnotherKey: a server that says it has changed another key has not done what it
// was asked for.
func TestChangeOfAnotherKey(t *testing.T) {
	c := startFake(t, &fake{edit: func(op kmip14.Operation, resp *kmipwire.ResponseMessage) {
		item(kmip14.OperationRevoke, func(i *kmipwire.ResponseBatchItem) {
			i.ResponsePayload = &kmipwire.RevokeResponse{UniqueIdentifier: "8"}
		})(op, resp)
		item(kmip14.OperationDestroy, func(i *kmipwire.ResponseBatchItem) {
			i.ResponsePayload = &kmipwire.DestroyResponse{UniqueIdentifier: "8"}
		})(op, resp)
		state(kmip14.StateDeactivated)(op, resp)
	}})
	expect(t, c.Revoke(t.Context(), "7", false), ErrUnavailable)
	expect(t, c.Destroy(t.Context(), "7"), ErrUnavailable)
}

// expectStates compares the states of all keys.
func expectStates(t *testing.T, c *Cluster, want map[string]State) {
	t.Helper()
	keys, err := c.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]State{}
	for _, key := range keys {
		got[key.ID] = key.State
		if !strings.HasPrefix(key.Name, "vmcrypt-kek-") || time.Since(key.Created).Abs() > time.Hour {
			t.Errorf("%+v", key)
		}
	}
	if !maps.Equal(got, want) || len(keys) != len(want) {
		t.Errorf("states %v, want %v", got, want)
	}
}
