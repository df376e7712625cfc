package bench

import (
	"net"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"bpfnet/internal/netns"
)

// dropCase is datagrams to ports that nobody has.
type dropCase struct {
	name  string
	ports int // different ones
}

func dropCases() []dropCase {
	return []dropCase{{"drop, the same again", 1}, {"drop, new, one makes room", 60_000}}
}

func dropRecords() (names []string) {
	for _, c := range dropCases() {
		names = append(names, c.name)
	}
	return names
}

const (
	dropRounds     = 9
	dropsPerRound  = 20_000
	firstDropsPort = 2000
)

// measureDrops measures what program drops takes for a drop, as the kernel counts the
// time of programs.
func measureDrops(t *testing.T, wanted func(string) bool) (records []record) {
	if !anyOf(dropRecords(), wanted) {
		return nil
	}
	b := emptyBed(t)
	b.run(t, b.bpfnet, "load drops")
	b.run(t, b.bpfnet, "attach trace drops")
	program, err := ebpf.LoadPinnedProgram(filepath.Join(b.root, "drops/progs/drops_kfree_skb"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		t.Fatal(err)
	}
	defer stats.Close()
	for _, c := range dropCases() {
		var each []float64
		for round := range dropRounds + 1 {
			before := statsOf(t, program)
			b.drop(t, c.ports, round*dropsPerRound)
			after := statsOf(t, program)
			if runs := after.RunCount - before.RunCount; round > 0 && runs >= dropsPerRound {
				each = append(each, float64(after.Runtime-before.Runtime)/float64(runs))
			}
		}
		records = append(records, newRecord(c.name, "ns", each, nil, goal{}))
	}
	return records
}

func statsOf(t *testing.T, program *ebpf.Program) *ebpf.ProgramStats {
	t.Helper()
	s, err := program.Stats()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// drop sends datagrams to one port after the other.
func (b *bed) drop(t *testing.T, ports, from int) {
	t.Helper()
	err := netns.Do(b.peer, func() error {
		conn, err := net.ListenPacket("udp4", ":0")
		if err != nil {
			return err
		}
		defer conn.Close()
		for i := range dropsPerRound {
			to := &net.UDPAddr{IP: net.IPv4(10, 77, 0, 2), Port: firstDropsPort + (from+i)%ports}
			if _, err := conn.WriteTo(nil, to); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
