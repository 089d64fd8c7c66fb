package vmx

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/uuid"
)

// encrypted is a descriptor with a record at scsi0:0, and that record as the
// line numbers 2 to 15.
func encrypted(t testing.TB) []byte { return withRecord(t, newRecord()) }

func withRecord(t testing.TB, r *Record) []byte {
	t.Helper()
	f := parse(t, "config.version = \"8\"\nscsi0:0.fileName = \"x.vmdk\"\n")
	if err := f.SetRecord("scsi0:0", r); err != nil {
		t.Fatal(err)
	}
	return f.Bytes()
}

// TestRecordRoundTrip takes each disk through the states: the last record is in
// the place of the first, and leaves the file as it was.
func TestRecordRoundTrip(t *testing.T) {
	for name, data := range samples(t) {
		t.Run(name, func(t *testing.T) {
			f := parse(t, string(data))
			disks, err := f.Disks()
			if err != nil {
				t.Fatal(err)
			}
			for _, state := range states {
				for _, d := range disks {
					f = roundTrip(t, f, d.Node, recordIn(state))
				}
			}
			for _, d := range disks {
				if err := f.RemoveRecord(d.Node); err != nil {
					t.Fatal(err)
				}
			}
			wantBytes(t, f, data)
		})
	}
}

// roundTrip gives the file as it is read with the record in it.
func roundTrip(t *testing.T, f *File, node string, r *Record) *File {
	t.Helper()
	if err := f.SetRecord(node, r); err != nil {
		t.Fatal(err)
	}
	f = parse(t, string(f.Bytes()))
	got, err := f.Record(node)
	if err != nil || !reflect.DeepEqual(got, r) {
		t.Errorf("%s: record is %+v, %v", node, got, err)
	}
	if want := r.State != StateEncrypted; err == nil && got.Unfinished() != want {
		t.Errorf("%s: unfinished is %v in the state %s", node, !want, r.State)
	}
	return f
}

// TestRecordText is the format as docs/format.md shows it.
func TestRecordText(t *testing.T) {
	const want = `config.version = "8"
scsi0:0.vmcrypt.version = "1"
scsi0:0.vmcrypt.state = "encrypted"
scsi0:0.vmcrypt.uuid = "3f1c6a52-9e0d-4b7a-8c55-d2e4f6a8b0c1"
scsi0:0.vmcrypt.size = "10737418240"
scsi0:0.vmcrypt.cipher = "aes-256-xts-plain64"
scsi0:0.vmcrypt.sectorSize = "512"
scsi0:0.vmcrypt.holes = "preserve"
scsi0:0.vmcrypt.mac = "pTylPKU8pTylPKU8pTylPKU8pTylPKU8pTylPKU8pTw="
scsi0:0.vmcrypt.recipient0.alias = "KMSCluster"
scsi0:0.vmcrypt.recipient0.kekID = "5f0e"
scsi0:0.vmcrypt.recipient0.key = "%s"
scsi0:0.vmcrypt.recipient1.alias = "es|22crow|7C"
scsi0:0.vmcrypt.recipient1.kekID = "KEK 41"
scsi0:0.vmcrypt.recipient1.key = "AA=="
scsi0:0.fileName = "x.vmdk"
`
	key := base64.StdEncoding.EncodeToString(newRecord().Recipients[0].WrappedKey)
	if got := string(encrypted(t)); got != fmt.Sprintf(want, key) {
		t.Errorf("file is\n%s", got)
	}
}

// TestConversionText is what a record has in addition while its disk is rekeyed.
func TestConversionText(t *testing.T) {
	plain, converting := string(encrypted(t)), string(withRecord(t, recordIn(StateRekeying)))
	const conversion = `scsi0:0.vmcrypt.conversion.uuid = "b7e4d1c0-5a3f-4e2d-8c1b-0a9f8e7d6c5b"
scsi0:0.vmcrypt.conversion.phase = "converting"
`
	const previous = `scsi0:0.vmcrypt.previous0.alias = "KMSCluster"
scsi0:0.vmcrypt.previous0.kekID = "01d"
scsi0:0.vmcrypt.previous0.key = "Ag=="
scsi0:0.vmcrypt.previous1.alias = "escrow"
scsi0:0.vmcrypt.previous1.kekID = "KEK 40"
scsi0:0.vmcrypt.previous1.key = "Aw=="
`
	want := strings.NewReplacer(
		`"encrypted"`, `"rekeying"`,
		macLine+"\n", macLine+"\n"+conversion,
		"scsi0:0.fileName", previous+"scsi0:0.fileName").Replace(plain)
	if converting != want {
		t.Errorf("file is\n%s, want\n%s", converting, want)
	}
}

// TestFixturesOfVersion1 reads what the first release with each state would have
// written. These files stay readable for ever: never change one, add some for
// each new version. Package dek opens the keys in them.
func TestFixturesOfVersion1(t *testing.T) {
	for _, state := range states {
		data := sample(t, "records/1-"+state+".vmx")
		f := parse(t, string(data))
		r, err := f.Record("scsi0:0")
		if err != nil {
			t.Fatal(err)
		}
		if r.State != state || r.Unfinished() != (state != StateEncrypted) || len(r.Recipients) != 1 ||
			len(r.Previous) != len(recordIn(state).Previous)/2 {
			t.Errorf("%s: record is %+v", state, r)
		}
		if err := f.SetRecord("scsi0:0", r); err != nil {
			t.Error(err)
		}
		wantBytes(t, f, data)
	}
}

func TestRecordOfPlainDisk(t *testing.T) {
	for _, file := range []string{
		"", "scsi0:0.fileName = \"x\"", "# scsi0:0.vmcrypt.mac = \"\"",
		"scsi0:1.vmcrypt.mac = \"\"", "scsi0:0.vmcryptic = \"\"", "a.scsi0:0.vmcrypt.mac = \"\"",
	} {
		f := parse(t, file)
		if r, err := f.Record("scsi0:0"); r != nil || err != nil {
			t.Errorf("%q: record is %v, %v", file, r, err)
		}
		if err := f.RemoveRecord("scsi0:0"); err != nil {
			t.Errorf("%q: %v", file, err)
		}
		wantBytes(t, f, []byte(file))
	}
}

// isRefusal tells whether an error is one of those that callers map.
func isRefusal(err error) bool {
	return errors.Is(err, ErrRecord) || errors.Is(err, ErrVersion) || errors.Is(err, ErrSyntax)
}

// TestFlippedBits flips every bit of every value of a record, under encodings
// that could give two spellings to a text.
func TestFlippedBits(t *testing.T) {
	for encoding, alias := range map[string]string{
		"UTF-8": "Zürich 密", "windows-1252": "Zürich", "Shift_JIS": "ポート", "GBK": "虚拟", "ISO-8859-1": "Zürich",
	} {
		t.Run(encoding, func(t *testing.T) {
			want := newRecord()
			want.Recipients[0].Alias = alias
			f := parse(t, ".encoding = \""+encoding+"\"\r\nscsi0:0.fileName = \"x\"")
			if err := f.SetRecord("scsi0:0", want); err != nil {
				t.Fatal(err)
			}
			flipValues(t, f.Bytes(), want)
		})
	}
	for _, state := range states {
		t.Run(state, func(t *testing.T) { flipValues(t, withRecord(t, recordIn(state)), recordIn(state)) })
	}
}

// flipValues flips every bit of every value of the record in a file.
func flipValues(t *testing.T, data []byte, want *Record) {
	t.Helper()
	f := parse(t, string(data))
	for i := range f.lines {
		if strings.Contains(f.lines[i].key, ".vmcrypt.") {
			flipValue(t, f, i, want)
		}
	}
}

// flipValue flips every bit between the quotes of line i.
func flipValue(t *testing.T, f *File, i int, want *Record) {
	t.Helper()
	start := len(f.lines[i].head)
	for _, l := range f.lines[:i] {
		start += l.size()
	}
	data := f.Bytes()
	for at := start; at < start+len(f.lines[i].value); at++ {
		for bit := range 8 {
			data[at] ^= 1 << bit
			flipped(t, data, data[at], want)
			data[at] ^= 1 << bit
		}
	}
	wantBytes(t, f, data)
}

// flipped checks that a file with one wrong byte is refused, or has a record
// whose fields are not those of want.
func flipped(t *testing.T, data []byte, wrong byte, want *Record) {
	t.Helper()
	f, err := Parse(data)
	var r *Record
	if err == nil {
		r, err = f.Record("scsi0:0")
	}
	switch {
	case err == nil && (r == nil || reflect.DeepEqual(r, want)):
		t.Errorf("%q among\n%q: not noticed", wrong, data)
	case err != nil && (r != nil || !isRefusal(err)):
		t.Errorf("%q among\n%q: record is %v, error %v", wrong, data, r, err)
	case err == nil && (wrong == '"' || wrong == '\n' || wrong == '|'):
		t.Errorf("%q among\n%q: no error", wrong, data)
	case err == nil && !utf8.Valid(data) && f.codec.enc == nil:
		t.Errorf("%q among\n%q, not UTF-8: no error", wrong, data)
	}
}

// TestTruncated cuts descriptors with encrypted disks after every byte.
func TestTruncated(t *testing.T) {
	for name, data := range samples(t) {
		t.Run(name, func(t *testing.T) {
			f := parse(t, string(data))
			disks, err := f.Disks()
			if err != nil {
				t.Fatal(err)
			}
			for i, d := range disks {
				if err := f.SetRecord(d.Node, recordIn(states[i%len(states)])); err != nil {
					t.Fatal(err)
				}
			}
			whole := f.Bytes()
			for n := range whole {
				truncated(t, f, whole[:n])
			}
		})
	}
}

// truncated checks that every disk that is still there has the record that it
// has in the whole file.
func truncated(t *testing.T, whole *File, data []byte) {
	t.Helper()
	f := parse(t, string(data))
	disks, err := f.Disks()
	if err != nil && !isRefusal(err) {
		t.Errorf("%d bytes: %v", len(data), err)
	}
	for _, d := range disks {
		want, _ := whole.Record(d.Node)
		got, err := f.Record(d.Node)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%d bytes, disk %q: record is %v, %v", len(data), d, got, err)
		}
	}
}

const macLine = `mac = "pTylPKU8pTylPKU8pTylPKU8pTylPKU8pTylPKU8pTw="`

// damages are edits to the file of encrypted, and what the error says of each.
var damages = []struct {
	name, old, new, says string
	err                  error
}{
	{"future version", `version = "1"`, `version = "2"`, "line 2: scsi0:0.vmcrypt.version", ErrVersion},
	{"distant version", `version = "1"`, `version = "4000000000"`, "4000000000", ErrVersion},
	{"version 0", `version = "1"`, `version = "0"`, "line 2", ErrRecord},
	{"version 01", `version = "1"`, `version = "01"`, "line 2", ErrRecord},
	{"version word", `version = "1"`, `version = "one"`, "line 2", ErrRecord},
	{"no version", "scsi0:0.vmcrypt.version = \"1\"\n", "", "vmcrypt.version: ", ErrRecord},
	{"state", `"encrypted"`, `"decrypted"`, "line 3", ErrRecord},
	{"capital state", `"encrypted"`, `"Encrypted"`, "line 3", ErrRecord},
	{"encrypting without a conversion", `"encrypted"`, `"encrypting"`, "vmcrypt.conversion.uuid: ", ErrRecord},
	{"rekeying without a conversion", `"encrypted"`, `"rekeying"`, "vmcrypt.conversion.uuid: ", ErrRecord},
	{"upper-case uuid", "-9e0d-", "-9E0D-", "line 4", ErrRecord},
	{"uuid in braces", `"3f1c6a52-9e0d-4b7a-8c55-d2e4f6a8b0c1"`, `"{3f1c6a52-9e0d-4b7a-8c55-d2e4f6a8b0c1}"`, "line 4", ErrRecord},
	{"nil uuid", "3f1c6a52-9e0d-4b7a-8c55-d2e4f6a8b0c1", "00000000-0000-0000-0000-000000000000", "line 4", ErrRecord},
	{"leading zero", `"10737418240"`, `"010737418240"`, "line 5", ErrRecord},
	{"plus sign", `"10737418240"`, `"+10737418240"`, "line 5", ErrRecord},
	{"negative", `"10737418240"`, `"-10737418240"`, "line 5", ErrRecord},
	{"blank", `"10737418240"`, `"10737418240 "`, "line 5", ErrRecord},
	{"size 0", `"10737418240"`, `"0"`, "line 5", ErrRecord},
	{"half a sector", `"10737418240"`, `"10737418241"`, "line 5", ErrRecord},
	{"over 256 TiB", `"10737418240"`, `"281474976711168"`, "line 5", ErrRecord},
	{"over 64 bits", `"10737418240"`, `"18446744073709551616"`, "line 5", ErrRecord},
	{"cipher", "aes-256-xts-plain64", "aes-128-xts-plain64", "line 6", ErrRecord},
	{"sector size", `"512"`, `"1024"`, "line 7", ErrRecord},
	{"holes", `"preserve"`, `"Preserve"`, "line 8", ErrRecord},
	{"padding bits", "8pTw=", "8pTx=", "line 9", ErrRecord},
	{"no padding", "8pTw=", "8pTw", "line 9", ErrRecord},
	{"escape for a letter", `"pTyl`, `"|70Tyl`, "line 9", ErrRecord},
	{"line end in base64", `"pTyl`, `"pT|0Ayl`, "line 9", ErrRecord},
	{"short mac", macLine, `mac = "pTw="`, "line 9", ErrRecord},
	{"empty mac", macLine, `mac = ""`, "line 9", ErrRecord},
	{"mac without quotes", macLine, strings.ReplaceAll(macLine, `"`, ""), "line 9", ErrRecord},
	{"mac without end", macLine, strings.TrimSuffix(macLine, `"`), "line 9", ErrRecord},
	{"mac without value", macLine, "mac", "line 9", ErrRecord},
	{"two macs", macLine, macLine + "\nscsi0:0.vmcrypt." + macLine, "line 10: scsi0:0.vmcrypt.mac", ErrRecord},
	{"two macs, one in capitals", macLine, macLine + "\nSCSI0:0.VMCRYPT.MAC = \"\"", "line 9 has it too", ErrRecord},
	{"no mac", "scsi0:0.vmcrypt." + macLine + "\n", "", "scsi0:0.vmcrypt.mac: ", ErrRecord},
	{"unknown key", "scsi0:0.vmcrypt." + macLine, "scsi0:0.vmcrypt." + macLine + "\nscsi0:0.vmcrypt.x = \"\"", "line 10: scsi0:0.vmcrypt.x", ErrRecord},
	{"empty key", "scsi0:0.vmcrypt." + macLine, "scsi0:0.vmcrypt." + macLine + "\nscsi0:0.vmcrypt. = \"\"", "line 10", ErrRecord},
	{"empty alias", `"KMSCluster"`, `""`, "line 10: scsi0:0.vmcrypt.recipient0.alias", ErrRecord},
	{"long alias", `"KMSCluster"`, `"` + strings.Repeat("x", 257) + `"`, "line 10", ErrRecord},
	{"tab in alias", `"KMSCluster"`, "\"KMS\tCluster\"", "line 10", ErrRecord},
	{"alias that is not UTF-8", `"KMSCluster"`, "\"KMS\xff\"", "line 10", ErrRecord},
	{"alias with lower-case escape", "es|22crow|7C", "es|22crow|7c", "line 13", ErrRecord},
	{"alias with raw pipe", "es|22crow|7C", "es|22crow|", "line 13", ErrRecord},
	{"alias that turns around", `"KMSCluster"`, "\"KMS\u202e\"", "line 10", ErrRecord},
	{"no key ID", "scsi0:0.vmcrypt.recipient0.kekID = \"5f0e\"\n", "", "recipient0.kekID: ", ErrRecord},
	{"empty wrapped key", `"AA=="`, `""`, "line 15", ErrRecord},
	{"long wrapped key", `"AA=="`, `"` + strings.Repeat("AAAA", 342) + `"`, "line 15", ErrRecord},
	{"wrapped key in URL alphabet", "Af6", "Af-", "line 12", ErrRecord},
	{"gap in recipients", "recipient1", "recipient2", "line 13", ErrRecord},
	{"recipient with leading zero", "recipient1", "recipient01", "line 13", ErrRecord},
	{"no recipient", "recipient", "addressee", "line 10", ErrRecord},
	{"other node", "scsi0:0.fileName", "scsi0:1.fileName", "fileName", ErrRecord},
}

// conversionDamages are edits to the file of a disk that is rekeyed.
var conversionDamages = []struct{ name, old, new, says string }{
	{"encrypted", `"rekeying"`, `"encrypted"`, "line 10: scsi0:0.vmcrypt.conversion.uuid"},
	{"encrypting with a previous key", `"rekeying"`, `"encrypting"`, "line 20: scsi0:0.vmcrypt.previous0.key"},
	{"decrypting with a previous key", `"rekeying"`, `"decrypting"`, "line 20: scsi0:0.vmcrypt.previous0.key"},
	{"no conversion UUID", "scsi0:0.vmcrypt.conversion.uuid = \"b7e4d1c0-5a3f-4e2d-8c1b-0a9f8e7d6c5b\"\n", "", "conversion.uuid: "},
	{"nil conversion UUID", "b7e4d1c0-5a3f-4e2d-8c1b-0a9f8e7d6c5b", "00000000-0000-0000-0000-000000000000", "line 10"},
	{"upper-case conversion UUID", "b7e4d1c0", "B7E4D1C0", "line 10"},
	{"conversion UUID in braces", `"b7e4d1c0-5a3f-4e2d-8c1b-0a9f8e7d6c5b"`, `"{b7e4d1c0-5a3f-4e2d-8c1b-0a9f8e7d6c5b}"`, "line 10"},
	{"empty conversion UUID", "b7e4d1c0-5a3f-4e2d-8c1b-0a9f8e7d6c5b", "", "line 10"},
	{"no phase", "scsi0:0.vmcrypt.conversion.phase = \"converting\"\n", "", "conversion.phase: "},
	{"empty phase", `"converting"`, `""`, "line 11"},
	{"unknown phase", `"converting"`, `"done"`, "line 11"},
	{"capital phase", `"converting"`, `"Converting"`, "line 11"},
	{"phase with a blank", `"converting"`, `"converting "`, "line 11"},
	{"two phases", "scsi0:0.vmcrypt.conversion.phase", "scsi0:0.vmcrypt.conversion.phase = \"converted\"\nscsi0:0.vmcrypt.conversion.phase", "line 12"},
	{"unknown key of the conversion", "scsi0:0.vmcrypt.conversion.phase", "scsi0:0.vmcrypt.conversion.x = \"\"\nscsi0:0.vmcrypt.conversion.phase", "line 11"},
	{"no previous keys", "previous", "recipient", "recipient0.alias"},
	{"gap in previous keys", "previous1", "previous2", "line 21"},
	{"previous keys from 1", "previous0", "previous2", "line 21"},
	{"previous key without alias", "scsi0:0.vmcrypt.previous1.alias = \"escrow\"\n", "", "previous1.alias: "},
	{"previous key without KEK ID", "scsi0:0.vmcrypt.previous1.kekID = \"KEK 40\"\n", "", "previous1.kekID: "},
	{"previous recipient without key", "scsi0:0.vmcrypt.previous1.key = \"Aw==\"\n", "", "previous1.key: "},
	{"empty previous alias", `"escrow"`, `""`, "line 21"},
	{"tab in previous KEK ID", "KEK 40", "KEK\t40", "line 22"},
	{"empty previous key", `"Aw=="`, `""`, "line 23"},
	{"padding bits of a previous key", `"Aw=="`, `"Ax=="`, "line 23"},
	{"two previous keys", "scsi0:0.vmcrypt.previous1.key", "scsi0:0.vmcrypt.previous1.KEY = \"Aw==\"\nscsi0:0.vmcrypt.previous1.key", "line 24"},
}

func TestRecordRefused(t *testing.T) {
	whole := string(encrypted(t))
	for _, tt := range damages {
		t.Run(tt.name, func(t *testing.T) { refused(t, damage(t, whole, tt.old, tt.new), tt.err, tt.says) })
	}
	whole = string(withRecord(t, recordIn(StateRekeying)))
	for _, tt := range conversionDamages {
		t.Run(tt.name, func(t *testing.T) { refused(t, damage(t, whole, tt.old, tt.new), ErrRecord, tt.says) })
	}
}

// TestRecordLacksNoLine takes each line of each record away.
func TestRecordLacksNoLine(t *testing.T) {
	for _, state := range states {
		whole := string(withRecord(t, recordIn(state)))
		for line := range strings.Lines(whole) {
			if strings.Contains(line, ".vmcrypt.") {
				refused(t, damage(t, whole, line, ""), ErrRecord, "vmcrypt.")
			}
		}
	}
}

func TestNoPreviousKeys(t *testing.T) {
	text := ""
	for line := range strings.Lines(string(withRecord(t, recordIn(StateRekeying)))) {
		if !strings.Contains(line, "previous") {
			text += line
		}
	}
	refused(t, parse(t, text), ErrRecord, "previous0.key: ")
}

func damage(t *testing.T, data, old, replacement string) *File {
	t.Helper()
	damaged := strings.ReplaceAll(data, old, replacement)
	if damaged == data {
		t.Fatalf("%q is not in the file", old)
	}
	return parse(t, damaged)
}

// refused checks that a damaged record is neither read nor written over.
func refused(t *testing.T, f *File, want error, says string) {
	t.Helper()
	before := f.Bytes()
	r, err := f.Record("scsi0:0")
	if r != nil || !errors.Is(err, want) || !strings.Contains(err.Error(), says) {
		t.Errorf("record is %v, error %v; want %q", r, err, says)
	}
	if err := f.RemoveRecord("scsi0:0"); !errors.Is(err, want) {
		t.Errorf("removing gives %v", err)
	}
	if f.hasFile("scsi0:0") {
		if err := f.SetRecord("scsi0:0", newRecord()); !errors.Is(err, want) {
			t.Errorf("replacing gives %v", err)
		}
	}
	wantBytes(t, f, before)
}

// TestRecordElsewhere moves the lines about, as VMware does when it sorts a
// file, and changes what is not between the quotes.
func TestRecordElsewhere(t *testing.T) {
	lines := strings.SplitAfter(string(encrypted(t)), "\n")
	data := ""
	for _, l := range lines {
		data = strings.Replace(strings.Replace(l, "scsi0:0.vmcrypt.", "SCSI0:0.VmCrypt.", 1), " = ", "\t=", 1) + data
	}
	f := parse(t, data)
	if r, err := f.Record("SCSI0:0"); err != nil || !reflect.DeepEqual(r, newRecord()) {
		t.Errorf("record is %v, %v", r, err)
	}
	if err := f.RemoveRecord("SCSI0:0"); err != nil {
		t.Fatal(err)
	}
	wantBytes(t, f, []byte("scsi0:0.fileName\t=\"x.vmdk\"\nconfig.version\t=\"8\"\n"))
}

func TestSetRecordPlace(t *testing.T) {
	tests := []struct{ name, file string }{
		{"only line, not ended", `scsi0:0.fileName = "x.vmdk"`},
		{"half a CRLF", "scsi0:0.fileName = \"x.vmdk\"\r"},
		{"after a byte order mark", "\xef\xbb\xbfscsi0:0.fileName = \"x.vmdk\""},
		{"CRLF, not ended", "a = \"1\"\r\nscsi0:0.fileName = \"x.vmdk\""},
		{"mixed ends", "a = \"1\"\r\nscsi0:0.fileName = \"x.vmdk\"\nb = \"2\"\r\n"},
		{"amid rubbish", "=\n\"\n\nscsi0:0.fileName = x # y\n|\n\r"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := parse(t, tt.file)
			if err := f.SetRecord("scsi0:0", newRecord()); err != nil {
				t.Fatal(err)
			}
			f = parse(t, string(f.Bytes()))
			if r, err := f.Record("scsi0:0"); err != nil || !reflect.DeepEqual(r, newRecord()) {
				t.Errorf("record is %v, %v", r, err)
			}
			sameEnds(t, f)
			if err := f.RemoveRecord("scsi0:0"); err != nil {
				t.Fatal(err)
			}
			wantBytes(t, f, []byte(tt.file))
		})
	}
}

// sameEnds checks that a record ends its lines as the file does around it.
func sameEnds(t *testing.T, f *File) {
	t.Helper()
	at, err := f.recordLines("scsi0:0")
	if err != nil {
		t.Fatal(err)
	}
	file, _ := f.find("scsi0:0.fileName")
	first := at["version"]
	want := f.endAt(file)
	if f.lines[file].end() == nil && first > 0 {
		want = f.lines[first-1].end()
	}
	for key, i := range at {
		if i >= file || !bytes.Equal(f.lines[i].end(), want) {
			t.Errorf("%s is line %d and ends in %q, want %q before line %d", key, i+1, f.lines[i].end(), want, file+1)
		}
	}
}

func TestSetRecordReplaces(t *testing.T) {
	f := parse(t, "a = \"1\"\n"+string(encrypted(t))+"b = \"2\"\n")
	want := strings.ReplaceAll(string(f.Bytes()), `"10737418240"`, `"512"`)
	r := newRecord()
	r.Size = 512
	if err := f.SetRecord("scsi0:0", r); err != nil {
		t.Fatal(err)
	}
	wantBytes(t, f, []byte(want))
}

func TestSetRecordRefuses(t *testing.T) {
	tests := []struct {
		says   string
		change func(r *Record)
	}{
		{"state", func(r *Record) { r.State = "" }},
		{"uuid", func(r *Record) { r.DiskUUID = uuid.Nil }},
		{"size", func(r *Record) { r.Size = 0 }},
		{"size", func(r *Record) { r.Size, r.SectorSize = 512, 4096 }},
		{"cipher", func(r *Record) { r.Cipher = "aes" }},
		{"sectorSize", func(r *Record) { r.SectorSize = 0 }},
		{"holes", func(r *Record) { r.Holes = "" }},
		{"mac", func(r *Record) { r.MAC = nil }},
		{"recipient", func(r *Record) { r.Recipients = nil }},
		{"recipient", func(r *Record) { r.Recipients = make([]Recipient, maxRecipients+1) }},
		{"recipient1.alias", func(r *Record) { r.Recipients[1].Alias = "a\nb" }},
		{"recipient0.kekID", func(r *Record) { r.Recipients[0].KEKID = "\xff" }},
		{"recipient1.key", func(r *Record) { r.Recipients[1].WrappedKey = nil }},
		{"conversion.uuid", func(r *Record) { r.State = StateDecrypting }},
		{"conversion.uuid", func(r *Record) { r.Conversion = recordIn(StateDecrypting).Conversion }},
		{"previous0", func(r *Record) { r.Previous = r.Recipients }},
		{"conversion.uuid", func(r *Record) { *r = *recordIn(StateEncrypting); r.Conversion.UUID = uuid.Nil }},
		{"conversion.phase", func(r *Record) { *r = *recordIn(StateEncrypting); r.Conversion.Phase = "" }},
		{"previous0", func(r *Record) { *r = *recordIn(StateEncrypting); r.Previous = r.Recipients }},
		{"previous0", func(r *Record) { *r = *recordIn(StateRekeying); r.Previous = nil }},
		{"previous0", func(r *Record) { *r = *recordIn(StateRekeying); r.Previous = make([]Recipient, maxRecipients+1) }},
		{"previous1.alias", func(r *Record) { *r = *recordIn(StateRekeying); r.Previous[1].Alias = "" }},
	}
	for _, tt := range tests {
		r := newRecord()
		tt.change(r)
		f := New("scsi0:0", "x.img")
		before := f.Bytes()
		err := f.SetRecord("scsi0:0", r)
		if !errors.Is(err, ErrRecord) || !strings.Contains(err.Error(), "vmcrypt."+tt.says) {
			t.Errorf("%s: error is %v", tt.says, err)
		}
		wantBytes(t, f, before)
	}
}

func TestSetRecordWithoutDisk(t *testing.T) {
	for _, file := range []string{
		"", "scsi0:1.fileName = \"x\"", "scsi0:0.fileName = \"x", "floppy0.fileName = \"x\"",
		"scsi0:0.fileName = \"x\"\nscsi0:0.fileName = \"x\"\n",
	} {
		f := parse(t, file)
		for _, node := range []string{"scsi0:0", "floppy0", ""} {
			if err := f.SetRecord(node, newRecord()); !errors.Is(err, ErrSyntax) {
				t.Errorf("%q: error is %v", file, err)
			}
		}
		wantBytes(t, f, []byte(file))
	}
}

func TestSetRecordTooLarge(t *testing.T) {
	file := strings.Repeat(strings.Repeat("x", 1023)+"\n", 1023) + "scsi0:0.fileName = \"x.img\"\n"
	f := parse(t, file)
	r := newRecord()
	for range 10 {
		r.Recipients = append(r.Recipients, r.Recipients[0])
	}
	if err := f.SetRecord("scsi0:0", r); !errors.Is(err, ErrSyntax) {
		t.Errorf("error is %v", err)
	}
	wantBytes(t, f, []byte(file))
}

func TestRecordNames(t *testing.T) {
	names := []string{"x", strings.Repeat("x", 256), `"|`, "Größe €", "密钥", "a b", "|22"}
	for _, name := range names {
		f := New("scsi0:0", "x.img")
		r := newRecord()
		r.Recipients[0].Alias, r.Recipients[0].KEKID = name, name
		if err := f.SetRecord("scsi0:0", r); err != nil {
			t.Fatal(err)
		}
		got, err := parse(t, string(f.Bytes())).Record("scsi0:0")
		if err != nil || !reflect.DeepEqual(got, r) {
			t.Errorf("%q: record is %v, %v", name, got, err)
		}
	}
	f := parse(t, ".encoding = \"windows-1252\"\nscsi0:0.fileName = \"x\"")
	r := newRecord()
	r.Recipients[0].Alias = "密钥"
	if err := f.SetRecord("scsi0:0", r); !errors.Is(err, ErrRecord) {
		t.Errorf("alias that the encoding lacks: error is %v", err)
	}
}
