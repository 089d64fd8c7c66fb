// Command generate writes the AES-256-XTS kernels of package blockcrypt, in Go's
// assembly for amd64, to the files that its flags name; with -ceiling, the loops
// of package ceiling that they are measured against.
package main

import (
	"flag"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// What the Go side declares likewise: type schedule, and maxSectors.
const (
	roundKeys  = 15 // of AES-256
	encryptKey = 0  // offsets in a schedule
	decryptKey = encryptKey + 16*roundKeys
	tweakKey   = decryptKey + 16*roundKeys
	maxSectors = 64
)

func main() {
	ceiling := flag.Bool("ceiling", false, "write the loops of package ceiling")
	flag.Parse()
	ConstraintExpr("!purego")
	if *ceiling {
		generateCeiling()
	} else {
		generateKernels()
	}
	Generate()
}

var widths = []struct {
	name string
	vectors
}{{"AVX512", avx512bits}, {"AVX2", avx256}, {"AESNI", sse{}}}

func generateKernels() {
	constants()
	expandKey()
	invertKey()
	for _, w := range widths {
		kernel{w, "encrypt" + w.name, true}.generate()
		kernel{w, "decrypt" + w.name, false}.generate()
	}
}

func generateCeiling() {
	for _, w := range widths {
		kernel{w, "encrypt" + w.name, true}.generateBare()
		kernel{w, "xor" + w.name, true}.generateXOR()
	}
}

// expandKey is the key expansion of FIPS 197, section 5.2, for 256 bits.
func expandKey() {
	TEXT("expandKey", NOSPLIT, "func(key *[32]byte, schedule *[240]byte)")
	Pragma("noescape")
	Doc("expandKey makes the round keys that encrypt from an AES-256 key.")
	key, schedule := Load(Param("key"), RAX), Load(Param("schedule"), RBX)
	even, odd, last, shifted := X0, X1, X2, X3
	MOVOU(Mem{Base: key}, even)
	MOVOU(Mem{Base: key, Disp: 16}, odd)
	MOVOU(even, Mem{Base: schedule})
	MOVOU(odd, Mem{Base: schedule, Disp: 16})
	for round := 2; round < roundKeys; round++ {
		words, from, rcon, pick := even, odd, 1<<(round/2-1), 0xff
		if round%2 == 1 {
			words, from, rcon, pick = odd, even, 0, 0xaa
		}
		AESKEYGENASSIST(Imm(uint64(rcon)), from, last)
		PSHUFD(Imm(uint64(pick)), last, last)
		MOVO(words, shifted)
		for range 3 { // each word is the sum of those before it
			PSLLDQ(Imm(4), shifted)
			PXOR(shifted, words)
		}
		PXOR(last, words)
		MOVOU(words, Mem{Base: schedule, Disp: 16 * round})
	}
	wipeSSE(4)
	RET()
}

// invertKey prepares for the equivalent inverse cipher of FIPS 197, section
// 5.3.5.
func invertKey() {
	TEXT("invertKey", NOSPLIT, "func(encrypt, decrypt *[240]byte)")
	Pragma("noescape")
	Doc("invertKey makes the round keys that decrypt from those that encrypt.")
	encrypt, decrypt := Load(Param("encrypt"), RAX), Load(Param("decrypt"), RBX)
	for round := range roundKeys {
		MOVOU(Mem{Base: encrypt, Disp: 16 * (roundKeys - 1 - round)}, X0)
		if round != 0 && round != roundKeys-1 {
			AESIMC(X0, X0)
		}
		MOVOU(X0, Mem{Base: decrypt, Disp: 16 * round})
	}
	wipeSSE(1)
	RET()
}

// wipeSSE clears the first registers.
func wipeSSE(registers int) {
	for i := range registers {
		PXOR(xmm[i], xmm[i])
	}
}
