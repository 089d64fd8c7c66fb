// Package ceiling is what the kernels of blockcrypt are measured against: the
// same loops over memory with less to do. Only benchmarks use it.
package ceiling

import "unsafe"

//go:generate go -C ../../blockcrypt/generate run . -ceiling -out ../../internal/ceiling/loops_amd64.s -stubs ../../internal/ceiling/assembly_amd64.go -pkg ceiling

// Loops are two loops that work on memory in place.
type Loops struct {
	// Encrypt is AES-256 on each block, without XTS.
	Encrypt func(p []byte)
	// XOR is a single addition to each block, without AES.
	XOR func(p []byte)
}

// Of gives the loops with the instructions of an engine of blockcrypt; false if
// it is not in assembly. They work on a multiple of 512 bytes.
func Of(engine string) (Loops, bool) {
	switch engine {
	case "vaes-avx512":
		return loops(encryptAVX512, xorAVX512, 512), true
	case "vaes-avx2":
		return loops(encryptAVX2, xorAVX2, 256), true
	case "aes-ni":
		return loops(encryptAESNI, xorAESNI, 128), true
	}
	return Loops{}, false
}

func loops(encrypt func(*[240]byte, *byte, int), xor func(*[16]byte, *byte, int), chunk int) Loops {
	keys, with := new([240]byte), &[16]byte{1}
	return Loops{
		Encrypt: func(p []byte) { encrypt(keys, unsafe.SliceData(p), len(p)/chunk) },
		XOR:     func(p []byte) { xor(with, unsafe.SliceData(p), len(p)/chunk) },
	}
}
