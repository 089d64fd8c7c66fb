package daemon

import (
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/vmcrypt/vmcrypt/agent/api"
)

// TestOperationsAreDocumented: openapi.yaml has them all, and no others.
func TestOperationsAreDocumented(t *testing.T) {
	var document struct {
		Paths map[string]map[string]any
	}
	if err := yaml.Unmarshal(api.OpenAPI, &document); err != nil {
		t.Fatal(err)
	}
	var documented, there []string
	for path, methods := range document.Paths {
		for method := range methods {
			documented = append(documented, strings.ToUpper(method)+" "+path)
		}
	}
	for pattern := range (&daemon{}).operations() {
		there = append(there, pattern)
	}
	slices.Sort(documented)
	slices.Sort(there)
	if !slices.Equal(documented, there) {
		t.Errorf("documented are\n%v, and there are\n%v", documented, there)
	}
}
