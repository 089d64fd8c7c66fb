// Package ceiling is what the kernels of blockcrypt are measured against: the
// same loops over memory with less to do. Only benchmarks use it.
package ceiling

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
	l, ok := inAssembly[engine]
	return l, ok
}
