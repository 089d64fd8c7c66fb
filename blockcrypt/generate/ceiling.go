package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
)

// generateBare writes a loop of AES alone, chunk by chunk in place: what a kernel
// would be if XTS needed no masks.
func (k kernel) generateBare() {
	k.generateLoop("roundKeys", "*[240]byte", func() {}, func() {
		k.broadcast(k.dataKey(0), roundKey)
		for i := range chunk {
			k.load(at(src, k, i), i)
			k.add(roundKey, i)
		}
		k.rounds(nil)
		k.broadcast(k.dataKey(roundKeys-1), roundKey)
		for i := range chunk {
			k.round(round{k.encrypt, true}, roundKey, i)
			k.store(i, at(dst, k, i))
		}
	})
}

// generateXOR writes a loop that reads memory, changes it and writes it back:
// what a kernel would be if AES took no time.
func (k kernel) generateXOR() {
	loadKey := func() { k.broadcast(k.dataKey(0), roundKey) }
	k.generateLoop("with", "*[16]byte", loadKey, func() {
		for i := range chunk {
			k.load(at(src, k, i), i)
			k.add(roundKey, i)
			k.store(i, at(dst, k, i))
		}
	})
}

// generateLoop writes a function that does something with each chunk of some
// memory, in place. Its first parameter is what stands in for a schedule.
func (k kernel) generateLoop(param, typ string, begin, eachChunk func()) {
	TEXT(k.name, NOSPLIT, "func("+param+" "+typ+", p *byte, chunks int)")
	Pragma("noescape")
	Load(Param(param), schedule)
	Load(Param("p"), src)
	MOVQ(src, dst)
	Load(Param("chunks"), todo)
	begin()
	Label("chunk")
	k.prefetch()
	eachChunk()
	k.nextChunk()
	DECQ(todo)
	JNE(LabelRef("chunk"))
	k.wipe()
	RET()
}
