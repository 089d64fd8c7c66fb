package ceiling

import (
	"bytes"
	"crypto/aes"
	"encoding/hex"
	"testing"

	"github.com/vmcrypt/vmcrypt/blockcrypt"
)

// A ceiling that does less than it says would make the kernels look slow, one
// that does more would make them look fast.
func TestLoopsDoWhatTheySay(t *testing.T) {
	for _, e := range blockcrypt.Engines() {
		l, ok := Of(e.Name())
		if !ok {
			continue
		}
		t.Run(e.Name(), func(t *testing.T) {
			if e.Missing() != "" {
				t.Skip(e.Missing())
			}
			p := bytes.Repeat([]byte{7}, 8192)
			l.XOR(p)
			if want := bytes.Repeat(append([]byte{6}, bytes.Repeat([]byte{7}, 15)...), 512); !bytes.Equal(p, want) {
				t.Error("XOR differs")
			}
			checkRounds(t, l)
		})
	}
}

// zeroKeyed is 16 bytes of 7 after AES-256 with round keys of zeros.
const zeroKeyed = "fdfdfdfdfdfdfdfdfdfdfdfdfdfdfdfd"

func checkRounds(t *testing.T, l Loops) {
	t.Helper()
	p := bytes.Repeat([]byte{7}, 8192)
	l.Encrypt(p)
	for at := 0; at < len(p); at += aes.BlockSize {
		if got := hex.EncodeToString(p[at : at+aes.BlockSize]); got != zeroKeyed {
			t.Fatalf("block at %d is %s", at, got)
		}
	}
}
