//go:build goexperiment.runtimesecret

package secret

import runtimesecret "runtime/secret"

// Do runs f, which handles keys, and erases what f and all it calls leave behind:
// registers and stack at once, heap as soon as the garbage collector finds it
// unreachable. Libraries copy keys to places that only this can reach. It needs a
// build with GOEXPERIMENT=runtimesecret (Go 1.26 on linux/amd64 and linux/arm64);
// in other builds it only runs f.
func Do(f func()) { runtimesecret.Do(f) }
