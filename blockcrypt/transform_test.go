package blockcrypt

import (
	"bytes"
	"testing"

	"github.com/vmcrypt/vmcrypt/image"
)

// mixed gives a storage with holes, zeros as data, sectors that begin with
// zeros, and runs of each that are longer than leading looks ahead.
func mixed(t *testing.T) *memory {
	t.Helper()
	const size = 3<<20 + 3*4096
	storage := newMemory(size)
	for off := int64(0); off < size; off += 3 * 4096 {
		mustWrite(t, storage, random(uint64(off), 4096), off)
		mustWrite(t, storage, make([]byte, 512), off+4096+512)
		mustWrite(t, storage, append(make([]byte, 500), 1), off+2*4096-1024)
	}
	mustWrite(t, storage, random(1, 5*maxRun), 1<<20)
	if err := storage.Discard(2<<20, 5*maxRun); err != nil {
		t.Fatal(err)
	}
	return storage
}

func (k kind) cipher(t *testing.T) *Cipher {
	t.Helper()
	c, err := fastest(t).NewCipher(testKey(), k.sector)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// What Copy encrypts is what a Disk encrypts, byte for byte, and comes back.
func TestTransformsEqualTheDisk(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		plain := mixed(t)
		stored := newMemory(plain.size)
		mustCopy(t, stored, plain, Encryption(k.cipher(t), k.holes))

		disk := k.over(t, stored)
		if !bytes.Equal(mustRead(t, disk, 0, int(plain.size)), plain.bytes()) {
			t.Error("the disk reads something else than was encrypted")
		}
		byDisk := newMemory(plain.size)
		mustCopy(t, k.over(t, byDisk), plain, image.Transform{})
		if !bytes.Equal(stored.bytes(), byDisk.bytes()) {
			t.Error("the ciphertext is not what the disk writes")
		}

		back := newMemory(plain.size)
		mustCopy(t, back, stored, Decryption(k.cipher(t), k.holes))
		if !bytes.Equal(back.bytes(), plain.bytes()) {
			t.Error("the plaintext did not come back")
		}
	})
}

func mustCopy(t *testing.T, dst, src image.Disk, transform image.Transform) {
	t.Helper()
	if err := image.Copy(t.Context(), dst, src, transform, nil); err != nil {
		t.Fatal(err)
	}
}

func TestHolesOfTransforms(t *testing.T) {
	for _, transform := range []func(*Cipher, HolePolicy) image.Transform{Encryption, Decryption} {
		storage := newMemory(2 << 20)
		mustCopy(t, storage, newMemory(2<<20), transform(kind{sector: 512}.cipher(t), Preserve))
		if len(storage.blocks) != 0 {
			t.Error("preserve: a hole became data")
		}
		mustCopy(t, storage, newMemory(2<<20), transform(kind{sector: 512}.cipher(t), Fill))
		if len(storage.blocks) != 2<<20/memoryBlock {
			t.Error("fill: a hole was left")
		}
	}
}

// A guest's bytes must not be taken for a hole since most of them are zeros.
func TestSectorWithOneBit(t *testing.T) {
	for _, size := range []int{512, 4096} {
		for at := range size {
			p := make([]byte, size)
			p[at] = 1
			if isZero(p) {
				t.Fatalf("byte %d of %d is overlooked", at, size)
			}
		}
		if !isZero(make([]byte, size)) {
			t.Errorf("%d zeros are none", size)
		}
	}
}

func TestTransformsFailOnceWiped(t *testing.T) {
	c := kind{sector: 512}.cipher(t)
	c.Wipe()
	for _, transform := range []image.Transform{Encryption(c, Preserve), Decryption(c, Preserve)} {
		if transform.Data(random(1, 512), 0) == nil {
			t.Error("sectors pass although the key is wiped")
		}
	}
}
