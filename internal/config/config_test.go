package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmcrypt/vmcrypt/internal/testtool"
)

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestTemplateLoads(t *testing.T) {
	path := write(t, string(Template("127.0.0.1:1234")))
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	k, ok := c.Alias(LocalAlias)
	if !ok || c.DefaultAlias != LocalAlias || c.Engine != "auto" || len(k.Servers) != 1 {
		t.Fatalf("%+v", c)
	}
	if k.Servers[0].Address != "127.0.0.1:1234" || k.CA != filepath.Join(filepath.Dir(path), "ca.pem") {
		t.Errorf("%+v", k)
	}
}

func TestTemplateHoldsDatastores(t *testing.T) {
	want := []string{"/srv/vms", `/srv/of "us": [2]`}
	c, err := Load(write(t, string(Template("127.0.0.1:1234", want...))))
	if err != nil || !slices.Equal(c.Datastores, want) {
		t.Errorf("%v, %v", c, err)
	}
}

func TestWholeConfigurationLoads(t *testing.T) {
	c, err := Load(write(t, `
defaultAlias: B
engine: crypto-aes
aliases:
  B: {servers: [{address: "b:5696"}], clientCert: /c.pem, clientKey: /c.key, ca: /ca.pem}
  A: {servers: [{address: "a1:5696"}, {address: "a2:5696"}], clientCert: c.pem, clientKey: c.key, ca: ca.pem}
datastores: [/vms]
agent: {socket: /run/vmcrypt/agent.sock}
`))
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(c.AliasNames(), " "); got != "A B" {
		t.Errorf("aliases %s", got)
	}
	if b, _ := c.Alias("B"); b.CA != "/ca.pem" {
		t.Errorf("an absolute path became %s", b.CA)
	}
}

func TestLoadNamesFileLineAndKey(t *testing.T) {
	path := write(t, "engine: auto\naliases:\n  a:\n    servers:\n      - addr: x:1\n")
	if _, err := Load(path); err == nil || err.Error() != path+`:5: unknown key "addr"` {
		t.Error(err)
	}
}

func TestLoadRefusesHugeFiles(t *testing.T) {
	if _, err := Load(write(t, strings.Repeat("#\n", maxSize/2+1))); err == nil {
		t.Error("a file of more than 1 MiB was read")
	}
}

// TestLocateAsUser: a user's places are others than root's.
func TestLocateAsUser(t *testing.T) {
	if testtool.Unprivileged(t) {
		TestLocate(t)
	}
}

func TestLocate(t *testing.T) {
	user := os.Geteuid() != 0
	for _, test := range []struct {
		name        string
		env         map[string]string
		file        string
		skip        bool
		config, dir string
	}{
		{"home", map[string]string{"VMCRYPT_HOME": "/h"}, "", false, "/h/config.yaml", "/h"},
		{"file", map[string]string{"VMCRYPT_HOME": "/h"}, "/x/y.yaml", false, "/x/y.yaml", "/h"},
		{"root", nil, "", user, "/etc/vmcrypt/config.yaml", "/var/lib/vmcrypt"},
		{"user", map[string]string{"HOME": "/u"}, "", !user, "/u/.config/vmcrypt/config.yaml", "/u/.local/share/vmcrypt"},
		{"XDG", map[string]string{"XDG_CONFIG_HOME": "/c", "XDG_DATA_HOME": "/d"}, "", !user, "/c/vmcrypt/config.yaml", "/d/vmcrypt"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.skip {
				t.Skip("depends on being root")
			}
			for _, name := range []string{"VMCRYPT_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"} {
				t.Setenv(name, test.env[name])
			}
			if home := test.env["HOME"]; home != "" {
				t.Setenv("HOME", home)
			}
			p, err := Locate(test.file)
			if err != nil || p.File != test.config || p.State != test.dir {
				t.Errorf("%+v, %v", p, err)
			}
		})
	}
}

func TestSomeAddressesAreForThisHostOnly(t *testing.T) {
	for _, key := range []string{"agent: http", "agent: metrics", "kms: metrics"} {
		section, name, _ := strings.Cut(key, ": ")
		for address, good := range map[string]bool{
			"/run/vmcrypt/metrics.sock": true, "127.0.0.1:9750": true, `"[::1]:9750"`: true,
			"0.0.0.0:9750": false, "9750": false, "metrics.sock": false, `":9750"`: false, "192.0.2.7:9750": false,
		} {
			path := write(t, "engine: auto\n"+section+":\n  "+name+": "+address+"\n")
			_, err := Load(path)
			if good != (err == nil) || err != nil && !strings.HasPrefix(err.Error(), path+":3: "+key+": ") {
				t.Errorf("%s %s: %v", key, address, err)
			}
		}
	}
}

// TestVMsByUUID: of the VM of a key manager, in the spelling of descriptors and of libvirt.
func TestVMsByUUID(t *testing.T) {
	for text, good := range map[string]bool{
		"56 4d 0b 11 22 33 44 55-66 77 88 99 aa bb cc dd": true, "564d0b11-2233-4455-6677-8899AABBCCDD": true,
		"urn:uuid:564d0b11-2233-4455-6677-8899aabbccdd": false, "564d0b11": false, "kms-a": false,
	} {
		_, err := Load(write(t, "aliases: {a: {servers: [{address: \"a:1\", vm: \""+text+"\"}]}}\n"))
		if (err == nil) != good {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestPinsAreChecked(t *testing.T) {
	for text, want := range map[string]string{
		"{servers: [{address: x}], pin: \"" + aPin + "\"}":                 "",
		"{servers: [{address: x, pin: \"" + aPin + "\"}], ca: c.pem}":      "",
		"{servers: [{address: x}], ca: c.pem, pin: \"" + aPin + "\"}":      ":3: aliases: a: pin: name either",
		"{servers: [{address: x}], pin: \"sha256:00\"}":                    ":3: aliases: a: pin: ",
		"{servers: [{address: x, pin: \"sha1:" + aPin[7:] + "\"}], ca: c}": ":3: aliases: a: servers: x: pin: ",
	} {
		path := write(t, "engine: auto\naliases:\n  a: "+text+"\n")
		_, err := Load(path)
		if want == "" && err != nil || want != "" && (err == nil || !strings.HasPrefix(err.Error(), path+want)) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}
