package kek

import (
	"testing"

	"github.com/vmcrypt/vmcrypt/internal/secret/secrettest"
)

// testMemory looks for a key in all of this process's memory besides its own
// place. The key manager must be another process.
func testMemory(t *testing.T, c *Cluster) {
	key, err := c.Create(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer key.Destroy()
	if traces := secrettest.Remaining(t, key.Material); len(traces) > 0 {
		t.Errorf("copies of a key in use: %v", traces)
	}
}
