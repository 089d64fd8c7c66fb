// Package vmcrypt_test checks what holds for the module as a whole.
package vmcrypt_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
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
	"agent": {"blockcrypt", "browse", "dek", "image", "internal/config", "internal/durable",
		"internal/secret", "kek", "vmx"},
	"blockcrypt":          {"image", "internal/durable"},
	"browse":              {"image"},
	"cmd/vmcrypt":         {"agent", "blockcrypt", "browse", "dek", "image", "internal/config", "internal/durable", "internal/secret", "kek", "kms", "vmx"},
	"dek":                 {"internal/secret"},
	"image":               {},
	"internal/config":     {"kek"},
	"internal/durable":    {},
	"internal/kmipwire":   {},
	"internal/pykmip":     {"internal/testtool"},
	"internal/secret":     {},
	"internal/testtool":   {},
	"kek":                 {"internal/kmipwire", "internal/secret"},
	"kms":                 {"internal/durable", "internal/kmipwire", "internal/secret"},
	"testimages":          {"image"},
	"testimages/generate": {"testimages"},
	"vmx":                 {"internal/durable"},
}

func TestImportDirections(t *testing.T) {
	imports := ourImports(t)
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

// ourImports returns, for each package of the module, those of the module that
// its files import; files of tests do not count, files of every platform do.
func ourImports(t *testing.T) map[string][]string {
	imports := map[string][]string{}
	err := filepath.WalkDir(".", func(file string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			return skipDir(file)
		case strings.HasSuffix(file, ".go") && !strings.HasSuffix(file, "_test.go"):
			pkg := path.Dir(filepath.ToSlash(file))
			imports[pkg] = append(imports[pkg], importsOf(t, file)...)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return imports
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

func importsOf(t *testing.T, file string) []string {
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
	if err != nil {
		t.Fatal(err)
	}
	var ours []string
	for _, spec := range parsed.Imports {
		name, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			t.Fatal(err)
		}
		if pkg, ok := strings.CutPrefix(name, module+"/"); ok {
			ours = append(ours, pkg)
		}
	}
	return ours
}
