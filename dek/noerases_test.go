//go:build !goexperiment.runtimesecret

package dek

const erases = false
