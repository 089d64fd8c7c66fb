package secrettest

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

// ScheduleOf gives the key and the round keys of AES-256 (FIPS 197, sections 5.2 and
// 5.3.5) as they lie in the memory of the implementations in use: those that encrypt and
// those that decrypt, as bytes and as words of a little-endian machine.
func ScheduleOf(name string, key []byte) (needles []Needle) {
	encrypting := expand(key)
	for i, roundKey := range encrypting {
		kind := fmt.Sprintf("round key %d", i)
		if i < 2 {
			kind = fmt.Sprintf("half %d", i+1)
		}
		needles = append(needles,
			Needle{fmt.Sprintf("%s, %s", name, kind), roundKey},
			Needle{fmt.Sprintf("%s, %s in words", name, kind), swapped(roundKey)})
		if i > 0 && i < len(encrypting)-1 { // the outermost are the same
			inverse := invMixColumns(roundKey)
			needles = append(needles,
				Needle{fmt.Sprintf("%s, %s to decrypt", name, kind), inverse},
				Needle{fmt.Sprintf("%s, %s to decrypt, in words", name, kind), swapped(inverse)})
		}
	}
	return needles
}

// expand gives the 15 round keys of a key of 32 bytes.
func expand(key []byte) (roundKeys [][]byte) {
	const words, keyWords = 60, 8
	w := make([]uint32, words)
	for i := range keyWords {
		w[i] = binary.BigEndian.Uint32(key[4*i:])
	}
	constant := byte(1)
	for i := keyWords; i < words; i++ {
		word := w[i-1]
		switch i % keyWords {
		case 0:
			word = substitute(bits.RotateLeft32(word, 8)) ^ uint32(constant)<<24
			constant = times(constant, 2)
		case 4:
			word = substitute(word)
		}
		w[i] = w[i-keyWords] ^ word
	}
	for i := 0; i < words; i += 4 {
		var roundKey []byte
		for _, word := range w[i : i+4] {
			roundKey = binary.BigEndian.AppendUint32(roundKey, word)
		}
		roundKeys = append(roundKeys, roundKey)
	}
	return roundKeys
}

func swapped(roundKey []byte) (out []byte) {
	for i := 0; i < len(roundKey); i += 4 {
		out = binary.LittleEndian.AppendUint32(out, binary.BigEndian.Uint32(roundKey[i:]))
	}
	return out
}

// invMixColumns is that of FIPS 197, section 5.3.3.
func invMixColumns(block []byte) []byte {
	out := make([]byte, len(block))
	for i := range block {
		column, row := block[i&^3:i&^3+4], i%4
		for j, factor := range []byte{0x0e, 0x0b, 0x0d, 0x09} {
			out[i] ^= times(column[(row+j)%4], factor)
		}
	}
	return out
}

// times multiplies in the field of AES.
func times(a, b byte) (product byte) {
	for ; b > 0; b >>= 1 {
		if b&1 == 1 {
			product ^= a
		}
		carry := a >> 7
		a = a<<1 ^ carry*0x1b
	}
	return product
}

// substitute applies the S-box to the bytes of a word.
func substitute(word uint32) (out uint32) {
	for shift := 0; shift < 32; shift += 8 {
		out |= uint32(sBox(byte(word>>shift))) << shift
	}
	return out
}

// sBox is the affine transformation of the inverse: FIPS 197, section 5.1.1.
func sBox(b byte) byte {
	inverse := byte(1)
	for range 254 { // b^254 is its inverse, and 0 that of 0
		inverse = times(inverse, b)
	}
	out := byte(0x63)
	for turn := range 5 {
		out ^= bits.RotateLeft8(inverse, turn)
	}
	return out
}
