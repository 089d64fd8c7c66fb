//go:build !purego

package ceiling

import "unsafe"

// inAssembly are the loops by engine.
var inAssembly = map[string]Loops{
	"vaes-avx512": loops(encryptAVX512, xorAVX512, 512),
	"vaes-avx2":   loops(encryptAVX2, xorAVX2, 256),
	"aes-ni":      loops(encryptAESNI, xorAESNI, 128),
}

func loops(encrypt func(*[240]byte, *byte, int), xor func(*[16]byte, *byte, int), chunk int) Loops {
	keys, with := new([240]byte), &[16]byte{1}
	return Loops{
		Encrypt: func(p []byte) { encrypt(keys, unsafe.SliceData(p), len(p)/chunk) },
		XOR:     func(p []byte) { xor(with, unsafe.SliceData(p), len(p)/chunk) },
	}
}
