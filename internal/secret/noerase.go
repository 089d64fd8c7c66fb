//go:build !goexperiment.runtimesecret

package secret

// Do runs f, which handles keys. Built with GOEXPERIMENT=runtimesecret it also
// erases the memory that f leaves behind.
func Do(f func()) { f() }
