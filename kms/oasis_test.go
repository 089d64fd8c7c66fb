package kms

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

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
	root, fails := oasisFolder(t), oasisFails(t)
	for _, version := range []string{"v1.0", "v1.1", "v1.2", "v1.3", "v1.4"} {
		t.Run(version, func(t *testing.T) {
			for _, cases := range oasisProfiles(t, filepath.Join(root, version)) {
				playProfile(t, filepath.Join(root, version), cases, fails)
			}
		})
	}
	for name := range fails {
		if _, err := os.Stat(filepath.Join(root, name+".xml")); err != nil {
			t.Errorf("docs/kmip.md lists a test case that there is not: %v", err)
		}
	}
}

// playProfile plays cases in their order on one server: the third case of a
// storage array looks for what the second has left.
func playProfile(t *testing.T, folder string, cases []string, fails map[string]string) {
	h := newHome(t)
	_, stop := serve(t, h)
	defer stop()
	registered := map[string]bool{}
	for _, file := range cases {
		name := strings.TrimSuffix(file, ".xml")
		t.Run(name, func(t *testing.T) {
			p := &player{client: dial(t, h), registered: registered, values: map[string]string{}}
			err := p.play(filepath.Join(folder, file))
			reason, known := fails[filepath.Base(folder)+"/"+name]
			switch {
			case err == nil && known:
				t.Errorf("passes: take it off the list of docs/kmip.md, where it says %q", reason)
			case err != nil && !known:
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
func oasisFolder(t *testing.T) string {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/ovh/kmip-go").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	return filepath.Join(strings.TrimSpace(string(dir)), "kmiptest", "testdata")
}

// oasisProfiles returns the file names of test cases by profile, in the order
// of their numbers.
func oasisProfiles(t *testing.T, folder string) map[string][]string {
	t.Helper()
	files, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	profiles := map[string][]string{}
	for _, f := range files {
		if m := oasisCases.FindStringSubmatch(f.Name()); m != nil {
			profiles[m[1]] = append(profiles[m[1]], f.Name())
		}
	}
	return profiles
}

// player plays test cases.
type player struct {
	*client
	// registered tells the objects whose bytes the case knows from those that
	// the server has made up. It is kept from case to case.
	registered map[string]bool
	values     map[string]string // of placeholders
}

func (p *player) play(path string) error {
	messages, err := readXML(path)
	if err != nil {
		return err
	}
	for len(messages) > 0 {
		if len(messages) < 2 || messages[0].name != "RequestMessage" || messages[1].name != "ResponseMessage" {
			return errors.New("not a request and its response")
		}
		if err := p.exchange(messages[0], messages[1]); err != nil {
			return fmt.Errorf("%s: %w", operations(messages[0]), err)
		}
		messages = messages[2:]
	}
	return nil
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
