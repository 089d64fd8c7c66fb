package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmcrypt/vmcrypt/image"
	"github.com/vmcrypt/vmcrypt/vmx"
)

// TestCircles: which VMs could be unlocked, one after the other, if all were locked.
func TestCircles(t *testing.T) {
	tests := map[string]struct {
		vms   map[string][]string
		needs map[string][]need
		down  string // the way from "a" round, "" if it can be unlocked
	}{
		"nothing is known":   {nil, map[string][]need{"a": {{"k"}}}, ""},
		"outside of VMs":     {map[string][]string{"k": {""}}, map[string][]need{"a": {{"k"}}}, ""},
		"in itself":          {map[string][]string{"k": {"a"}}, map[string][]need{"a": {{"k"}}}, `a needs "k", which runs in a`},
		"in itself and else": {map[string][]string{"k": {"a", ""}}, map[string][]need{"a": {{"k"}}}, ""},
		"plain":              {map[string][]string{"k": {"a"}}, map[string][]need{"a": nil}, ""},
		"round": {
			map[string][]string{"k": {"b"}, "l": {"a"}}, map[string][]need{"a": {{"k"}}, "b": {{"l"}}},
			`a needs "k", which runs in b, and that needs "l", which runs in a`,
		},
		"round three": {
			map[string][]string{"k": {"b"}, "l": {"c"}, "m": {"a"}}, map[string][]need{"a": {{"k"}}, "b": {{"l"}}, "c": {{"m"}}},
			`a needs "k", which runs in b, and that needs "l", which runs in c, and that needs "m", which runs in a`,
		},
		"round, but for another recipient": {
			map[string][]string{"k": {"b"}, "l": {"a"}, "m": {""}}, map[string][]need{"a": {{"k"}}, "b": {{"l", "m"}}}, "",
		},
		"one disk of two": {
			map[string][]string{"k": {""}, "l": {"a"}}, map[string][]need{"a": {{"k"}, {"l"}}}, `a needs "l", which runs in a`,
		},
		"one that another's circle keeps locked": {
			map[string][]string{"k": {"b"}, "l": {"b"}}, map[string][]need{"a": {{"k"}}, "b": {{"l"}}},
			`a needs "k", which runs in b, and that needs "l", which runs in b`,
		},
	}
	for name, test := range tests {
		c := &circles{vms: test.vms, needs: test.needs}
		up, way := c.startable(), ""
		if !up["a"] {
			way = c.from("a", up)
		}
		if way != test.down {
			t.Errorf("%s: %q, want %q", name, way, test.down)
		}
	}
}

// TestKeyManagerByUUID: a VM that runs a key manager is found in the datastores by its
// UUID, as libvirt and VMware write it, and by whatever path leads to it.
func TestKeyManagerByUUID(t *testing.T) {
	datastore := t.TempDir()
	at := func(name string) string { return filepath.Join(datastore, name) }
	text := "displayName = \"kms\"\nuuid.bios = \"56 4d 0b 11 22 33 44 55-66 77 88 99 aa bb cc dd\"\nscsi0:0.fileName = \"disk.img\"\n"
	if err := errors.Join(os.WriteFile(at("kms.vmx"), []byte(text), 0o600), os.WriteFile(at("disk.img"), make([]byte, 1<<20), 0o600),
		os.Symlink(at("kms.vmx"), at("link.vmx"))); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"564d0b11-2233-4455-6677-8899aabbccdd", at("kms.vmx"), at("link.vmx")} {
		h := &Host{Datastores: []string{datastore}, KeyManagerVMs: map[string][]string{"k": {name}, "l": {"", name}}}
		target, err := Open(at("kms.vmx"), image.Format(""))
		if err != nil {
			t.Fatal(err)
		}
		err = h.checkCircle(t.Context(), target.Disks, "k")
		if !errors.Is(err, ErrCircle) || !strings.Contains(err.Error(), `needs "k"`) {
			t.Errorf("%s: %v", name, err)
		}
		if err := h.checkCircle(t.Context(), target.Disks, "l"); err != nil {
			t.Errorf("%s, under another alias: %v", name, err)
		}
		c, err := h.newCircles(context.WithoutCancel(t.Context()), nil)
		if err != nil || len(c.needs) != 1 || c.vms["k"][0] != at("kms.vmx") {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
}

// TestKeyManagerThatWasCopied: of the plain VM that an encrypted copy was made of, there
// may be the files still. The copy is what counts, whichever is found last.
func TestKeyManagerThatWasCopied(t *testing.T) {
	target, change := encryptedTarget(t)
	const id = "564d0b11-2233-4455-6677-8899aabbccdd"
	change(func(f *vmx.File) error { return f.Set("uuid.bios", id) })
	text := "uuid.bios = \"" + id + "\"\nscsi0:0.fileName = \"a.img\"\n"
	encrypted, plain := filepath.Dir(target.Descriptor), t.TempDir()
	if err := os.WriteFile(filepath.Join(plain, "vm.vmx"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, datastores := range [][]string{{encrypted, plain}, {plain, encrypted}} {
		h := &Host{Datastores: datastores, KeyManagerVMs: map[string][]string{"prod": {id}}}
		all, err := h.Circles(t.Context())
		if err != nil || len(all) != 1 || !strings.Contains(all[0], target.Descriptor) {
			t.Errorf("%q, %v", all, err)
		}
	}
}
