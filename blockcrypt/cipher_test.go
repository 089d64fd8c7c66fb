package blockcrypt

import (
	"bytes"
	"crypto/aes"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/xts"
)

// testKey is a key whose bytes are all different.
func testKey() []byte {
	key := make([]byte, KeySize)
	for i := range key {
		key[i] = byte(i*3 + 1)
	}
	return key
}

// eachEngine runs a test for every implementation this CPU has, with both sector
// sizes.
func eachEngine(t *testing.T, test func(t *testing.T, c *Cipher)) {
	for _, with := range Engines() {
		for _, size := range []int{512, 4096} {
			t.Run(fmt.Sprintf("%s/%d", with.Name(), size), func(t *testing.T) {
				if with.Missing() != "" {
					t.Skipf("%s: %s", with.Name(), with.Missing())
				}
				c, err := with.NewCipher(testKey(), size)
				if err != nil {
					t.Fatal(err)
				}
				test(t, c)
			})
		}
	}
}

// reference encrypts with golang.org/x/crypto/xts.
func reference(t *testing.T, key, src []byte, sectorSize int, offset int64) []byte {
	t.Helper()
	c, err := xts.NewCipher(aes.NewCipher, key)
	if err != nil {
		t.Fatal(err)
	}
	dst := make([]byte, len(src))
	for at := 0; at < len(src); at += sectorSize {
		c.Encrypt(dst[at:at+sectorSize], src[at:at+sectorSize], uint64(offset+int64(at))/512)
	}
	return dst
}

// referenceSector encrypts one sector with golang.org/x/crypto/xts.
func referenceSector(t *testing.T, plain []byte, tweak uint64) []byte {
	t.Helper()
	c, err := xts.NewCipher(aes.NewCipher, testKey())
	if err != nil {
		t.Fatal(err)
	}
	out := make([]byte, len(plain))
	c.Encrypt(out, plain, tweak)
	return out
}

// random gives n bytes that only depend on the seed.
func random(seed uint64, n int) []byte {
	out := make([]byte, n)
	source := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	_, _ = source.Read(out)
	return out
}

// offsets are where a tweak's width or carry could go wrong, for runs of up to
// length bytes.
func offsets(sectorSize, length int64) []int64 {
	return []int64{
		0, sectorSize, 7 * sectorSize,
		1<<32 - sectorSize, 1 << 32, 1<<32 + sectorSize,
		1<<40 - 3*sectorSize, 1 << 40,
		1<<41 - sectorSize, // the tweak passes 2^32
		MaxDiskSize - length,
	}
}

// unaligned gives a copy of p whose address is odd.
func unaligned(p []byte) []byte { return append(make([]byte, 1, len(p)+1), p...)[1:] }

func TestEqualsXCrypto(t *testing.T) {
	eachEngine(t, func(t *testing.T, c *Cipher) {
		for sectors := 1; sectors <= 40; sectors++ {
			length := sectors * c.SectorSize()
			plain := random(uint64(sectors), length)
			all := offsets(int64(c.SectorSize()), int64(length))
			if sectors > 9 { // one each, in turn
				all = all[sectors%len(all):][:1]
			}
			for _, offset := range all {
				compare(t, c, plain, reference(t, testKey(), plain, c.SectorSize(), offset), offset)
			}
		}
	})
}

// compare encrypts and decrypts apart, in place, and at odd addresses.
func compare(t *testing.T, c *Cipher, plain, want []byte, offset int64) {
	t.Helper()
	for _, align := range []func([]byte) []byte{bytes.Clone, unaligned} {
		src, dst := align(plain), align(make([]byte, len(plain)))
		check(t, c.Encrypt(dst, src, offset), dst, want, "encrypted apart", offset)
		check(t, nil, src, plain, "source of encryption", offset)
		check(t, c.Encrypt(src, src, offset), src, want, "encrypted in place", offset)
		check(t, c.Decrypt(dst, src, offset), dst, plain, "decrypted apart", offset)
		check(t, nil, src, want, "source of decryption", offset)
		check(t, c.Decrypt(src, src, offset), src, plain, "decrypted in place", offset)
	}
}

func check(t *testing.T, err error, got, want []byte, what string, offset int64) {
	t.Helper()
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%s, %d bytes at %d: differs, error %v", what, len(want), offset, err)
	}
}

func TestNothingBesideTheRunIsTouched(t *testing.T) {
	eachEngine(t, func(t *testing.T, c *Cipher) {
		size := c.SectorSize()
		buffer := random(1, 4*size)
		before := bytes.Clone(buffer)
		run := buffer[size : 3*size : 3*size]
		if err := c.Encrypt(run, run, 0); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(buffer[:size], before[:size]) || !bytes.Equal(buffer[3*size:], before[3*size:]) {
			t.Error("bytes before or after the run changed")
		}
	})
}

func TestAdjacentBuffersAreNoOverlap(t *testing.T) {
	eachEngine(t, func(t *testing.T, c *Cipher) {
		size := c.SectorSize()
		buffer := random(1, 2*size)
		want := reference(t, testKey(), buffer[:size], size, 0)
		if err := c.Encrypt(buffer[size:], buffer[:size], 0); err != nil || !bytes.Equal(buffer[size:], want) {
			t.Errorf("differs, error %v", err)
		}
	})
}

func TestCipherRefusals(t *testing.T) {
	eachEngine(t, func(t *testing.T, c *Cipher) {
		size := c.SectorSize()
		p := make([]byte, 4*size)
		for _, bad := range []struct {
			dst, src []byte
			offset   int64
			want     string
		}{
			{p[:size], p[:2*size], 0, "do not fit"},
			{p[:2*size], p[:size], 0, "do not fit"},
			{p[:size-1], p[:size-1], 0, "whole sectors"},
			{p[:16], p[:16], 0, "whole sectors"},
			{p[:size], p[:size], 16, "whole sectors"},
			{p[:size], p[:size], int64(size) - 1, "whole sectors"},
			{p[:size], p[:size], -int64(size), "outside of 256 TiB"},
			{p[:size], p[:size], MaxDiskSize, "outside of 256 TiB"},
			{p[:2*size], p[:2*size], MaxDiskSize - int64(size), "outside of 256 TiB"},
			{p[16 : 16+size], p[:size], 0, "overlap"},
			{p[:2*size], p[size : 3*size], 0, "overlap"},
		} {
			for _, crypt := range []func(dst, src []byte, offset int64) error{c.Encrypt, c.Decrypt} {
				if err := crypt(bad.dst, bad.src, bad.offset); err == nil || !strings.Contains(err.Error(), bad.want) {
					t.Errorf("%d to %d bytes at %d: error is %v, want %q", len(bad.src), len(bad.dst), bad.offset, err, bad.want)
				}
			}
		}
		if !bytes.Equal(p, make([]byte, len(p))) {
			t.Error("a refused call wrote something")
		}
		if err := c.Encrypt(nil, nil, 0); err != nil {
			t.Errorf("no sectors at all: %v", err)
		}
	})
}

func TestNewCipherRefusals(t *testing.T) {
	equalHalves := append(bytes.Repeat([]byte{5}, 32), bytes.Repeat([]byte{5}, 32)...)
	for _, bad := range []struct {
		key        []byte
		sectorSize int
		want       string
	}{
		{nil, 512, "0 bytes"},
		{testKey()[:32], 512, "32 bytes"},
		{append(testKey(), 1), 512, "65 bytes"},
		{equalHalves, 512, "equal"},
		{make([]byte, KeySize), 4096, "equal"},
		{testKey(), 0, "sector size"},
		{testKey(), 1024, "sector size"},
		{testKey(), -512, "sector size"},
		{testKey(), 8192, "sector size"},
	} {
		if c, err := fastest(t).NewCipher(bad.key, bad.sectorSize); c != nil || err == nil || !strings.Contains(err.Error(), bad.want) {
			t.Errorf("%d byte key, sector size %d: error is %v, want %q", len(bad.key), bad.sectorSize, err, bad.want)
		}
	}
}

// fastest is the engine that users get.
func fastest(t *testing.T) Engine {
	t.Helper()
	e, err := Fastest()
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestOneEngineIsAlwaysThere(t *testing.T) {
	all := Engines()
	if last := all[len(all)-1]; last.Name() != "crypto-aes" || last.Missing() != "" || (Engine{}).Name() != last.Name() {
		t.Errorf("the last engine is %s, the zero engine %s", last.Name(), Engine{}.Name())
	}
	if e := fastest(t); e.Missing() != "" {
		t.Errorf("%s is the fastest: %s", e.Name(), e.Missing())
	}
}

func TestNoAllocation(t *testing.T) {
	eachEngine(t, func(t *testing.T, c *Cipher) {
		p := make([]byte, 8*c.SectorSize())
		allocations := testing.AllocsPerRun(100, func() {
			_ = c.Encrypt(p, p, 0)
			_ = c.Decrypt(p, p, 0)
		})
		if allocations >= 1 && !raceEnabled { // the race detector empties pools at random
			t.Errorf("%v allocations", allocations)
		}
	})
}

func TestConcurrentUse(t *testing.T) {
	eachEngine(t, func(t *testing.T, c *Cipher) {
		plain := random(9, 4*c.SectorSize())
		want := reference(t, testKey(), plain, c.SectorSize(), 0)
		var group sync.WaitGroup
		for range 4 {
			group.Go(func() {
				dst := make([]byte, len(plain))
				for range 20 {
					if err := c.Encrypt(dst, plain, 0); err != nil || !bytes.Equal(dst, want) {
						t.Errorf("differs, error %v", err)
					}
				}
			})
		}
		group.Wait()
	})
}

func TestWipedCipherRefuses(t *testing.T) {
	eachEngine(t, func(t *testing.T, c *Cipher) {
		p := random(3, c.SectorSize())
		before := bytes.Clone(p)
		c.Wipe()
		c.Wipe()
		for _, err := range []error{c.Encrypt(p, p, 0), c.Decrypt(p, p, 0)} {
			if err == nil || !strings.Contains(err.Error(), "wiped") {
				t.Errorf("error is %v", err)
			}
		}
		if !bytes.Equal(p, before) {
			t.Error("a wiped cipher wrote something")
		}
	})
}

func TestStandardWipesItsKeySchedule(t *testing.T) {
	e, err := newStandard(testKey(), 512)
	if err != nil {
		t.Fatal(err)
	}
	s := e.(*standard)
	blocks := []reflect.Value{reflect.ValueOf(s.data).Elem(), reflect.ValueOf(s.tweak).Elem()}
	for _, block := range blocks {
		if block.IsZero() {
			t.Fatal("a key schedule in use is zero: the test looks at the wrong place")
		}
	}
	s.wipe()
	for _, block := range blocks {
		if !block.IsZero() {
			t.Errorf("%v is not wiped", block.Type())
		}
	}
}
