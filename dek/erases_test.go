//go:build goexperiment.runtimesecret

package dek

const erases = true
