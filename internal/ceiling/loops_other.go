//go:build !amd64 || purego

package ceiling

// inAssembly are the loops by engine: none here.
var inAssembly map[string]Loops
