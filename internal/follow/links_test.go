package follow

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"bpfnet/internal/testkit"
)

// Where messages were lost there is an end to hear of, and no socket stays open.
func TestSubscribeLost(t *testing.T) {
	n := &node{T: t, host: testkit.NetNS(t)}
	n.connect(testkit.NetNS(t), "veth0", "10.210.0.2/24", "10.210.0.1/24")
	before := descriptors(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	news, err := subscribe(ctx, n.host)
	if err != nil {
		t.Fatal(err)
	}
	const changes = 4000
	n.in(n.host, func() error {
		l, err := netlink.LinkByName("veth0")
		for i := 0; i < changes && err == nil; i++ {
			err = netlink.LinkSetMTU(l, 1400+i%2)
		}
		return err
	})
	heard := 0
	for range news {
		heard++
	}
	if heard >= changes {
		t.Errorf("it heard %d of %d changes", heard, changes)
	}
	for end := time.Now().Add(within); descriptors(t) > before; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d descriptors are open, before %d", descriptors(t), before)
		}
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
