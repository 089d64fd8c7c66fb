//go:build !amd64

package diskserver

// refusedHere is empty: newer architectures have no older system calls.
var refusedHere []uint32
