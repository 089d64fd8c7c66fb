package main

import (
	"math/bits"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// chunk is how many vectors are encrypted at a time: as many as hide the latency
// of a round of AES.
const chunk = 8

// Vectors 0 to 7 are the data of a chunk. The others are:
const (
	roundKey = chunk + iota // and the one after it, in turns
	_
	first   // the first masks of a chunk
	poly    // the polynomial of masks
	other   // masks on their way to memory
	carried // parts of the computation of masks
	reduced
	shifted
	scratch = shifted
)

// Before there are data, these make tweaks.
const tweaks, increment = 1, 2

// General registers.
var (
	schedule  = RAX
	dst, src  = RDI, RSI
	todo      = RCX // chunks that are left
	left      = RDX // chunks of this sector that have no masks yet
	perSector = RBX // chunks of a sector
	starts    = R8  // first masks of the sectors that come next
	now       = R9  // masks of this chunk
	next      = R10 // and of the next
	third     = R14 // and of the one after it
	low       = R11
	high      = R12
	carry     = R13
)

// kernel is a function that encrypts or decrypts sectors.
type kernel struct {
	vectors
	name    string
	encrypt bool
}

// generate writes the function. Masks are computed ahead, between the rounds of
// AES, where they cost next to nothing.
func (k kernel) generate() {
	TEXT(k.name, 0, "func(schedule *[720]byte, dst, src *byte, length, sectorSize int, tweak uint64)")
	Pragma("noescape")
	k.layOut()
	Load(Param("schedule"), schedule)
	k.encryptTweaks()
	Load(Param("dst"), dst)
	Load(Param("src"), src)
	Load(Param("length"), todo)
	Load(Param("sectorSize"), perSector)
	TESTQ(U32(k.chunkSize()-1), perSector)
	JNE(LabelRef("odd"))
	k.chunks()
	Label("odd")
	k.singles()
	Label("done")
	k.wipe()
	RET()
}

// layOut takes aligned memory from the stack: masks for three chunks, and the first
// masks of all sectors, with room for those that are read ahead and not used.
func (k kernel) layOut() {
	const alignment = 64
	masks := chunk * 16 * k.blocks()
	frame := AllocLocal(alignment + 3*masks + 16*(maxSectors+3+k.blocks()))
	LEAQ(frame.Offset(alignment-1), now)
	ANDQ(I8(-alignment), now)
	LEAQ(Mem{Base: now, Disp: masks}, next)
	LEAQ(Mem{Base: next, Disp: masks}, third)
	LEAQ(Mem{Base: third, Disp: masks}, starts)
}

// encryptTweaks makes the first masks of the sectors. That of the first sector,
// on which everything waits, comes first, and stays in other. Then it goes from one
// vector to the next, and the CPU, seeing that they are independent, overlaps them.
func (k kernel) encryptTweaks() {
	const tweakUnit, state = 512, 0
	one := kernel{k.one(), k.name, k.encrypt}
	Load(Param("tweak"), low)
	one.number(low, other)
	one.encryptTweak(other)
	one.store(other, Mem{Base: starts})
	Load(Param("sectorSize"), perSector)
	Load(Param("length"), todo)
	SUBQ(perSector, todo)
	JEQ(LabelRef("tweaked"))
	MOVQ(perSector, high)
	SHRQ(Imm(log2(tweakUnit)), high)
	ADDQ(high, low)
	k.count(low, high, tweaks, increment)
	if k.blocks() > 1 {
		SHLQ(Imm(log2(k.blocks())), perSector)
	}
	LEAQ(Mem{Base: starts, Disp: 16}, left)
	Label("tweaks")
	k.copy(tweaks, state)
	k.encryptTweak(state)
	k.store(state, Mem{Base: left})
	k.increase(increment, tweaks)
	ADDQ(U32(16*k.blocks()), left)
	SUBQ(perSector, todo)
	JHI(LabelRef("tweaks"))
	Label("tweaked")
}

func (k kernel) encryptTweak(state int) {
	for r := range roundKeys {
		k.broadcast(k.key(tweakKey, r), roundKey+r%2)
		if r == 0 {
			k.add(roundKey, state)
			continue
		}
		k.round(round{true, r == roundKeys-1}, roundKey+r%2, state)
	}
}

// key is the address of a round key.
func (k kernel) key(offset, round int) Mem { return Mem{Base: schedule, Disp: offset + 16*round} }

func (k kernel) dataKey(round int) Mem {
	if k.encrypt {
		return k.key(encryptKey, round)
	}
	return k.key(decryptKey, round)
}

// chunks is for sectors of whole chunks. Masks are computed two chunks ahead: by
// then they have left the store buffer, from which the parts of a vector could not
// be loaded as one.
func (k kernel) chunks() {
	ahead, inLoop := k.masks()
	SHRQ(Imm(log2(k.chunkSize())), todo)
	SHRQ(Imm(log2(k.chunkSize())), perSector)
	MOVQ(perSector, left)
	ahead.prepare()
	ADDQ(Imm(16), starts)
	emit(ahead.first(now, k.takeData))
	k.addFirstKey()
	CMPQ(todo, Imm(2))
	JCS(LabelRef("tail"))
	k.advance(ahead, "first")
	emit(ahead.chunk(next))
	CMPQ(todo, Imm(2))
	JEQ(LabelRef("tail"))
	k.advance(ahead, "second")
	inLoop.takeOver()
	Label("chunk")
	k.prefetch()
	k.rounds(inLoop.chunk(third))
	k.storeChunk()
	k.advance(inLoop, "third")
	XCHGQ(now, next)
	XCHGQ(next, third)
	k.loadChunk()
	DECQ(todo)
	CMPQ(todo, Imm(2))
	JHI(LabelRef("chunk"))
	Label("tail")
	k.rounds(nil)
	k.storeChunk()
	DECQ(todo)
	JEQ(LabelRef("done"))
	XCHGQ(now, next)
	k.loadChunk()
	JMP(LabelRef("tail"))
}

// advance goes to the masks of the next chunk.
func (k kernel) advance(masks masks, label string) {
	DECQ(left)
	JEQ(LabelRef(label + "Sector"))
	masks.advance()
	JMP(LabelRef(label + "Done"))
	Label(label + "Sector")
	masks.start(Mem{Base: starts})
	ADDQ(Imm(16), starts)
	MOVQ(perSector, left)
	Label(label + "Done")
}

// loadChunk reads the data and does the first addition of masks and round keys.
func (k kernel) loadChunk() {
	for i := range chunk {
		k.load(at(src, k, i), i)
	}
	for i := range chunk {
		k.addMemory(at(now, k, i), i)
	}
	k.addFirstKey()
}

func (k kernel) addFirstKey() {
	k.broadcast(k.dataKey(0), roundKey)
	for i := range chunk {
		k.add(roundKey, i)
	}
}

// takeData does for a mask that was just computed what loadChunk does for one
// that is in memory.
func (k kernel) takeData(mask, i int) {
	k.load(at(src, k, i), i)
	k.add(mask, i)
}

// prefetch asks for the data of a later chunk: the CPU's own guesses are too late
// where data comes from memory.
func (k kernel) prefetch() {
	const ahead, line = 2048, 64
	for i := 0; i < k.chunkSize(); i += line {
		PREFETCHT0(Mem{Base: src, Disp: ahead + i})
	}
}

// chunkSize is in bytes.
func (k kernel) chunkSize() int { return chunk * 16 * k.blocks() }

// rounds are those of AES but the last. The steps are spread among them.
func (k kernel) rounds(steps []func()) {
	const n = roundKeys - 2
	for r := 1; r <= n; r++ {
		k.broadcast(k.dataKey(r), roundKey+r%2)
		for i := range chunk {
			k.round(round{k.encrypt, false}, roundKey+r%2, i)
		}
		emit(steps[len(steps)*(r-1)/n : len(steps)*r/n])
	}
}

// storeChunk does the last round with the masks added to its key, which saves an
// addition after it.
func (k kernel) storeChunk() {
	k.broadcast(k.dataKey(roundKeys-1), roundKey)
	for i := range chunk {
		k.load(at(now, k, i), shifted)
		k.add(roundKey, shifted)
		k.round(round{k.encrypt, true}, shifted, i)
		k.store(i, at(dst, k, i))
	}
	k.nextChunk()
}

func (k kernel) nextChunk() {
	ADDQ(U32(k.chunkSize()), src)
	ADDQ(U32(k.chunkSize()), dst)
}

// singles is for sectors of other sizes, which only test vectors have: a block at
// a time.
func (k kernel) singles() {
	one := kernel{k.one(), k.name, k.encrypt}
	masks := scalarMasks{1}
	SHRQ(Imm(log2(16)), todo)
	SHRQ(Imm(log2(16)), perSector)
	Label("sector")
	masks.start(Mem{Base: starts})
	ADDQ(Imm(16), starts)
	MOVQ(perSector, left)
	Label("block")
	one.single(masks)
	DECQ(todo)
	DECQ(left)
	JNE(LabelRef("block"))
	TESTQ(todo, todo)
	JNE(LabelRef("sector"))
}

func (k kernel) single(masks scalarMasks) {
	const state = 0
	k.load(Mem{Base: src}, state)
	emit(masks.chunk(now)[:3])
	k.addMemory(Mem{Base: now}, state)
	k.broadcast(k.dataKey(0), roundKey)
	k.add(roundKey, state)
	for r := 1; r < roundKeys; r++ {
		k.broadcast(k.dataKey(r), roundKey)
		k.round(round{k.encrypt, r == roundKeys-1}, roundKey, state)
	}
	k.addMemory(Mem{Base: now}, state)
	k.store(state, Mem{Base: dst})
	ADDQ(Imm(16), src)
	ADDQ(Imm(16), dst)
}

func emit(steps []func()) {
	for _, step := range steps {
		step()
	}
}

// at is the address of a vector in a row of them.
func at(base GPPhysical, v vectors, i int) Mem {
	return Mem{Base: base, Disp: 16 * v.blocks() * i}
}

func log2(n int) uint64 { return uint64(bits.TrailingZeros(uint(n))) }
