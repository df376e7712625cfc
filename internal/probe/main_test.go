package probe_test

import (
	"os"
	"testing"

	"bpfnet/internal/probe"
	"bpfnet/internal/testkit"
)

func TestMain(m *testing.M) {
	probe.DoTask()
	os.Exit(testkit.Run(m))
}
