//go:build goexperiment.runtimesecret

package main

const erases = true
