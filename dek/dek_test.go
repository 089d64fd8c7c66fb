package dek

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/vmcrypt/vmcrypt/internal/secret"
)

// The fixture of format version 1, computed from the format's description with
// another implementation (Python's cryptography) of all that is in it. It must
// open for ever: never change it, add one for each new version.
const (
	fixtureWrapped = "01" +
		"088233ceec01b0a6ca27d956ac911ecd5713bbee3b7796095178a8eef0f8ef61" +
		"a0a1a2a3a4a5a6a7a8a9aaab" +
		"8de88fd4fe1aa2d70bec89eb6637096f67a9bf5c19ee391bc1b55516260aa77b" +
		"0382111455a7b3cee0c2be9305ff0031327a1f3aea4ae078d01ce9242ef341a5" +
		"2e02f2fed3dbc363877479481f77abc1"
	fixtureAAD = "0000000101" +
		"000000100d1e2f3a4b5c4d6e8f708192a3b4c5d6" +
		"000000136165732d3235362d7874732d706c61696e3634" +
		"0000000400000200" +
		"000000087072657365727665" +
		"000000086b656b2dc3bc2d37"
)

var fixtureUUID = uuid.MustParse("0d1e2f3a-4b5c-4d6e-8f70-8192a3b4c5d6")

func fixtureBinding() Binding {
	return Binding{fixtureUUID, "aes-256-xts-plain64", 512, "preserve", "kek-ü-7"}
}

// counting gives a secret of n bytes that count up from first.
func counting(t testing.TB, first byte, n int) *secret.Buffer {
	t.Helper()
	p := make([]byte, n)
	for i := range p {
		p[i] = first + byte(i)
	}
	b, err := secret.Take(p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Destroy)
	return b
}

func fixtureKEK(t testing.TB) *secret.Buffer { return counting(t, 0x00, 32) }
func fixtureDEK(t testing.TB) *secret.Buffer { return counting(t, 0x40, 64) }

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	p, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// refuse wants Unwrap to fail with exactly one of the three errors, want.
func refuse(t testing.TB, wrapped []byte, kek *secret.Buffer, b Binding, want error, what string) {
	t.Helper()
	key, err := Unwrap(wrapped, kek, b)
	if key != nil {
		key.Destroy()
		t.Fatalf("%s: unwrapped", what)
	}
	for _, is := range []error{ErrWrongKEK, ErrTampered, ErrVersion} {
		if errors.Is(err, is) != (is == want) {
			t.Errorf("%s: error is %q, want %q", what, err, want)
		}
	}
}

func TestFixtureOfVersion1(t *testing.T) {
	key, err := Unwrap(unhex(t, fixtureWrapped), fixtureKEK(t), fixtureBinding())
	if err != nil {
		t.Fatal(err)
	}
	defer key.Destroy()
	if !key.Equal(fixtureDEK(t)) {
		t.Error("another key came out")
	}
	if got := fixtureBinding().encode(); !bytes.Equal(got, unhex(t, fixtureAAD)) {
		t.Errorf("associated data is %x", got)
	}
}

func TestWrapAndUnwrap(t *testing.T) {
	for _, b := range []Binding{
		fixtureBinding(),
		{},
		{DiskUUID: uuid.New(), Cipher: "c", SectorSize: 4096, Holes: "fill", KEKID: strings.Repeat("é", 500)},
	} {
		key, err := New()
		if err != nil {
			t.Fatal(err)
		}
		defer key.Destroy()
		before := bytes.Clone(key.Bytes())
		wrapped, err := Wrap(key, fixtureKEK(t), b)
		if err != nil || len(wrapped) != WrappedSize || wrapped[0] != 1 {
			t.Fatalf("wrapped to % x, error %v", wrapped, err)
		}
		again, err := Unwrap(wrapped, fixtureKEK(t), b)
		if err != nil {
			t.Fatal(err)
		}
		defer again.Destroy()
		if !again.Equal(key) || !bytes.Equal(before, key.Bytes()) {
			t.Errorf("%+v: key differs after wrap and unwrap", b)
		}
	}
}

func TestNewKeysAndWrapsDiffer(t *testing.T) {
	a, errA := New()
	b, errB := New()
	if err := errors.Join(errA, errB); err != nil {
		t.Fatal(err)
	}
	defer a.Destroy()
	defer b.Destroy()
	if a.Len() != Size || a.Equal(b) {
		t.Error("two new keys are equal, or have the wrong length")
	}
	first, errA := Wrap(a, fixtureKEK(t), fixtureBinding())
	second, errB := Wrap(a, fixtureKEK(t), fixtureBinding())
	if err := errors.Join(errA, errB); err != nil || bytes.Equal(first, second) {
		t.Errorf("two wraps of one key are equal, error %v", err)
	}
}

func TestEveryFlippedBitOfTheWrappedKey(t *testing.T) {
	wrapped, kek := unhex(t, fixtureWrapped), fixtureKEK(t)
	for bit := range 8 * WrappedSize {
		want := ErrTampered
		if bit < 8 {
			want = ErrVersion
		}
		wrapped[bit/8] ^= 1 << (bit % 8)
		refuse(t, wrapped, kek, fixtureBinding(), want, fmt.Sprintf("bit %d flipped", bit))
		wrapped[bit/8] ^= 1 << (bit % 8)
	}
}

func TestEveryFlippedBitOfTheBinding(t *testing.T) {
	wrapped, kek := unhex(t, fixtureWrapped), fixtureKEK(t)
	b := fixtureBinding()
	fields := []struct {
		name string
		bits int
		flip func(b *Binding, bit int)
	}{
		{"DiskUUID", 128, func(b *Binding, bit int) { b.DiskUUID[bit/8] ^= 1 << (bit % 8) }},
		{"Cipher", 8 * len(b.Cipher), func(b *Binding, bit int) { b.Cipher = flipText(b.Cipher, bit) }},
		{"SectorSize", 32, func(b *Binding, bit int) { b.SectorSize ^= 1 << bit }},
		{"Holes", 8 * len(b.Holes), func(b *Binding, bit int) { b.Holes = flipText(b.Holes, bit) }},
		{"KEKID", 8 * len(b.KEKID), func(b *Binding, bit int) { b.KEKID = flipText(b.KEKID, bit) }},
	}
	for _, field := range fields {
		for bit := range field.bits {
			changed := fixtureBinding()
			field.flip(&changed, bit)
			refuse(t, wrapped, kek, changed, ErrTampered, fmt.Sprintf("bit %d of %s flipped", bit, field.name))
		}
	}
}

func TestTextCannotMoveBetweenFields(t *testing.T) {
	wrapped, kek := unhex(t, fixtureWrapped), fixtureKEK(t)
	for _, change := range []func(b *Binding){
		func(b *Binding) { b.Holes, b.KEKID = "preservek", "ek-ü-7" },
		func(b *Binding) { b.Holes, b.KEKID = "", "preservekek-ü-7" },
		func(b *Binding) { b.Holes, b.KEKID = b.KEKID, b.Holes },
		func(b *Binding) { b.KEKID += "\x00" },
		func(b *Binding) { b.Cipher = "" },
	} {
		changed := fixtureBinding()
		change(&changed)
		refuse(t, wrapped, kek, changed, ErrTampered, fmt.Sprintf("%+v", changed))
	}
}

func TestSwappedKeysOfTwoDisks(t *testing.T) {
	kek := fixtureKEK(t)
	one, two := fixtureBinding(), fixtureBinding()
	two.DiskUUID = uuid.MustParse("11111111-2222-4333-8444-555555555555")
	wrapped, err := Wrap(fixtureDEK(t), kek, two)
	if err != nil {
		t.Fatal(err)
	}
	refuse(t, wrapped, kek, one, ErrTampered, "another disk's key")
}

func TestWrongKEK(t *testing.T) {
	wrapped := unhex(t, fixtureWrapped)
	refuse(t, wrapped, counting(t, 1, 32), fixtureBinding(), ErrWrongKEK, "another KEK")
	refuse(t, wrapped, counting(t, 0, 16), fixtureBinding(), ErrWrongKEK, "a KEK of 16 bytes")
	kek := fixtureKEK(t)
	for bit := range 8 * kek.Len() {
		kek.Bytes()[bit/8] ^= 1 << (bit % 8)
		refuse(t, wrapped, kek, fixtureBinding(), ErrWrongKEK, fmt.Sprintf("bit %d of the KEK flipped", bit))
		kek.Bytes()[bit/8] ^= 1 << (bit % 8)
	}
}

func TestLengths(t *testing.T) {
	wrapped, kek := unhex(t, fixtureWrapped), fixtureKEK(t)
	for n := range wrapped {
		refuse(t, wrapped[:n], kek, fixtureBinding(), ErrTampered, fmt.Sprintf("%d bytes", n))
	}
	refuse(t, append(wrapped, 0), kek, fixtureBinding(), ErrTampered, "a byte more")
	refuse(t, nil, kek, fixtureBinding(), ErrTampered, "nil")
	refuse(t, []byte{2}, kek, fixtureBinding(), ErrVersion, "version 2 of another length")
}

func TestWrapRefusesOtherKeyLengths(t *testing.T) {
	if _, err := Wrap(counting(t, 0, 32), fixtureKEK(t), fixtureBinding()); err == nil {
		t.Error("a data key of 32 bytes is wrapped")
	}
	if _, err := Wrap(fixtureDEK(t), counting(t, 0, 16), fixtureBinding()); err == nil {
		t.Error("a KEK of 16 bytes wraps")
	}
}

func TestErrorsShowNoKey(t *testing.T) {
	kek := counting(t, 'A', 32) // "ABCDEFGH..." if it were printed
	_, err := Unwrap(unhex(t, fixtureWrapped), kek, fixtureBinding())
	for _, leak := range []string{"ABCD", "41424344", "65 66 67"} {
		if strings.Contains(fmt.Sprintf("%v %+v %#v", err, err, err), leak) {
			t.Errorf("error shows the key: %v", err)
		}
	}
}

// FuzzUnwrap wants anything but the fixture to be refused with one of the three
// errors, and never a panic.
func FuzzUnwrap(f *testing.F) {
	good := unhex(f, fixtureWrapped)
	f.Add(good)
	f.Add(good[:WrappedSize-1])
	f.Add(append(bytes.Clone(good), 0))
	f.Add([]byte{})
	f.Add([]byte{2})
	f.Add(make([]byte, WrappedSize))
	f.Add(append([]byte{1}, make([]byte, WrappedSize-1)...))
	f.Add(append(bytes.Clone(good[:33]), make([]byte, WrappedSize-33)...))
	kek := fixtureKEK(f)
	f.Fuzz(func(t *testing.T, wrapped []byte) {
		key, err := Unwrap(wrapped, kek, fixtureBinding())
		if err == nil {
			defer key.Destroy()
			if !bytes.Equal(wrapped, good) {
				t.Errorf("unwrapped % x", wrapped)
			}
			return
		}
		if !errors.Is(err, ErrWrongKEK) && !errors.Is(err, ErrTampered) && !errors.Is(err, ErrVersion) {
			t.Errorf("error is %v", err)
		}
	})
}
