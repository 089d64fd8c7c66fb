package main

import (
	"strings"
	"testing"
)

// What only the agent can start is not offered to people.
func TestDiskServerByHand(t *testing.T) {
	t.Parallel()
	h := emptyHome(t)
	h.fails(exitFailure, []string{"the agent starts this"}, "disk-server")
	h.fails(exitUsage, nil, "disk-server", "web01.vmx")
	if help := h.ok("--help"); strings.Contains(help, "disk-server") {
		t.Errorf("the help has it:\n%s", help)
	}
}
