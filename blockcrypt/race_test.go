//go:build race

package blockcrypt

const raceEnabled = true
