package blockcrypt

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"reflect"
	"sync"
)

// standard is the reference engine, on Go's crypto/aes alone.
type standard struct {
	data, tweak cipher.Block // for the two halves of the key
	sectorSize  int
}

// newStandard also takes the shorter keys of AES-128 and AES-192, for the sake
// of test vectors.
func newStandard(key []byte, sectorSize int) (engine, error) {
	half := len(key) / 2
	data, err := aes.NewCipher(key[:half])
	if err != nil {
		return nil, err
	}
	tweak, err := aes.NewCipher(key[half:])
	if err != nil {
		return nil, err
	}
	return &standard{data, tweak, sectorSize}, nil
}

func (e *standard) encrypt(dst, src []byte, tweak uint64) {
	e.run(dst, src, tweak, e.data.Encrypt)
}

func (e *standard) decrypt(dst, src []byte, tweak uint64) {
	e.run(dst, src, tweak, e.data.Decrypt)
}

// run applies crypt, which works on one block, to every sector.
func (e *standard) run(dst, src []byte, tweak uint64, crypt func(dst, src []byte)) {
	mask := masks.Get().(*[aes.BlockSize]byte)
	for at := 0; at < len(src); at += e.sectorSize {
		binary.LittleEndian.PutUint64(mask[:8], tweak)
		binary.LittleEndian.PutUint64(mask[8:], 0)
		e.tweak.Encrypt(mask[:], mask[:])
		xts(dst[at:at+e.sectorSize], src[at:at+e.sectorSize], mask, crypt)
		tweak += uint64(e.sectorSize / tweakUnit)
	}
	clear(mask[:])
	masks.Put(mask)
}

// masks holds room for encrypted tweaks, which would otherwise be allocated on
// each call since they pass through an interface.
var masks = sync.Pool{New: func() any { return new([aes.BlockSize]byte) }}

// xts applies crypt to the blocks of one sector between two additions of the
// mask, which is multiplied by x in GF(2^128) from block to block: IEEE Std 1619,
// section 5.3 and 5.4. Lengths are multiples of 16, so there is no ciphertext
// stealing.
func xts(dst, src []byte, mask *[aes.BlockSize]byte, crypt func(dst, src []byte)) {
	low := binary.LittleEndian.Uint64(mask[:8])
	high := binary.LittleEndian.Uint64(mask[8:])
	for len(src) >= aes.BlockSize && len(dst) >= aes.BlockSize {
		in, out := src[:aes.BlockSize], dst[:aes.BlockSize]
		binary.LittleEndian.PutUint64(out[:8], binary.LittleEndian.Uint64(in[:8])^low)
		binary.LittleEndian.PutUint64(out[8:], binary.LittleEndian.Uint64(in[8:])^high)
		crypt(out, out)
		binary.LittleEndian.PutUint64(out[:8], binary.LittleEndian.Uint64(out[:8])^low)
		binary.LittleEndian.PutUint64(out[8:], binary.LittleEndian.Uint64(out[8:])^high)
		// x^128 = x^7 + x^2 + x + 1; a mask, as a branch would leak the tweak.
		carry := -(high >> 63) & 0x87
		high = high<<1 | low>>63
		low = low<<1 ^ carry
		src, dst = src[aes.BlockSize:], dst[aes.BlockSize:]
	}
}

func (e *standard) wipe() {
	for _, block := range []cipher.Block{e.data, e.tweak} {
		// crypto/aes has no way to forget a key schedule, but its memory can
		// be set to the zero value of its type.
		reflect.ValueOf(block).Elem().SetZero()
	}
}
