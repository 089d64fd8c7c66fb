package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// masks computes what is added to the blocks of a chunk before and after
// encryption: each mask is x times the one before it in GF(2^128), where
// x^128 = x^7 + x^2 + x + 1 (IEEE Std 1619, section 5.2).
type masks interface {
	prepare()
	// takeOver goes on where vectorMasks stopped.
	takeOver()
	// first gives the instructions that compute the masks of the first chunk of
	// all, whose first mask is in other, and store them. Each is handed to use in
	// a vector.
	first(to GPPhysical, use func(mask, i int)) []func()
	// start takes the first mask of a sector from memory. Advance goes from the
	// first mask of a chunk to that of the next in the same sector.
	start(first Mem)
	advance()
	// chunk gives the instructions that compute a chunk's masks and store them.
	// Others may stand between them.
	chunk(to GPPhysical) []func()
}

const polynomial = 0x87 // x^7 + x^2 + x + 1

// scalarMasks computes in general registers, which leaves the vector units to AES.
// The mask that comes next is in low and high.
type scalarMasks struct{ blocks int }

func (scalarMasks) prepare() {}

func (s scalarMasks) takeOver() {
	if s.blocks > 1 {
		VMOVQ(xmm[first], low)
		VPEXTRQ(Imm(1), xmm[first], high)
	}
}

func (scalarMasks) start(first Mem) {
	MOVQ(first, low)
	MOVQ(first.Offset(8), high)
}

// advance has nothing to do: chunk leads there.
func (scalarMasks) advance() {}

func (s scalarMasks) first(to GPPhysical, use func(mask, i int)) []func() {
	MOVQ(xmm[other], low)
	MOVHLPS(xmm[other], xmm[other])
	MOVQ(xmm[other], high)
	steps := s.chunk(to)
	for i := range chunk {
		steps = append(steps, func() { MOVOU(Mem{Base: to, Disp: 16 * i}, xmm[shifted]); use(shifted, i) })
	}
	return steps
}

func (s scalarMasks) chunk(to GPPhysical) (steps []func()) {
	for i := range chunk * s.blocks {
		at := Mem{Base: to, Disp: 16 * i}
		steps = append(steps,
			func() { MOVQ(low, at) },
			func() { MOVQ(high, at.Offset(8)) },
			func() { s.double() })
	}
	return steps
}

func (scalarMasks) double() {
	MOVQ(high, carry)
	SARQ(Imm(63), carry)
	ANDQ(Imm(polynomial), carry)
	ADDQ(low, low)
	ADCQ(high, high)
	XORQ(carry, low)
}

// wide are vectors of several blocks.
type wide interface {
	vectors
	// sum adds two vectors in GF(2^128).
	sum(a, b, to int)
	// spread puts the first block of a vector to each place of another.
	spread(from, to int)
}

// vectorMasks computes in vectors. Register first holds the first masks of a
// chunk.
type vectorMasks struct {
	wide
	register func(i int) Register
}

// By what the blocks of a chunk's masks are shifted, each half by itself: by one bit
// more from block to block.
var shiftsLeft, shiftsRight, polynomials Mem

func constants() {
	const most = 32 // blocks in a chunk
	polynomials = GLOBL("polynomials", RODATA|NOPTR)
	DATA(0, U64(polynomial))
	DATA(8, U64(0))
	shiftsLeft = GLOBL("shiftsLeft", RODATA|NOPTR)
	for i := range 2 * most {
		DATA(8*i, U64(i/2))
	}
	shiftsRight = GLOBL("shiftsRight", RODATA|NOPTR)
	for i := range 2 * most {
		DATA(8*i, U64(64-i/2))
	}
}

// prepare loads the polynomial.
func (m vectorMasks) prepare() {
	m.broadcast(polynomials, poly)
}

func (vectorMasks) takeOver() {}

// first computes vectors from the first mask alone, so that few wait for others.
func (m vectorMasks) first(to GPPhysical, use func(mask, i int)) (steps []func()) {
	const start = roundKey // before there is need of a round key
	m.spread(other, start)
	put := func(mask, i int) {
		steps = append(steps, func() { m.store(mask, at(to, m, i)) }, func() { use(mask, i) })
	}
	byBytes := 8 / m.blocks()
	for i := range byBytes {
		mask := other
		if i == 0 {
			mask = first
		}
		steps = append(steps, m.shift(start, i, mask)...)
		put(mask, i)
		for j := i + byBytes; j < chunk; j += byBytes {
			steps = append(steps, m.timesBytes(mask, j/byBytes, shifted)...)
			put(shifted, j)
		}
	}
	return steps
}

func (m vectorMasks) start(from Mem) {
	m.broadcast(from, other)
	emit(m.shift(other, 0, first))
}

// shift makes the masks in a chunk's ith vector from the first one.
func (m vectorMasks) shift(start, i, to int) []func() {
	offset := 16 * m.blocks() * i
	return append([]func(){
		func() { VPSRLVQ(shiftsRight.Offset(offset), m.register(start), m.register(carried)) },
		func() { VPSLLVQ(shiftsLeft.Offset(offset), m.register(start), m.register(shifted)) },
	}, m.reduceBits(to)...)
}

func (m vectorMasks) advance() {
	emit(m.timesBytes(first, m.blocks(), first))
}

// chunk computes the vectors that a shift by some bits leads to, and from each
// of them those that a shift by bytes leads to, which is faster.
func (m vectorMasks) chunk(to GPPhysical) (steps []func()) {
	put := func(vector, i int) {
		steps = append(steps, func() { m.store(vector, at(to, m, i)) })
	}
	byBytes := 8 / m.blocks()
	for i := range byBytes {
		start := first
		if i > 0 {
			start = other
			steps = append(steps, m.timesBits(first, i*m.blocks(), other)...)
		}
		put(start, i)
		for j := i + byBytes; j < chunk; j += byBytes {
			steps = append(steps, m.timesBytes(start, j/byBytes, shifted)...)
			put(shifted, j)
		}
	}
	return steps
}

// timesBits multiplies by x^n.
func (m vectorMasks) timesBits(from, n, to int) []func() {
	return append([]func(){
		func() { VPSRLQ(Imm(uint64(64-n)), m.register(from), m.register(carried)) },
		func() { VPSLLQ(Imm(uint64(n)), m.register(from), m.register(shifted)) },
	}, m.reduceBits(to)...)
}

// reduceBits ends a multiplication: shifted are the two halves of each block, each
// shifted by itself, carried the bits that were lost. Those of the lower half
// belong in the upper, those of the upper are reduced by the polynomial.
func (m vectorMasks) reduceBits(to int) []func() {
	return []func(){
		func() { VPCLMULQDQ(Imm(0x01), m.register(poly), m.register(carried), m.register(reduced)) },
		func() { VPSLLDQ(Imm(8), m.register(carried), m.register(carried)) },
		func() { m.add(reduced, shifted) },
		func() { m.sum(carried, shifted, to) },
	}
}

// timesBytes multiplies by x^8n.
func (m vectorMasks) timesBytes(from, n, to int) []func() {
	return []func(){
		func() { VPSRLDQ(Imm(uint64(16-n)), m.register(from), m.register(carried)) },
		func() { VPSLLDQ(Imm(uint64(n)), m.register(from), m.register(shifted)) },
		func() { VPCLMULQDQ(Imm(0x00), m.register(poly), m.register(carried), m.register(reduced)) },
		func() { m.sum(reduced, shifted, to) },
	}
}
