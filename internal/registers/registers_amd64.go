// Package registers shows tests what is in the vector registers.
package registers

// Save stores the registers YMM0 to YMM15. The CPU must have AVX.
//
//go:noescape
func Save(to *[16][32]byte)

// Load fills the registers YMM0 to YMM15.
//
//go:noescape
func Load(from *[16][32]byte)
