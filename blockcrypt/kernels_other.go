//go:build !amd64 || purego

package blockcrypt

// inAssembly are the implementations for this architecture: none.
var inAssembly []implementation
