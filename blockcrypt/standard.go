package blockcrypt

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"reflect"
	"sync"
)

// standard is the reference, on Go's crypto/aes alone.
type standard struct {
	data, tweak cipher.Block // for the two halves of the key
	sectorSize  int
}

// newStandard also takes the shorter keys of AES-128 and AES-192, for the sake
// of test vectors.
func newStandard(key []byte, sectorSize int) (keyedXTS, error) {
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
	m := pool.Get().(*masks)
	for at := 0; at < len(src); at += e.sectorSize {
		first := m[:aes.BlockSize]
		binary.LittleEndian.PutUint64(first[:8], tweak)
		binary.LittleEndian.PutUint64(first[8:], 0)
		e.tweak.Encrypt(first, first)
		m.sector(dst[at:at+e.sectorSize], src[at:at+e.sectorSize], crypt)
		tweak += uint64(e.sectorSize / tweakUnit)
	}
	clear(m[:])
	pool.Put(m)
}

// masks is what is added to the blocks of a sector before and after encryption,
// for 512 bytes at a time.
type masks [512]byte

// pool saves an allocation a call: masks escape through an interface.
var pool = sync.Pool{New: func() any { return new(masks) }}

// sector applies crypt to the blocks of one sector, between two additions of
// masks that begin with the encrypted tweak in m: IEEE Std 1619, sections 5.3
// and 5.4. Lengths are multiples of 16, so there is no ciphertext stealing. It
// adds many masks at once, as subtle does that with vector instructions.
func (m *masks) sector(dst, src []byte, crypt func(dst, src []byte)) {
	low := binary.LittleEndian.Uint64(m[:8])
	high := binary.LittleEndian.Uint64(m[8:])
	for len(src) > 0 {
		n := min(len(src), len(m))
		low, high = m.fill(low, high)
		subtle.XORBytes(dst[:n], src[:n], m[:n])
		for i := 0; i < n; i += aes.BlockSize {
			block := dst[i : i+aes.BlockSize]
			crypt(block, block)
		}
		subtle.XORBytes(dst[:n], dst[:n], m[:n])
		dst, src = dst[n:], src[n:]
	}
}

// fill computes masks from the first on, each x times the one before it in
// GF(2^128), and gives the one that comes next.
func (m *masks) fill(low, high uint64) (nextLow, nextHigh uint64) {
	for i := 0; i < len(m); i += aes.BlockSize {
		binary.LittleEndian.PutUint64(m[i:i+8], low)
		binary.LittleEndian.PutUint64(m[i+8:i+16], high)
		// x^128 = x^7 + x^2 + x + 1; no branch, which would leak the mask.
		carry := -(high >> 63) & 0x87
		high = high<<1 | low>>63
		low = low<<1 ^ carry
	}
	return low, high
}

func (e *standard) wipe() {
	for _, block := range []cipher.Block{e.data, e.tweak} {
		// crypto/aes has no way to forget a key schedule, but its memory can
		// be set to the zero value of its type.
		reflect.ValueOf(block).Elem().SetZero()
	}
}
