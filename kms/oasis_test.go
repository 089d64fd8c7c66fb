package kms

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ovh/kmip-go/ttlv"
)

// oasisCases tells the test cases that are played from those of profiles that
// vmcrypt has nothing to do with, such as asymmetric keys: Opaque Managed
// Object Store, Storage Array with Self-Encrypting Drives, Symmetric Key
// Foundry, Symmetric Key Lifecycle and Tape Library, and all of the document
// "KMIP Test Cases" (TC), which Baseline draws on.
var oasisCases = regexp.MustCompile(`^(OMOS|SASED|SKFF|SKLC|TL|TC)[-_]`)

// TestOASIS plays the test cases of OASIS against the server. Those that
// docs/kmip.md says not to pass must not, so that it stays true.
func TestOASIS(t *testing.T) {
	t.Parallel()
	root, fails := oasisFolder(t), oasisFails(t)
	for _, version := range []string{"v1.0", "v1.1", "v1.2", "v1.3", "v1.4"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			for name, cases := range oasisServers(t, filepath.Join(root, version)) {
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					playServer(t, filepath.Join(root, version), cases, fails)
				})
			}
		})
	}
	for name := range fails {
		if _, err := os.Stat(filepath.Join(root, name+".xml")); err != nil {
			t.Errorf("docs/kmip.md lists a test case that there is not: %v", err)
		}
	}
}

// playServer plays cases in their order on one server.
func playServer(t *testing.T, folder string, cases []string, fails map[string]string) {
	h := newHome(t)
	_, stop := serve(t, h)
	defer stop()
	registered := map[string]bool{}
	for _, file := range cases {
		name := strings.TrimSuffix(file, ".xml")
		t.Run(name, func(t *testing.T) {
			p := &player{client: dial(t, h), registered: registered, values: map[string]string{}}
			reason, fails := fails[filepath.Base(folder)+"/"+name]
			p.patient = !fails
			err := p.play(filepath.Join(folder, file))
			switch {
			case err == nil && fails:
				t.Errorf("passes: take it off the list of docs/kmip.md, where it says %q", reason)
			case err != nil && !fails:
				t.Error(err)
			case err != nil:
				t.Logf("%s: %v", reason, err)
			}
		})
	}
}

// oasisFails reads from docs/kmip.md the test cases that do not pass and, above
// each list of them, the reason.
func oasisFails(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile("../docs/kmip.md")
	if err != nil {
		t.Fatal(err)
	}
	fails, reason := map[string]string{}, ""
	for line := range strings.Lines(string(text)) {
		if heading, ok := strings.CutPrefix(line, "### "); ok {
			reason = strings.TrimSpace(heading)
		}
		if m := oasisListed.FindStringSubmatch(strings.TrimSpace(line)); m != nil {
			fails[m[1]] = reason
		}
	}
	return fails
}

// oasisListed is a line of docs/kmip.md that names a test case.
var oasisListed = regexp.MustCompile("^- `(v1\\.[0-4]/[^`]+)`$")

// oasisFolder is where the module that brings the test cases lies.
func oasisFolder(t testing.TB) string {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/ovh/kmip-go").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	return filepath.Join(strings.TrimSpace(string(dir)), "kmiptest", "testdata")
}

// oasisServers returns the file names of the test cases that are played on one
// server each, in the order of their numbers. The cases of a profile share one:
// the third of a storage array looks for what the second has left. Those of "KMIP
// Test Cases" do not: they use the same names.
func oasisServers(t *testing.T, folder string) map[string][]string {
	t.Helper()
	files, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	servers := map[string][]string{}
	for _, f := range files {
		m := oasisCases.FindStringSubmatch(f.Name())
		if m == nil {
			continue
		}
		if m[1] == "TC" {
			m[1] = f.Name()
		}
		servers[m[1]] = append(servers[m[1]], f.Name())
	}
	return servers
}

// player plays test cases.
type player struct {
	*client
	// registered tells the objects whose bytes the case knows from those that
	// the server has made up. It is kept from case to case.
	registered map[string]bool
	values     map[string]string // of placeholders
	grouped    bool              // a request has named an Object Group
	patient    bool              // waits for changes
}

// play sends the requests of a test case and compares the responses.
func (p *player) play(path string) error {
	messages, err := readXML(path)
	if err != nil {
		return err
	}
	var before *xmlItem
	for ; len(messages) > 0; messages = messages[2:] {
		if len(messages) < 2 || messages[0].name != "RequestMessage" || messages[1].name != "ResponseMessage" {
			return errors.New("not a request and its response")
		}
		exchange := p.exchange
		if p.patient && reflect.DeepEqual(messages[0], before) {
			exchange = p.await
		}
		if err := exchange(messages[0], messages[1]); err != nil {
			return fmt.Errorf("%s: %w", operations(messages[0]), err)
		}
		before = messages[0]
	}
	return nil
}

// await sends a request again and again until the response is the one wanted. A
// request that repeats the one before it is how a case waits for a key to expire.
func (p *player) await(request, want *xmlItem) error {
	for since := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		err := p.exchange(request, want)
		if err == nil || time.Since(since) > 30*time.Second {
			return err
		}
	}
}

// operations names what a message asks for.
func operations(request *xmlItem) string {
	var names []string
	for _, item := range request.all("BatchItem") {
		names = append(names, item.text("Operation"))
	}
	return strings.Join(names, ", ")
}

// exchange sends a request and compares the response with the one wanted.
func (p *player) exchange(request, want *xmlItem) error {
	p.grouped = p.grouped || request.mentions("Object Group")
	v, err := request.toTTLV("", p.resolve)
	if err != nil {
		return err
	}
	if err := p.conn.Write(context.Background(), ttlv.MarshalTTLV(v)); err != nil {
		return err
	}
	msg, err := p.conn.Read(context.Background())
	if err != nil {
		return err
	}
	var got ttlv.Value
	if err := ttlv.UnmarshalTTLV(msg, &got); err != nil {
		return err
	}
	return (&comparison{player: p, request: request}).message(want, got)
}

// resolve gives the value of a placeholder that a response has shown.
func (p *player) resolve(name string) (string, error) {
	if strings.HasPrefix(name, "$NOW") {
		return name, nil
	}
	if v, ok := p.values[name]; ok {
		return v, nil
	}
	return "", fmt.Errorf("no response has shown %s", name)
}
