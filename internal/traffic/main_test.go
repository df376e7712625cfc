package traffic

import (
	"os"
	"testing"

	"github.com/cilium/ebpf/rlimit"
)

func TestMain(m *testing.M) {
	// Kernels before 5.11 charge maps to the memlock limit; others need nothing,
	// and a refusal shows when a map is made.
	_ = rlimit.RemoveMemlock()
	os.Exit(m.Run())
}
