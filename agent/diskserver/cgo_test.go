//go:build cgo

package diskserver

// cgo tells builds that can't drop capabilities, such as those with the race detector.
const cgo = true
