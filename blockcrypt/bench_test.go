package blockcrypt

import (
	"fmt"
	"testing"
)

func BenchmarkEncrypt(b *testing.B) { benchmark(b, engine.encrypt) }

func BenchmarkDecrypt(b *testing.B) { benchmark(b, engine.decrypt) }

// benchmark measures one core on 64 KiB in place, for every engine and sector
// size.
func benchmark(b *testing.B, crypt func(e engine, dst, src []byte, tweak uint64)) {
	for _, with := range implementations {
		for _, size := range []int{512, 4096} {
			b.Run(fmt.Sprintf("%s/%d", with.name, size), func(b *testing.B) {
				if !with.available() {
					b.Skipf("this CPU cannot run %s", with.name)
				}
				e, err := with.new(testKey(), size)
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
