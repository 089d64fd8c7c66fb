//go:build !cgo

package diskserver

const cgo = false
