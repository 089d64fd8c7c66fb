package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// vectors are the instructions that a kernel is made of. A vector is one of 16
// registers, here called by its number, that holds some blocks side by side.
type vectors interface {
	blocks() int
	load(from Mem, to int)
	store(from int, to Mem)
	// broadcast loads one block to each place of a vector.
	broadcast(from Mem, to int)
	// add adds a vector in GF(2^128), addMemory one that lies in memory, aligned.
	add(with, to int)
	addMemory(with Mem, to int)
	// round is one of AES.
	round(r round, key, state int)
	copy(from, to int)
	// number makes a vector of one block, its bytes a little-endian number.
	number(n GPPhysical, to int)
	// count makes a vector of the numbers first, first+step, ... as blocks of
	// little-endian bytes, and an increment that leads to the next such vector.
	// It changes first.
	count(first, step GPPhysical, to, increment int)
	increase(increment, to int)
	// masks says how masks are computed, at first and in the loop.
	masks() (ahead, inLoop masks)
	// wipe clears all registers.
	wipe()
	// one is the same for vectors of one block.
	one() vectors
}

// round is a kind of round of AES.
type round struct{ encrypt, last bool }

var xmm = []VecPhysical{X0, X1, X2, X3, X4, X5, X6, X7, X8, X9, X10, X11, X12, X13, X14, X15}

// sse are the instructions of every CPU that has AES at all.
type sse struct{}

func (sse) blocks() int                  { return 1 }
func (sse) load(from Mem, to int)        { MOVOU(from, xmm[to]) }
func (sse) store(from int, to Mem)       { MOVOU(xmm[from], to) }
func (sse) broadcast(from Mem, to int)   { MOVOU(from, xmm[to]) }
func (sse) add(with, to int)             { PXOR(xmm[with], xmm[to]) }
func (sse) addMemory(with Mem, to int)   { PXOR(with, xmm[to]) }
func (sse) increase(with, to int)        { PADDQ(xmm[with], xmm[to]) }
func (sse) masks() (ahead, inLoop masks) { return scalarMasks{1}, scalarMasks{1} }
func (s sse) one() vectors               { return s }

func (sse) round(r round, key, state int) {
	switch r {
	case round{encrypt: true}:
		AESENC(xmm[key], xmm[state])
	case round{encrypt: true, last: true}:
		AESENCLAST(xmm[key], xmm[state])
	case round{}:
		AESDEC(xmm[key], xmm[state])
	case round{last: true}:
		AESDECLAST(xmm[key], xmm[state])
	}
}

func (sse) copy(from, to int)           { MOVOU(xmm[from], xmm[to]) }
func (sse) number(n GPPhysical, to int) { MOVQ(n, xmm[to]) }

func (sse) count(first, step GPPhysical, to, increment int) {
	MOVQ(first, xmm[to])
	MOVQ(step, xmm[increment])
}

func (s sse) wipe() {
	for i := range xmm {
		s.add(i, i)
	}
}

// avx are the instructions of AVX for a certain width.
type avx struct {
	register func(i int) Register
	width    int // in blocks
}

var (
	avx128 = avx{func(i int) Register { return xmm[i] }, 1}
	avx256 = avx{func(i int) Register { return xmm[i].AsY() }, 2}
)

func (v avx) blocks() int                { return v.width }
func (v avx) load(from Mem, to int)      { VMOVDQU(from, v.register(to)) }
func (v avx) store(from int, to Mem)     { VMOVDQU(v.register(from), to) }
func (v avx) add(with, to int)           { v.sum(with, to, to) }
func (v avx) addMemory(with Mem, to int) { VPXOR(with, v.register(to), v.register(to)) }
func (v avx) increase(with, to int)      { VPADDQ(v.register(with), v.register(to), v.register(to)) }
func (v avx) masks() (ahead, inLoop masks) {
	return vectorMasks{v, v.register}, scalarMasks{v.width}
}
func (v avx) sum(a, b, to int) { VPXOR(v.register(a), v.register(b), v.register(to)) }
func (avx) one() vectors       { return avx128 }

func (v avx) broadcast(from Mem, to int) {
	if v.width == 1 {
		v.load(from, to)
		return
	}
	VBROADCASTI128(from, v.register(to))
}

// wipe is as VZEROALL, which takes longer.
func (avx) wipe() {
	for i := range xmm {
		VPXOR(xmm[i], xmm[i], xmm[i])
	}
	VZEROUPPER()
}

func (v avx) spread(from, to int) {
	VINSERTI128(Imm(1), xmm[from], xmm[from].AsY(), v.register(to))
}

func (v avx) round(r round, key, state int) {
	k, s := v.register(key), v.register(state)
	switch r {
	case round{encrypt: true}:
		VAESENC(k, s, s)
	case round{encrypt: true, last: true}:
		VAESENCLAST(k, s, s)
	case round{}:
		VAESDEC(k, s, s)
	case round{last: true}:
		VAESDECLAST(k, s, s)
	}
}

func (v avx) copy(from, to int)         { VMOVDQU(v.register(from), v.register(to)) }
func (avx) number(n GPPhysical, to int) { VMOVQ(n, xmm[to]) }

func (avx) count(first, step GPPhysical, to, increment int) {
	pair(first, step, to, scratch)
	LEAQ(Mem{Base: step, Index: step, Scale: 1}, first)
	pair(first, nil, increment, scratch)
}

// pair makes a vector of 256 bits from first and first+step, or twice from first.
// It leaves first at the latter.
func pair(first, step Register, to, spare int) {
	VMOVQ(first, xmm[to])
	if step != nil {
		ADDQ(step, first)
	}
	VMOVQ(first, xmm[spare])
	VINSERTI128(Imm(1), xmm[spare], xmm[to].AsY(), xmm[to].AsY())
}

// avx512 are the instructions of AVX-512 F and BW that differ from AVX.
type avx512 struct{ avx }

var avx512bits = avx512{avx{func(i int) Register { return xmm[i].AsZ() }, 4}}

func (v avx512) load(from Mem, to int)        { VMOVDQU64(from, v.register(to)) }
func (v avx512) store(from int, to Mem)       { VMOVDQU64(v.register(from), to) }
func (v avx512) add(with, to int)             { v.sum(with, to, to) }
func (v avx512) masks() (ahead, inLoop masks) { m := vectorMasks{v, v.register}; return m, m }
func (v avx512) sum(a, b, to int)             { VPXORQ(v.register(a), v.register(b), v.register(to)) }

func (v avx512) addMemory(with Mem, to int) { VPXORQ(with, v.register(to), v.register(to)) }
func (v avx512) broadcast(from Mem, to int) { VBROADCASTI32X4(from, v.register(to)) }

func (v avx512) count(first, step GPPhysical, to, increment int) {
	pair(first, step, to, scratch)
	ADDQ(step, first)
	pair(first, step, scratch, increment)
	VINSERTI64X4(Imm(1), xmm[scratch].AsY(), v.register(to), v.register(to))
	MOVQ(step, first)
	SHLQ(Imm(2), first)
	pair(first, nil, increment, scratch)
	VINSERTI64X4(Imm(1), xmm[increment].AsY(), v.register(increment), v.register(increment))
}

func (v avx512) spread(from, to int) {
	VSHUFI32X4(Imm(0), v.register(from), v.register(from), v.register(to))
}

func (v avx512) copy(from, to int) { VMOVDQU64(v.register(from), v.register(to)) }
