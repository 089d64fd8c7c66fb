// Package vmcrypt_test checks what holds for the module as a whole.
package vmcrypt_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/vmcrypt/vmcrypt"

// mayImport says which of our packages each package may import outside of
// tests: workflows above facts, key management apart from disk formats. kek
// and kms, the two ends of KMIP, meet only in cmd; what is made for tests is
// imported by tests alone. A new package needs a line here.
var mayImport = map[string][]string{
	"agent":                      {"agent/diskserver", "blockcrypt", "blockcrypt/conversion", "browse", "dek", "image", "internal/durable", "internal/listen", "internal/secret", "internal/text", "kek", "nbd", "vmx"},
	"agent/api":                  {},
	"agent/daemon":               {"agent", "agent/api", "agent/diskserver", "agent/page", "image", "internal/audit", "internal/durable", "internal/listen", "internal/metrics", "internal/systemd", "internal/text", "kek"},
	"agent/diskserver":           {"blockcrypt", "dek", "image", "internal/secret", "nbd", "vmx"},
	"agent/page":                 {"agent/api", "internal/durable", "internal/listen"},
	"blockcrypt":                 {"image", "internal/durable", "internal/secret"},
	"blockcrypt/conversion":      {"blockcrypt", "image"},
	"browse":                     {"image"},
	"cmd/vmcrypt":                {"agent", "agent/api", "agent/daemon", "agent/diskserver", "agent/page", "blockcrypt", "blockcrypt/conversion", "browse", "dek", "image", "internal/audit", "internal/config", "internal/durable", "internal/libvirtxml", "internal/listen", "internal/logging", "internal/measure", "internal/secret", "internal/systemd", "kek", "kms", "nbd", "vmx"},
	"dek":                        {"internal/secret"},
	"image":                      {},
	"internal/audit":             {"internal/durable"},
	"internal/ceiling":           {},
	"internal/config":            {"internal/durable", "internal/listen", "kek"},
	"internal/durable":           {},
	"internal/faultproxy":        {"internal/kmipwire", "kms"},
	"internal/kmipwire":          {},
	"internal/libvirtxml":        {},
	"internal/logging":           {},
	"internal/listen":            {},
	"internal/measure":           {},
	"internal/metrics":           {"internal/listen"},
	"internal/metricstest":       {},
	"internal/netns":             {"internal/testtool"},
	"internal/ovhkmip":           {"internal/kmipwire", "internal/pykmip"},
	"internal/performance":       {"agent/api", "blockcrypt", "image", "internal/ceiling", "internal/config", "internal/kmipwire", "internal/measure", "nbd"},
	"internal/pykmip":            {"internal/testtool"},
	"internal/registers":         {},
	"internal/secret":            {},
	"internal/secret/secrettest": {"internal/secret"},
	"internal/systemd":           {},
	"internal/testtool":          {},
	"internal/text":              {},
	"kek":                        {"internal/kmipwire", "internal/secret", "internal/text"},
	"kms":                        {"internal/audit", "internal/durable", "internal/kmipwire", "internal/listen", "internal/metrics", "internal/secret", "internal/text"},
	"nbd":                        {"image"},
	"testimages":                 {"image"},
	"testimages/generate":        {"testimages"},
	"vmx":                        {"internal/durable"},
}

func TestImportDirections(t *testing.T) {
	imports := map[string][]string{}
	for _, f := range goFiles(t) {
		if !f.test {
			imports[f.pkg] = append(imports[f.pkg], f.ours()...)
		}
	}
	for pkg, imported := range imports {
		allowed, known := mayImport[pkg]
		if !known {
			t.Errorf("package %s is not in the table of import directions: add it", pkg)
			continue
		}
		for _, i := range imported {
			if !slices.Contains(allowed, i) {
				t.Errorf("%s imports %s: it may import only %v of this module", pkg, i, allowed)
			}
		}
	}
	for pkg := range mayImport {
		if _, ok := imports[pkg]; !ok {
			t.Errorf("package %s is in the table of import directions, but not in the module", pkg)
		}
	}
}

func TestDependenciesAreDocumented(t *testing.T) {
	documented := documentedModules(t)
	used := map[string]bool{}
	for _, f := range goFiles(t) {
		for _, i := range f.foreign() {
			at := slices.IndexFunc(documented, func(m string) bool { return i == m || strings.HasPrefix(i, m+"/") })
			if at < 0 {
				t.Errorf("%s imports %s, whose module is not in docs/dependencies.md", f.path, i)
				continue
			}
			used[documented[at]] = true
		}
	}
	for _, m := range documented {
		if !used[m] {
			t.Errorf("docs/dependencies.md lists %s, which nothing imports", m)
		}
	}
}

// TestDocumentsAreMerged: no conflict of a merge was left in them.
func TestDocumentsAreMerged(t *testing.T) {
	ours, _ := filepath.Glob("*.md")
	docs, _ := filepath.Glob("docs/*.md")
	marker := regexp.MustCompile(`(?m)^(<{7}|>{7})( .*)?$`)
	for _, file := range append(ours, docs...) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if m := marker.Find(text); m != nil {
			t.Errorf("%s: %q", file, m)
		}
	}
}

func documentedModules(t *testing.T) []string {
	text, err := os.ReadFile("docs/dependencies.md")
	if err != nil {
		t.Fatal(err)
	}
	var modules []string
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllSubmatch(text, -1) {
		modules = append(modules, string(row[1]))
	}
	return modules
}

// goFile is a Go file of the module, for whatever platform it is.
type goFile struct {
	path, pkg string
	test      bool
	imports   []string
}

// ours returns the packages of this module that the file imports.
func (f goFile) ours() []string {
	var ours []string
	for _, i := range f.imports {
		if pkg, ok := strings.CutPrefix(i, module+"/"); ok {
			ours = append(ours, pkg)
		}
	}
	return ours
}

// foreign returns the packages of other modules that the file imports.
func (f goFile) foreign() []string {
	return slices.DeleteFunc(slices.Clone(f.imports), func(i string) bool {
		host, _, _ := strings.Cut(i, "/")
		return !strings.Contains(host, ".") || strings.HasPrefix(i, module)
	})
}

func goFiles(t *testing.T) []goFile {
	var files []goFile
	err := filepath.WalkDir(".", func(file string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			return skipDir(file)
		case strings.HasSuffix(file, ".go"):
			files = append(files, parse(t, file))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func parse(t *testing.T, file string) goFile {
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
	if err != nil {
		t.Fatal(err)
	}
	f := goFile{path: file, pkg: filepath.Dir(file), test: strings.HasSuffix(file, "_test.go")}
	for _, spec := range parsed.Imports {
		name, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			t.Fatal(err)
		}
		f.imports = append(f.imports, name)
	}
	return f
}

// skipDir skips folders that belong to no package of this module.
func skipDir(dir string) error {
	if dir == "." {
		return nil
	}
	base := filepath.Base(dir)
	_, err := os.Stat(filepath.Join(dir, "go.mod"))
	if err == nil || base == "testdata" || strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_") {
		return fs.SkipDir
	}
	return nil
}
