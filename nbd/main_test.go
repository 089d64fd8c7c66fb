package nbd

import (
	"log/slog"
	"os"
	"testing"
)

// TestMain silences the log: disks here fail on purpose.
func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler))
	os.Exit(m.Run())
}
