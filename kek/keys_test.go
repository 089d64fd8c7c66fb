package kek

import (
	"path/filepath"
	"slices"
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
	_, err := c.AnyKey(t.Context())
	expect(t, err, ErrNotFound)
	first, second := create(t, c), create(t, c)
	if id, err := c.AnyKey(t.Context()); id != first || err != nil {
		t.Errorf("any key: %q, %v", id, err)
	}
	expectStates(t, c, Active, Active)

	expect(t, c.Destroy(t.Context(), first), ErrInUse)
	for range 2 { // the second time there is nothing to do
		if err := c.Revoke(t.Context(), first, false); err != nil {
			t.Error(err)
		}
	}
	if id, err := c.AnyKey(t.Context()); id != second || err != nil {
		t.Errorf("any key: %q, %v", id, err)
	}
	if err := c.Revoke(t.Context(), second, true); err != nil {
		t.Error(err)
	}
	expectStates(t, c, Deactivated, Compromised)
	if got := c.Check(t.Context(), first)[0]; got.Result != KeyInactive || !strings.Contains(got.Detail, "deactivated") {
		t.Errorf("%+v", got)
	}

	for range 2 {
		if err := c.Destroy(t.Context(), first); err != nil {
			t.Error(err)
		}
	}
	expectStates(t, c, Compromised)
	if got := c.Check(t.Context(), first)[0]; got.Result != KeyMissing || !strings.Contains(got.Detail, "destroyed") {
		t.Errorf("%+v", got)
	}
	for _, id := range []string{"no such key", ""} {
		expect(t, c.Revoke(t.Context(), id, false), ErrNotFound)
		expect(t, c.Destroy(t.Context(), id), ErrNotFound)
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
		// Its key has no name, by which AnyKey does not look for it either.
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
		if _, err := c.AnyKey(t.Context()); (err == nil) != (test.want == Active) {
			t.Errorf("%s: any key: %v", name, err)
		}
	}
}

// expectStates compares the states of all keys, the oldest first.
func expectStates(t *testing.T, c *Cluster, want ...State) {
	t.Helper()
	keys, err := c.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []State
	for _, key := range keys {
		got = append(got, key.State)
		if !strings.HasPrefix(key.Name, "vmcrypt-kek-") || time.Since(key.Created).Abs() > time.Hour {
			t.Errorf("%+v", key)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("states %v, want %v", got, want)
	}
}
