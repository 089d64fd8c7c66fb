package conversion

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/vmcrypt/vmcrypt/internal/testtool"
)

// mutant is a mistake: old is replaced by new in a file of the engine.
type mutant struct{ mistake, file, old, new string }

// Each of these mistakes must be found by a test of this package.
var mutants = []mutant{
	// Syncs
	{"zone not synced before its marker", "convert.go", "if err := c.Disk.Flush(); err != nil {", "if err := error(nil); err != nil {"},
	{"record not synced before its zone", "convert.go", "if err := c.syncJournal(); err != nil {\n\t\treturn err\n\t}\n\tif done != nil {", "if done != nil {"},
	{"turn not synced", "convert.go", "if err := c.syncJournal(); err != nil {\n\t\treturn err\n\t}\n\tc.reached(m)", "c.reached(m)"},
	{"recovery not synced", "recover.go", "return c.syncJournal()", "return nil"},
	{"failed sync tried again", "convert.go", "if err := c.journal.Flush(); err != nil {", "err := c.journal.Flush()\n\tif err != nil {\n\t\terr = c.journal.Flush()\n\t}\n\tif err != nil {"},
	{"failed sync of the disk ignored", "convert.go", "return fmt.Errorf(\"make the disk durable: %w\", err)", "return nil"},
	// Order
	{"marker before zone", "convert.go", "\terr = c.together(\n", "\tif w.recorded != nil {\n\t\t_ = c.mark(w.recorded.After)\n\t}\n\terr = c.together(\n"},
	{"zone before record", "convert.go", "\ts.Is = c.journal.sign(s.data())\n", "\ts.Is = c.journal.sign(s.data())\n\t_ = c.apply(s)\n"},
	{"descriptor before journal", "conversion.go", "f, err := j.Journal.Create(", "_ = j.Descriptor.SetPhase(Converting)\n\tf, err := j.Journal.Create("},
	{"sectors before descriptor", "convert.go", "if err := c.Descriptor.SetPhase(Converting); err != nil {", "if err := error(nil); err != nil {"},
	{"descriptor not written again", "convert.go", "if err := c.Descriptor.SetPhase(Converting); err != nil {", "if c.Phase == Converting {\n\t} else if err := c.Descriptor.SetPhase(Converting); err != nil {"},
	{"end not written again", "conversion.go", "return j.Phase, j.Descriptor.SetPhase(j.Phase)", "return j.Phase, nil"},
	{"journal removed before the end", "conversion.go", "return \"\", err\n\t}\n\treturn end, ", "return \"\", err\n\t}\n\t_ = j.Journal.Remove()\n\treturn end, "},
	{"writes before the journal is checked", "conversion.go", "\tcase Converting:\n\tcase Converted", "\tcase Converting:\n\t\t_ = j.Descriptor.SetPhase(Converting)\n\tcase Converted"},
	// Slots
	{"one slot for all records", "journal.go", "int64(sequence%2)*(l.zone", "int64(0)*(l.zone"},
	{"one slot for all markers", "journal.go", "(1 + int64(sequence%2))", "(1 + int64(0))"},
	{"turn keeps the sequence", "convert.go", "\tturned.Sequence++\n", ""},
	{"first marker in one slot", "journal.go", "for slot := range uint64(2) {\n\t\tif err := j.writeBlock", "for slot := range uint64(1) {\n\t\tif err := j.writeBlock"},
	{"head written once", "convert.go", "\tcopy(s.record[blockSize:], block)\n", ""},
	{"second head not read", "recover.go", "if errors.Is(err, errBlock) {\n\t\terr = c", "if false {\n\t\terr = c"},
	// Recovery
	{"marker not written again", "recover.go", "if err := c.writeMarker(c.at); err != nil {", "if err := error(nil); err != nil {"},
	{"record not written again", "recover.go", "if err := c.writeRecord(s); err != nil {", "if err := error(nil); s == nil {"},
	{"oldest marker", "recover.go", "m.Sequence > latest.Sequence", "m.Sequence < latest.Sequence"},
	{"marker in the head not looked at", "recover.go", "\t\tif h != nil {\n\t\t\tmarkers", "\t\tif false {\n\t\t\tmarkers"},
	{"second record planned anew", "recover.go", "sequence <= c.at.Sequence+2", "sequence <= c.at.Sequence+1"},
	{"missing record not noticed", "recover.go", "\t\tcase h.After.Sequence != c.at.Sequence+1+uint64(len(pending)):\n", "\t\tcase false:\n"},
	{"step not finished before the turn", "convert.go", "for _, s := range begun {\n\t\tif err", "for _, s := range begun {\n\t\tif turn {\n\t\t\tbreak\n\t\t}\n\t\tif err"},
	{"unreadable head taken for none", "recover.go", "\t\tcase !errors.Is(err, errBlock):\n\t\t\treturn heads, err\n", ""},
	{"unreadable sector taken for zeros", "convert.go", "return fmt.Errorf(\"read at offset %d: %w\", offset, err)", "_, _ = offset, err\n\tclear(p)\n\treturn nil"},
	{"buffer taken before its step is done", "convert.go", "%uint64(len(c.buffers))", "%3"},
	// Checks
	{"old descriptor believed", "recover.go", "if heads[0] != nil || heads[1] != nil || latest.Sequence > 0 {", "if latest.Sequence > 1<<62 {"},
	{"journal of another conversion replaced", "recover.go", "h.Conversion != c.UUID:", "h.Conversion != c.UUID && false:"},
	{"plaintext left by a turn", "convert.go", "from == nil && to != nil {", "from == nil && to != nil && false {"},
	{"MAC not checked", "journal.go", "!hmac.Equal(mac[:], block[len(signed):]) || ", ""},
	{"tag not compared", "journal.go", "return err == nil", "return err == nil || true"},
	{"old data not told from new", "recover.go", "if c.journal.fits(s.Was, s.data()) {", "if !c.journal.fits(s.Is, s.data()) {"},
	{"half of the data taken for all", "recover.go", "if !c.journal.fits(s.Is, s.data()) {", "if false {"},
	{"journal of another conversion", "journal.go", "case h != job.header(h.Zone):", "case false:"},
	// Content
	{"direction ignored", "convert.go", "c.ciphers(s.After.Backward)", "c.ciphers(false)"},
	{"old and new swapped", "convert.go", "s.Was = c.journal.sign(s.data())", "s.Is = c.journal.sign(s.data())\n\tdefer func() { s.Was, s.Is = s.Is, s.Was }()"},
	{"position off by a zone", "convert.go", "c.writeMarker(done.After)", "c.writeMarker(marker{done.After.Sequence, done.After.Position + c.journal.zone, done.After.Backward})"},
	{"next step where the last one was", "convert.go", "w.last = pending.After", "w.last.Sequence++"},
	{"holes filled", "convert.go", "if c.Holes == blockcrypt.Fill {", "if true {"},
	{"plaintext kept in the journal", "convert.go", "if err := c.transform(s); err != nil {\n\t\treturn err\n\t}\n", "_, _ = c.journal.WriteAt(s.data(), c.journal.record(s.After.Sequence)+2*blockSize)\n\tif err := c.transform(s); err != nil {\n\t\treturn err\n\t}\n"},
}

// TestMutants builds the tests of this package with each of the mistakes, and wants
// them to fail.
func TestMutants(t *testing.T) {
	testtool.Long(t)
	for _, m := range mutants {
		t.Run(m.mistake, func(t *testing.T) {
			t.Parallel()
			binary := m.build(t)
			out, err := exec.Command(binary, "-test.failfast", "-test.timeout=5m", "-test.skip=TestMutants").CombinedOutput()
			if err == nil {
				t.Errorf("no test found it:\n%s", out)
			}
			t.Logf("%s", firstFailure(out))
		})
	}
}

func (m mutant) build(t *testing.T) string {
	t.Helper()
	source, err := filepath.Abs(m.file)
	if err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(good, []byte(m.old)); n != 1 {
		t.Fatalf("%d places in %s have %q", n, m.file, m.old)
	}
	dir := t.TempDir()
	bad, overlay, binary := filepath.Join(dir, m.file), filepath.Join(dir, "overlay"), filepath.Join(dir, "test")
	writeFile(t, bad, bytes.Replace(good, []byte(m.old), []byte(m.new), 1))
	replace, err := json.Marshal(map[string]any{"Replace": map[string]string{source: bad}})
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, overlay, replace)
	if out, err := exec.Command("go", "test", "-c", "-vet=off", "-overlay", overlay, "-o", binary).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return binary
}

func writeFile(t *testing.T, path string, p []byte) {
	t.Helper()
	if err := os.WriteFile(path, p, 0o600); err != nil {
		t.Fatal(err)
	}
}

func firstFailure(out []byte) []byte {
	_, after, _ := bytes.Cut(out, []byte("--- FAIL"))
	return after[:min(len(after), 300)]
}
