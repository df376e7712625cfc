package test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
)

// TestBlocklistWriters lets ten writers add to one list at the same time, which
// outgrows its maps meanwhile. All succeed, and no entry is lost.
func TestBlocklistWriters(t *testing.T) {
	const writers, rounds, entries, step = 10, 8, 100, 20 // most entries come in several rounds
	n := newNode(t)
	n.must(t, "load", "blocklist")
	n.must(t, "attach", "tc", "blocklist", "--dev", "veth-b", "--direction", "both")
	var all sync.WaitGroup
	for k := range writers {
		all.Go(func() {
			for round := range rounds {
				line := []string{"blocklist", "add", "--reason", fmt.Sprintf("writer %d", k), "--lock-timeout", "60s", fmt.Sprintf("2001:db8:%x:%x::/64", k+1, round+1)}
				for i := range entries {
					line = append(line, fmt.Sprintf("198.18.%d.%d", k, round*step+i))
				}
				if out, err := n.bpfnet(line...).CombinedOutput(); err != nil {
					t.Errorf("writer %d, round %d: %v\n%s", k, round, err, out)
				}
			}
		})
	}
	all.Wait()
	var want []string
	for k := range writers {
		for i := range (rounds-1)*step + entries {
			want = append(want, fmt.Sprintf("198.18.%d.%d/32  # writer %d", k, i, k))
		}
		for round := range rounds {
			want = append(want, fmt.Sprintf("2001:db8:%x:%x::/64  # writer %d", k+1, round+1, k))
		}
	}
	got := strings.Split(strings.TrimSpace(n.must(t, "blocklist", "export")), "\n")
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%d entries, want %d", len(got), len(want))
	}
	counts := n.must(t, "blocklist", "lists", "-o", "ndjson")
	if says := fmt.Sprintf(`"entries":%d,`, len(want)); !strings.Contains(counts, says) {
		t.Errorf("%s\nwant %s", counts, says)
	}
	n.must(t, "blocklist", "clear")
	n.must(t, "unload", "blocklist", "--detach")
}
