//go:build goexperiment.runtimesecret

package diskserver

const erases = true
