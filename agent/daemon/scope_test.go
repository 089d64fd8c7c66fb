package daemon

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// TestScopeOfHostileName: who names a folder in a datastore writes no settings of a unit.
func TestScopeOfHostileName(t *testing.T) {
	m := &machine{descriptor: "/vms/x\n[Unit]\nSuccessAction=reboot-force\r\xff/web01.vmx\\"}
	got := m.scopeOf(1).Description
	if strings.ContainsFunc(got, unicode.IsControl) || !utf8.ValidString(got) || strings.HasSuffix(got, "\\") || !strings.Contains(got, "web01") {
		t.Errorf("%q", got)
	}
}
