package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
)

// generateBare writes a loop of AES alone, chunk by chunk in place: what a kernel
// would be if XTS needed no masks.
func (k kernel) generateBare() {
	TEXT(k.name, NOSPLIT, "func(roundKeys *[240]byte, p *byte, chunks int)")
	Pragma("noescape")
	Load(Param("roundKeys"), schedule)
	Load(Param("p"), src)
	MOVQ(src, dst)
	Load(Param("chunks"), todo)
	Label("chunk")
	k.prefetch()
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
	k.nextChunk()
	DECQ(todo)
	JNE(LabelRef("chunk"))
	k.wipe()
	RET()
}

// generateXOR writes a loop that reads memory, changes it and writes it back:
// what a kernel would be if AES took no time.
func (k kernel) generateXOR() {
	TEXT(k.name, NOSPLIT, "func(with *[16]byte, p *byte, chunks int)")
	Pragma("noescape")
	Load(Param("with"), schedule)
	Load(Param("p"), src)
	MOVQ(src, dst)
	Load(Param("chunks"), todo)
	k.broadcast(k.dataKey(0), roundKey)
	Label("chunk")
	k.prefetch()
	for i := range chunk {
		k.load(at(src, k, i), i)
		k.add(roundKey, i)
		k.store(i, at(dst, k, i))
	}
	k.nextChunk()
	DECQ(todo)
	JNE(LabelRef("chunk"))
	k.wipe()
	RET()
}
