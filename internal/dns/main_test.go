package dns

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"bpfnet/internal/testkit"
)

// asks has the test binary resolve names, as a process that can be put into a
// cgroup: the path of a resolv.conf, and names.
const asks = "BPFNET_TEST_ASKS"

func TestMain(m *testing.M) {
	if words := strings.Fields(os.Getenv(asks)); len(words) > 0 {
		os.Exit(ask(words[0], words[1:]))
	}
	os.Exit(testkit.Run(m))
}

func ask(resolvConf string, names []string) (failed int) {
	r, err := NewResolver(resolvConf, "")
	for _, name := range names {
		if err == nil {
			_, err = r.Resolve(context.Background(), name)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}
