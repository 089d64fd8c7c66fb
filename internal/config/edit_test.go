package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

const commented = `# ours
aliases:

  # the first
  A:
    servers:            # in this order
      - address: a:1    # in Ürümqi
      - address: "b:1"
        serverName: b.example.com
    clientCert: a.pem   # mine
    ca: 'it''s.pem'     # theirs

  B: {servers: [{address: "a:1"}], ca: "x}y.pem"}
  C:
    servers: [{address: "c:1"}]

datastores: [/vms] # the end`

var aPin = "sha256:" + strings.Repeat("0a", 32)

func TestSetChangesOnlyWhatItSets(t *testing.T) {
	for name, test := range map[string]struct {
		alias   string
		setting Setting
		from    string // of the file
		to      string // what stands there instead
	}{
		"a value":                    {"A", Setting{"", "clientCert", "new.pem"}, "clientCert: a.pem ", `clientCert: "new.pem" `},
		"a value with quotes":        {"A", Setting{"", "ca", `C:\"x"`}, "'it''s.pem'", `"C:\\\"x\""`},
		"a new key":                  {"A", Setting{"", "clientKey", "a.key"}, "# theirs\n", "# theirs\n    clientKey: \"a.key\"\n"},
		"a server's new key":         {"A", Setting{"a:1", "pin", aPin}, "# in Ürümqi\n", "# in Ürümqi\n        pin: \"" + aPin + "\"\n"},
		"another server's":           {"A", Setting{"b:1", "pin", aPin}, "b.example.com\n", "b.example.com\n        pin: \"" + aPin + "\"\n"},
		"a key taken away":           {"A", Setting{"", "clientCert", ""}, "    clientCert: a.pem   # mine\n", ""},
		"what is not there":          {"A", Setting{"a:1", "pin", ""}, "", ""},
		"a value in braces":          {"B", Setting{"", "ca", "z.pem"}, `"x}y.pem"`, `"z.pem"`},
		"a new key in braces":        {"B", Setting{"", "clientKey", "p"}, "B: {", `B: {clientKey: "p", `},
		"a server's in braces":       {"B", Setting{"a:1", "pin", aPin}, `[{address: "a:1"}], ca`, `[{pin: "` + aPin + `", address: "a:1"}], ca`},
		"taken away in braces":       {"B", Setting{"", "ca", ""}, `"x}y.pem"`, `""`},
		"above what takes more room": {"C", Setting{"", "ca", "c.pem"}, "    servers: [{address: \"c:1\"}]", "    ca: \"c.pem\"\n    servers: [{address: \"c:1\"}]"},
	} {
		t.Run(name, func(t *testing.T) {
			path := write(t, commented)
			if err := Set(path, test.alias, test.setting); err != nil {
				t.Fatal(err)
			}
			want := strings.Replace(commented, test.from, test.to, 1)
			if got := text(t, path); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
			if _, err := Load(path); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestSetMakesAllSettingsOrNone(t *testing.T) {
	path := write(t, commented)
	if err := Set(path, "A", Setting{"", "ca", ""}, Setting{"a:1", "pin", aPin}, Setting{"b:1", "pin", aPin}); err != nil {
		t.Fatal(err)
	}
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if a, _ := c.Alias("A"); a.CA != "" || a.Servers[0].Pin != aPin || a.Servers[1].Pin != aPin {
		t.Errorf("%+v", a)
	}
	before := text(t, path)
	if err := Set(path, "A", Setting{"", "ca", "ca.pem"}, Setting{"c:1", "pin", aPin}); !errors.Is(err, errByHand) {
		t.Errorf("a server that there isn't: %v", err)
	}
	if text(t, path) != before {
		t.Error("the file was changed")
	}
}

// TestSetLeavesToPeople what it can't be sure of.
func TestSetLeavesToPeople(t *testing.T) {
	for name, file := range map[string]string{
		"empty":            "",
		"no aliases":       "engine: auto\n",
		"no such alias":    "aliases:\n  B: {servers: [{address: x}]}\n",
		"a reference":      "aliases:\n  B: &b\n    ca: x\n  A: *b\n",
		"merged":           "x: &x {ca: y}\naliases:\n  A:\n    <<: *x\n    ca: &z y\n",
		"a value in lines": "aliases:\n  A:\n    ca: |\n      x\n",
		"a folded value":   "aliases:\n  A:\n    ca: x\n      y\n",
		"a tag":            "aliases:\n  A:\n    ca: !!str x\n",
		"not YAML":         "aliases: [",
	} {
		path := write(t, file)
		if err := Set(path, "A", Setting{"", "ca", "new.pem"}); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, now %q", name, err, text(t, path))
		}
		if text(t, path) != file {
			t.Errorf("%s: the file was changed", name)
		}
	}
}

func TestSetKeepsLineEndsAndLinks(t *testing.T) {
	file := write(t, "aliases:\r\n  A:\r\n    ca: x\r\n    servers: [{address: \"a:1\"}]")
	link := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	if err := Set(link, "A", Setting{"", "clientCert", "c"}, Setting{"a:1", "pin", "p"}); err != nil {
		t.Fatal(err)
	}
	want := "aliases:\r\n  A:\r\n    ca: x\r\n    clientCert: \"c\"\r\n    servers: [{pin: \"p\", address: \"a:1\"}]"
	if got := text(t, file); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestSetAtOnce: who sets something at the same time loses nothing.
func TestSetAtOnce(t *testing.T) {
	path := write(t, commented)
	link := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			if err := Set([]string{path, link}[i%2], "A", Setting{"", fmt.Sprintf("key%d", i), "x"}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := strings.Count(text(t, path), `: "x"`); n != 20 {
		t.Errorf("%d of 20 settings remain", n)
	}
}

// FuzzSet: whatever the file is, Set does not fail but with an error, and nothing else
// changes in it.
func FuzzSet(f *testing.F) {
	f.Add(commented, "A", "b:1", "pin", "sha256:00")
	f.Add(commented, "B", "", "ca", "")
	f.Add("aliases: {A: {ca: \"\\\"\", x: y}}", "A", "", "ca", "ü")
	f.Fuzz(func(t *testing.T, file, alias, server, key, value string) {
		s := Setting{server, key, value}
		if out, err := s.apply([]byte(file), alias); err == nil && !s.made([]byte(file), out, alias) {
			t.Errorf("%q became %q", file, out)
		}
	})
}

func text(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
