package blockcrypt

import (
	"encoding/binary"
	"testing"

	"github.com/vmcrypt/vmcrypt/internal/secret"
	"github.com/vmcrypt/vmcrypt/internal/secret/secrettest"
)

// TestNoTraceOfTheKey looks for the halves of a key, with which the key schedules
// of AES begin, while a cipher has it and once it is wiped.
func TestNoTraceOfTheKey(t *testing.T) {
	for _, with := range Engines() {
		t.Run(with.Name(), func(t *testing.T) {
			if with.Missing() != "" {
				t.Skipf("%s: %s", with.Name(), with.Missing())
			}
			c, halves := cipherOfRandomKey(t, with)
			for _, half := range halves {
				if half.places(t, secrettest.Traces) == 0 {
					t.Error("no trace of a key in use: the test looks for the wrong bytes")
				}
			}
			c.Wipe()
			for _, half := range halves {
				if n := half.places(t, secrettest.Remaining); n != 0 {
					t.Errorf("half of the key is left in %d places", n)
				}
			}
		})
	}
}

// keyHalf is half of a key in the two ways to hold it as 32-bit words.
type keyHalf struct{ plain, swapped *secret.Buffer }

// places counts those where it is found.
func (h keyHalf) places(t *testing.T, find func(*testing.T, *secret.Buffer) []string) int {
	t.Helper()
	return len(find(t, h.plain)) + len(find(t, h.swapped))
}

// cipherOfRandomKey gives a cipher that was used, and what to look for.
func cipherOfRandomKey(t *testing.T, with Engine) (*Cipher, [2]keyHalf) {
	t.Helper()
	key, err := secret.Random(KeySize)
	if err != nil {
		t.Fatal(err)
	}
	defer key.Destroy()
	c, err := with.NewCipher(key.Bytes(), 512)
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 512)
	if err := c.Encrypt(p, p, 0); err != nil {
		t.Fatal(err)
	}
	return c, [2]keyHalf{halfOf(t, key.Bytes()[:KeySize/2]), halfOf(t, key.Bytes()[KeySize/2:])}
}

func halfOf(t *testing.T, half []byte) keyHalf {
	t.Helper()
	var h keyHalf
	for _, b := range []**secret.Buffer{&h.plain, &h.swapped} {
		var err error
		if *b, err = secret.New(len(half)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup((*b).Destroy)
		copy((*b).Bytes(), half)
	}
	for word := h.swapped.Bytes(); len(word) > 0; word = word[4:] {
		binary.LittleEndian.PutUint32(word, binary.BigEndian.Uint32(word))
	}
	return h
}
