package kms

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/gemalto/kmip-go/kmip14"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// docsTable returns the rows of the table in docs/kmip.md whose first column has
// that heading.
func docsTable(t *testing.T, heading string) [][]string {
	t.Helper()
	text, err := os.ReadFile("../docs/kmip.md")
	if err != nil {
		t.Fatal(err)
	}
	var rows [][]string
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if len(rows) > 0 || cells[0] == heading {
			if len(cells) == 1 {
				break
			}
			rows = append(rows, cells)
		}
	}
	if len(rows) < 3 {
		t.Fatalf("docs/kmip.md has no table %q", heading)
	}
	return slices.Delete(rows, 1, 2)
}

// TestDocumentedOperations compares the table of docs/kmip.md with what the
// server says of itself.
func TestDocumentedOperations(t *testing.T) {
	t.Parallel()
	rows := docsTable(t, "operation")
	c := dial(t, newHome(t))
	for column, v := range rows[0] {
		if column == 0 {
			continue
		}
		var want, got []string
		for _, row := range rows[1:] {
			if row[column] == "yes" {
				want = append(want, plain(row[0]))
			}
		}
		if _, err := fmt.Sscanf(v, "%d.%d", &c.version.ProtocolVersionMajor, &c.version.ProtocolVersionMinor); err != nil {
			t.Fatal(err)
		}
		r := do[kmipwire.QueryResponse](c, kmip14.OperationQuery,
			&kmipwire.QueryRequest{QueryFunction: []kmip14.QueryFunction{kmip14.QueryFunctionQueryOperations}})
		for _, op := range r.Operation {
			got = append(got, plain(op.String()))
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("KMIP %s: Query says %v, docs/kmip.md %v", v, got, want)
		}
	}
}

// plain is a name without what specification and code spell differently.
func plain(name string) string {
	return strings.ToLower(strings.NewReplacer(" ", "", "-", "").Replace(name))
}

// TestDocumentedAttributes compares the table of docs/kmip.md with the one that
// the server goes by.
func TestDocumentedAttributes(t *testing.T) {
	var documented, known [][]string
	for _, row := range docsTable(t, "attribute")[1:] {
		documented = append(documented, []string{row[0], row[1], row[3]})
	}
	for _, a := range attributeTable {
		instances := "one"
		if a.many {
			instances = "several"
		}
		known = append(known, []string{a.name, fmt.Sprintf("1.%d", a.since), instances})
	}
	if !slices.EqualFunc(documented, known, slices.Equal) {
		t.Errorf("docs/kmip.md: %q\nserver: %q", documented, known)
	}
}

// TestDocumentedLimits compares the table of docs/kmip.md with the constants.
func TestDocumentedLimits(t *testing.T) {
	l := serverLimits
	want := map[string]string{
		"message":                           fmt.Sprintf("%d MiB, nested %d deep", kmipwire.MaxMessage>>20, kmipwire.MaxDepth),
		"operations in a message":           fmt.Sprint(maxBatch),
		"objects in an answer to Locate":    fmt.Sprint(maxLocated),
		"names and attribute names":         fmt.Sprintf("%d bytes", maxText),
		"value of an attribute":             fmt.Sprintf("%d KiB", maxValue>>10),
		"instances of an attribute":         fmt.Sprint(maxInstances),
		"secret data and opaque objects":    fmt.Sprintf("%d KiB", maxMaterial>>10),
		"TLS handshake":                     fmt.Sprintf("%.0f s", serverTimeouts.Handshake.Seconds()),
		"a message from first to last byte": fmt.Sprintf("%.0f s", serverTimeouts.Message.Seconds()),
		"wait for the next message":         fmt.Sprintf("%.0f min", serverTimeouts.Idle.Minutes()),
		"connections":                       fmt.Sprintf("%d; of one client %d, of one address %d, in handshakes %d", l.connections, l.perClient, l.perAddress, l.handshakes),
		"messages being answered":           fmt.Sprintf("%d, of one client %d", l.requests, l.requestsPerClient),
	}
	for _, row := range docsTable(t, "limit")[1:] {
		if row[1] != want[row[0]] {
			t.Errorf("%s: docs/kmip.md says %s, want %s", row[0], row[1], want[row[0]])
		}
		delete(want, row[0])
	}
	if len(want) > 0 {
		t.Errorf("docs/kmip.md does not have %v", want)
	}
}

// TestDocumentedBaseline: what docs/kmip.md says that the profile demands is
// there.
func TestDocumentedBaseline(t *testing.T) {
	demanded := map[string][]string{}
	for _, row := range docsTable(t, "demanded")[1:] {
		demanded[row[0]] = strings.Split(row[1], ", ")
	}
	if len(demanded["attributes"]) != 32 || len(demanded["client operations"]) != 13 {
		t.Errorf("docs/kmip.md has lost some of %v", demanded)
	}
	for _, name := range demanded["attributes"] {
		if attributeNamed(name, newestMinor) == nil {
			t.Errorf("there is no attribute %s", name)
		}
	}
	var operations []string
	for op := range newEngine(nil).operations {
		operations = append(operations, plain(op.String()))
	}
	for _, name := range demanded["client operations"] {
		if !slices.Contains(operations, plain(name)) {
			t.Errorf("there is no operation %s", name)
		}
	}
}
