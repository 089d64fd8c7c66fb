package vmx

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/uuid"
)

// sample is the content of a file in testdata.
func sample(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// samples are the files in testdata, by name.
func samples(t testing.TB) map[string][]byte {
	t.Helper()
	names, err := filepath.Glob("testdata/*.vmx")
	if err != nil || len(names) == 0 {
		t.Fatal("no samples", err)
	}
	m := make(map[string][]byte)
	for _, name := range names {
		m[filepath.Base(name)] = sample(t, filepath.Base(name))
	}
	return m
}

func parse(t testing.TB, data string) *File {
	t.Helper()
	f, err := Parse([]byte(data))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// must ends a test whose own preparation failed.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantBytes(t testing.TB, f *File, want []byte) {
	t.Helper()
	if got := f.Bytes(); !bytes.Equal(got, want) {
		t.Errorf("file is\n%q, want\n%q", got, want)
	}
}

// newRecord is a valid record with two recipients, the second of which needs
// escapes.
func newRecord() *Record {
	return &Record{
		State:      StateEncrypted,
		DiskUUID:   uuid.MustParse("3f1c6a52-9e0d-4b7a-8c55-d2e4f6a8b0c1"),
		Size:       10737418240,
		Cipher:     CipherXTS,
		SectorSize: 512,
		Holes:      "preserve",
		MAC:        bytes.Repeat([]byte{0xa5, 0x3c}, 16),
		Recipients: []Recipient{
			{Alias: "KMSCluster", KEKID: "5f0e", WrappedKey: bytes.Repeat([]byte{1, 0xfe, 0x80, 7, 0xff}, 25)},
			{Alias: `es"crow|`, KEKID: "KEK 41", WrappedKey: []byte{0}},
		},
	}
}

var states = []string{StateEncrypted, StateEncrypting, StateDecrypting, StateRekeying}

// recordIn is newRecord with what a state has in addition.
func recordIn(state string) *Record {
	r := newRecord()
	r.State = state
	if isConversion(state) {
		r.Conversion = &Conversion{uuid.MustParse("b7e4d1c0-5a3f-4e2d-8c1b-0a9f8e7d6c5b"), PhaseConverting}
	}
	if state == StateRekeying {
		r.Previous = []Recipient{
			{Alias: "KMSCluster", KEKID: "01d", WrappedKey: []byte{2}},
			{Alias: "escrow", KEKID: "KEK 40", WrappedKey: []byte{3}},
		}
	}
	return r
}

func TestLossless(t *testing.T) {
	for name, data := range samples(t) {
		t.Run(name, func(t *testing.T) { wantBytes(t, parse(t, string(data)), data) })
	}
}
