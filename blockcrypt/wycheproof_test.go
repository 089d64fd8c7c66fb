package blockcrypt

import (
	"bytes"
	"crypto/aes"
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"testing"

	"github.com/c2sp/wycheproof"
)

// hexBytes is a byte string that JSON spells in hexadecimal.
type hexBytes []byte

func (h *hexBytes) UnmarshalText(text []byte) (err error) {
	*h, err = hex.DecodeString(string(text))
	return err
}

type vector struct {
	ID     int      `json:"tcId"`
	Key    hexBytes `json:"key"`
	IV     hexBytes `json:"iv"`
	Plain  hexBytes `json:"msg"`
	Cipher hexBytes `json:"ct"`
	Result string   `json:"result"`
}

// wholeBlocks reports whether v needs no ciphertext stealing, which is out of
// scope: disks have whole sectors, and sectors whole blocks.
func (v vector) wholeBlocks() bool { return len(v.Plain)%aes.BlockSize == 0 }

// plain64 gives the vector's tweak as a sector number; false for a tweak wider
// than 64 bits, which no disk has.
func (v vector) plain64() (tweak uint64, ok bool) {
	for i, b := range v.IV { // little-endian, as if filled up with zeros
		if i >= 8 && b != 0 {
			return 0, false
		}
		tweak |= uint64(b) << (8 * i)
	}
	return tweak, true
}

func wycheproofVectors(t *testing.T) []vector {
	t.Helper()
	text, err := fs.ReadFile(wycheproof.TestVectors, "aes_xts_test.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Algorithm     string
		NumberOfTests int
		TestGroups    []struct{ Tests []vector }
	}
	if err := json.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	var all []vector
	for _, group := range file.TestGroups {
		all = append(all, group.Tests...)
	}
	if file.Algorithm != "AES-XTS" || len(all) == 0 || len(all) != file.NumberOfTests {
		t.Fatalf("%d of %d vectors of %s", len(all), file.NumberOfTests, file.Algorithm)
	}
	return all
}

// TestWycheproof gives every engine the AES-256 vectors as disks of one sector
// that is as long as the vector's message.
func TestWycheproof(t *testing.T) {
	vectors := wycheproofVectors(t)
	for _, with := range Engines() {
		t.Run(with.Name(), func(t *testing.T) {
			if with.Missing() != "" {
				t.Skipf("%s: %s", with.Name(), with.Missing())
			}
			ran := 0
			for _, v := range vectors {
				tweak, ok := v.plain64()
				if !ok || !v.wholeBlocks() || len(v.Key) != KeySize {
					continue
				}
				ran++
				runVector(t, with, v, tweak)
			}
			t.Logf("%d of %d vectors ran", ran, len(vectors))
			if ran == 0 {
				t.Error("no vector ran")
			}
		})
	}
}

func runVector(t *testing.T, with Engine, v vector, tweak uint64) {
	t.Helper()
	e, err := with.get().new(v.Key, len(v.Plain))
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(v.Plain))
	e.encrypt(got, v.Plain, tweak)
	if bytes.Equal(got, v.Cipher) != (v.Result == "valid") {
		t.Errorf("vector %d, %s: encrypted to %x", v.ID, v.Result, got)
	}
	e.decrypt(got, v.Cipher, tweak)
	if bytes.Equal(got, v.Plain) != (v.Result == "valid") {
		t.Errorf("vector %d, %s: decrypted to %x", v.ID, v.Result, got)
	}
}

// TestWycheproofOtherKeysAndTweaks gives the inner loop of crypto-aes the vectors
// that a disk cannot have: AES-128, AES-192 and tweaks of more than 64 bits.
func TestWycheproofOtherKeysAndTweaks(t *testing.T) {
	ran := 0
	for _, v := range wycheproofVectors(t) {
		if !v.wholeBlocks() || v.Result != "valid" {
			continue
		}
		ran++
		e, err := newStandard(v.Key, len(v.Plain))
		if err != nil {
			t.Fatal(err)
		}
		s := e.(*standard)
		got := make([]byte, len(v.Plain))
		v.masks(s).sector(got, v.Plain, s.data.Encrypt)
		if !bytes.Equal(got, v.Cipher) {
			t.Errorf("vector %d: encrypted to %x", v.ID, got)
		}
		v.masks(s).sector(got, v.Cipher, s.data.Decrypt)
		if !bytes.Equal(got, v.Plain) {
			t.Errorf("vector %d: decrypted to %x", v.ID, got)
		}
	}
	t.Logf("%d vectors ran", ran)
	if ran == 0 {
		t.Error("no vector ran")
	}
}

// masks gives masks that begin with the vector's encrypted tweak.
func (v vector) masks(s *standard) *masks {
	m := new(masks)
	copy(m[:aes.BlockSize], v.IV)
	s.tweak.Encrypt(m[:aes.BlockSize], m[:aes.BlockSize])
	return m
}
