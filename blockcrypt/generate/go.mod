// The generator of the assembly in blockcrypt, in a module of its own so that
// vmcrypt's users do not get its dependencies. "make generate" runs it.
module github.com/vmcrypt/vmcrypt/blockcrypt/generate

go 1.26.4

require github.com/mmcloughlin/avo v0.6.0

require (
	golang.org/x/mod v0.35.0 // indirect
	golang.org/x/sync v0.20.0 // indirect
	golang.org/x/tools v0.44.0 // indirect
)
