package bench

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bpfnet/internal/testkit"
)

// packetsPerRound makes a round some milliseconds long: the cost of the system
// call is lost in it, and few rounds are interrupted.
const packetsPerRound = 100_000

func TestMain(m *testing.M) { os.Exit(testkit.Run(m)) }

// subject is a loaded case.
type subject struct {
	benchCase
	run, base *ebpf.Program
}

func prepare(tb testing.TB, c benchCase, yardsticks *ebpf.Collection) subject {
	tb.Helper()
	spec, err := c.object()
	if err != nil {
		tb.Fatal(err)
	}
	if c.adjust != nil {
		if err := c.adjust(spec); err != nil {
			tb.Fatal(err)
		}
	}
	var maps map[string]*ebpf.Map
	if c.maps != nil {
		maps = c.maps(tb)
	}
	collection := load(tb, spec, maps)
	if c.prepare != nil {
		if err := c.prepare(collection); err != nil {
			tb.Fatal(err)
		}
	}
	base := collection.Programs[c.empty]
	if base == nil {
		base = yardsticks.Programs[c.empty]
	}
	s := subject{c, collection.Programs[c.program], base}
	s.register(tb)
	return s
}

func load(tb testing.TB, spec *ebpf.CollectionSpec, maps map[string]*ebpf.Map) *ebpf.Collection {
	tb.Helper()
	collection, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: maps})
	if errors.Is(err, unix.EPERM) {
		tb.Skipf("loading BPF programs needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON: %v", err)
	}
	if err != nil {
		tb.Fatalf("%+v", err)
	}
	tb.Cleanup(collection.Close)
	return collection
}

func loadEmpty(tb testing.TB) *ebpf.Collection {
	tb.Helper()
	spec, err := loadYardsticks()
	if err != nil {
		tb.Fatal(err)
	}
	return load(tb, spec, nil)
}

// settle keeps the test on one CPU, the last one, which is the least busy with
// interrupts, and in a network namespace of its own. Both end with the test's
// thread, which isn't unlocked and so isn't used again.
func settle(tb testing.TB) {
	tb.Helper()
	runtime.LockOSThread()
	pinLast(tb)
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		tb.Skipf("a network namespace needs CAP_SYS_ADMIN: %v", err)
	}
}

// pinLast keeps the thread on the last CPU.
func pinLast(tb testing.TB) {
	tb.Helper()
	var one unix.CPUSet
	one.Set(runtime.NumCPU() - 1)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		tb.Fatal(err)
	}
}

// register attaches the XDP programs of a subject to the ends of a veth pair,
// for as long as the test runs. Without that each BPF_PROG_TEST_RUN enters its
// program into the kernel's XDP dispatcher and takes it out again, and waits for
// RCU both times: milliseconds that would be counted as packets.
func (s subject) register(tb testing.TB) {
	tb.Helper()
	if s.run.Type() != ebpf.XDP {
		return
	}
	veth := netlink.NewVeth(netlink.NewLinkAttrs())
	veth.Name = fmt.Sprintf("run%d", s.run.FD()) // descriptors are unique
	veth.PeerName = fmt.Sprintf("base%d", s.run.FD())
	if err := netlink.LinkAdd(veth); err != nil {
		tb.Fatalf("create veth: %v", err)
	}
	peer, err := netlink.VethPeerIndex(veth)
	if err != nil {
		tb.Fatal(err)
	}
	attach(tb, s.run, veth.Index)
	attach(tb, s.base, peer)
}

func attach(tb testing.TB, program *ebpf.Program, ifindex int) {
	tb.Helper()
	xdp, err := link.AttachXDP(link.XDPOptions{Program: program, Interface: ifindex, Flags: link.XDPDriverMode})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = xdp.Close() })
}

// perPacket runs a program on a packet many times over and returns the time of
// one run in ns. The kernel's own answer is in whole ns, and has the time in it
// that others were given the CPU: what counts is the CPU time of this thread.
func perPacket(tb testing.TB, program *ebpf.Program, packet []byte) float64 {
	start := threadTime(tb)
	if _, err := program.Run(&ebpf.RunOptions{Data: packet, Repeat: packetsPerRound}); err != nil {
		tb.Fatal(err)
	}
	return float64(threadTime(tb)-start) / packetsPerRound
}

// threadTime is the CPU time of the thread in ns.
func threadTime(tb testing.TB) int64 {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &now); err != nil {
		tb.Fatal(err)
	}
	return now.Nano()
}

// netCost is one round: the program right after its empty one.
func (s subject) netCost(tb testing.TB) float64 {
	base := perPacket(tb, s.base, s.packet)
	return perPacket(tb, s.run, s.packet) - base
}

// How often the cases are measured: each load places programs and maps elsewhere
// in memory, which can matter more than what disturbs the rounds.
const (
	loads         = 5
	roundsPerLoad = 9
)

// measurePackets measures the cases in turn, round by round, so that what
// disturbs the machine disturbs all alike.
func measurePackets(t *testing.T, wanted func(name string) bool) []record {
	var chosen []benchCase
	for _, c := range cases() {
		if wanted(c.record()) {
			chosen = append(chosen, c)
		}
	}
	samples := make([][]float64, len(chosen))
	for range loads {
		t.Run("packets", func(t *testing.T) { addRounds(t, chosen, samples) })
	}
	var records []record
	for i, c := range chosen {
		var limit goal
		if c.goal != 0 {
			limit = goal{"value", c.goal}
		}
		records = append(records, newRecord(c.record(), "ns", samples[i], nil, limit))
	}
	return records
}

func addRounds(t *testing.T, chosen []benchCase, samples [][]float64) {
	settle(t)
	yardsticks := loadEmpty(t)
	var subjects []subject
	for _, c := range chosen {
		subjects = append(subjects, prepare(t, c, yardsticks))
	}
	for range roundsPerLoad {
		for i, s := range subjects {
			samples[i] = append(samples[i], s.netCost(t))
		}
	}
}

func BenchmarkPrograms(b *testing.B) {
	yardsticks := loadEmpty(b)
	for _, c := range cases() {
		b.Run(c.name, func(b *testing.B) {
			settle(b)
			s := prepare(b, c, yardsticks)
			s.netCost(b)
			var rounds []float64
			for b.Loop() {
				rounds = append(rounds, s.netCost(b))
			}
			b.ReportMetric(median(rounds), "net-ns/packet")
			b.ReportMetric(0, "ns/op")
		})
	}
}
