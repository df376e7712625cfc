package flow

import (
	"os"
	"testing"

	"bpfnet/internal/testkit"
)

func TestMain(m *testing.M) { os.Exit(testkit.Run(m)) }
