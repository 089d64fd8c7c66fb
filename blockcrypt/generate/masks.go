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
	// begin is start for the first sector of all, whose first mask is in other,
	// too.
	begin(first Mem)
	// start takes the first mask of a sector from memory. Advance goes from the
	// first mask of a chunk to that of the next in the same sector.
	start(first Mem)
	advance()
	// chunk gives the instructions that compute a chunk's masks and store them.
	// Others may stand between them. Each mask in a vector is also given to use,
	// which may be nil.
	chunk(to GPPhysical, use func(mask, i int)) []func()
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

func (s scalarMasks) begin(first Mem) { s.start(first) }

func (scalarMasks) start(first Mem) {
	MOVQ(first, low)
	MOVQ(first.Offset(8), high)
}

// advance has nothing to do: chunk leads there.
func (scalarMasks) advance() {}

func (s scalarMasks) chunk(to GPPhysical, use func(mask, i int)) (steps []func()) {
	for i := range chunk * s.blocks {
		at := Mem{Base: to, Disp: 16 * i}
		steps = append(steps,
			func() { MOVQ(low, at) },
			func() { MOVQ(high, at.Offset(8)) },
			func() { s.double() })
		if use != nil { // only in the kernel that has no other masks
			steps = append(steps, func() { MOVOU(at, xmm[shifted]); use(shifted, i) })
		}
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

// What start shifts each half of a block by.
var shiftsLeft, shiftsRight, polynomials Mem

func constants() {
	polynomials = GLOBL("polynomials", RODATA|NOPTR)
	DATA(0, U64(polynomial))
	DATA(8, U64(0))
	shiftsLeft = GLOBL("shiftsLeft", RODATA|NOPTR)
	for i := range 8 {
		DATA(8*i, U64(i/2))
	}
	shiftsRight = GLOBL("shiftsRight", RODATA|NOPTR)
	for i := range 8 {
		DATA(8*i, U64(64-i/2))
	}
}

// prepare loads the polynomial.
func (m vectorMasks) prepare() {
	m.broadcast(polynomials, poly)
}

func (vectorMasks) takeOver() {}

func (m vectorMasks) begin(Mem) {
	m.spread(other, shifted)
	m.multiply()
}

func (m vectorMasks) start(from Mem) {
	m.broadcast(from, shifted)
	m.multiply()
}

// multiply multiplies the blocks in shifted by 1, x, x^2, ... side by side.
func (m vectorMasks) multiply() {
	VPSRLVQ(shiftsRight, m.register(shifted), m.register(carried))
	VPSLLVQ(shiftsLeft, m.register(shifted), m.register(shifted))
	for _, step := range m.reduceBits(first) {
		step()
	}
}

func (m vectorMasks) advance() {
	for _, step := range m.timesBytes(first, m.blocks(), first) {
		step()
	}
}

// chunk computes the vectors that a shift by some bits leads to, and from each
// of them those that a shift by bytes leads to, which is faster.
func (m vectorMasks) chunk(to GPPhysical, use func(mask, i int)) (steps []func()) {
	put := func(vector, i int) {
		steps = append(steps, func() { m.store(vector, at(to, m, i)) })
		if use != nil {
			steps = append(steps, func() { use(vector, i) })
		}
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
