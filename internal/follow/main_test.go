package follow

import (
	"os"
	"testing"
	"time"

	"bpfnet/internal/testkit"
)

func TestMain(m *testing.M) {
	checkAgain = time.Second
	os.Exit(testkit.Run(m))
}
