package sockets

import (
	"os"
	"testing"

	"bpfnet/internal/testkit"
)

func TestMain(m *testing.M) {
	if part := os.Getenv(actorVariable); part != "" {
		os.Exit(act(part))
	}
	os.Exit(testkit.Run(m))
}
