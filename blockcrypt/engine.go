package blockcrypt

// engine is one implementation of XTS for one key and sector size. Its methods
// but wipe are safe for concurrent use and allocate nothing.
type engine interface {
	// encrypt and decrypt work on a run of whole sectors. dst and src have the
	// same length and are the same memory or do not overlap. tweak belongs to
	// the first sector; it grows by sectorSize/512 with each.
	encrypt(dst, src []byte, tweak uint64)
	decrypt(dst, src []byte, tweak uint64)
	// wipe overwrites the key schedule; the engine is of no use after it.
	wipe()
}

// implementation is a way to make an engine.
type implementation struct {
	name string
	// available reports whether this CPU can run it.
	available func() bool
	// new takes KeySize bytes, which it does not keep, and a sector size that
	// is any multiple of 16: the test vectors have odd ones.
	new func(key []byte, sectorSize int) (engine, error)
}

// implementations are in order of preference. All pass the same tests.
var implementations = []implementation{
	{"crypto-aes", func() bool { return true }, newStandard},
}

// preferred gives the first implementation that this CPU can run.
func preferred() implementation {
	for _, i := range implementations {
		if i.available() {
			return i
		}
	}
	panic("blockcrypt: crypto-aes runs everywhere")
}
