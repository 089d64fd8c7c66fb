package blockcrypt

import (
	"fmt"
	"testing"
)

func BenchmarkEncrypt(b *testing.B) { benchmark(b, keyedXTS.encrypt) }

func BenchmarkDecrypt(b *testing.B) { benchmark(b, keyedXTS.decrypt) }

// benchmark measures one core on 64 KiB in place, for every engine and sector
// size.
func benchmark(b *testing.B, crypt func(e keyedXTS, dst, src []byte, tweak uint64)) {
	for _, with := range Engines() {
		for _, size := range []int{512, 4096} {
			b.Run(fmt.Sprintf("%s/%d", with.Name(), size), func(b *testing.B) {
				if with.Missing() != "" {
					b.Skipf("%s: %s", with.Name(), with.Missing())
				}
				e, err := with.get().new(testKey(), size)
				if err != nil {
					b.Fatal(err)
				}
				run := make([]byte, 64<<10)
				b.SetBytes(int64(len(run)))
				for b.Loop() {
					crypt(e, run, run, 0)
				}
			})
		}
	}
}
