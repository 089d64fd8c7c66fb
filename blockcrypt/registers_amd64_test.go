//go:build !purego

package blockcrypt

import (
	"bytes"
	"testing"

	"github.com/klauspost/cpuid/v2"

	"github.com/vmcrypt/vmcrypt/internal/registers"
)

// TestKernelsClearTheRegisters looks for round keys in the vector registers.
func TestKernelsClearTheRegisters(t *testing.T) {
	if !cpuid.CPU.Supports(cpuid.AVX) {
		t.Skip("the CPU has no AVX")
	}
	for _, with := range Engines() {
		t.Run(with.Name(), func(t *testing.T) {
			if with.Missing() != "" {
				t.Skipf("%s: %s", with.Name(), with.Missing())
			}
			e, err := with.get().new(testKey(), 512)
			if err != nil {
				t.Fatal(err)
			}
			defer e.wipe()
			k, ok := e.(*kernel)
			if !ok {
				t.Skip("crypto/aes is Go's")
			}
			p := make([]byte, 8*512)
			for name, crypt := range map[string]func(dst, src []byte, tweak uint64){"encrypt": k.encrypt, "decrypt": k.decrypt} {
				var after [16][32]byte
				crypt(p, p, 0)
				registers.Save(&after)
				if n := keysIn(after, k); n != 0 {
					t.Errorf("%s left %d halves of registers with round keys", name, n)
				}
			}
			var before, after [16][32]byte
			for i := range before {
				copy(before[i][16:], k.schedule[16*i:])
			}
			registers.Load(&before)
			registers.Save(&after)
			if n := keysIn(after, k); n != 16 {
				t.Errorf("%d of 16 round keys found: the test looks at the wrong place", n)
			}
		})
	}
}

// keysIn counts the halves of registers that hold a round key.
func keysIn(all [16][32]byte, k *kernel) (n int) {
	for _, r := range all {
		for _, half := range [][]byte{r[:16], r[16:]} {
			for at := 0; at < len(k.schedule); at += 16 {
				if bytes.Equal(half, k.schedule[at:at+16]) {
					n++
					break
				}
			}
		}
	}
	return n
}
