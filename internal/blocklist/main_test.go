package blocklist

import (
	"os"
	"testing"

	"bpfnet/internal/testkit"
)

func TestMain(m *testing.M) {
	if ends := os.Getenv(sendVariable); ends != "" {
		os.Exit(send(ends))
	}
	os.Exit(testkit.Run(m))
}
