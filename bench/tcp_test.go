package bench

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"bpfnet/internal/netns"
)

// tcpCase is what is attached where a TCP connection is received.
type tcpCase struct {
	name, attach, detach string
	loopback             bool // both ends are on one machine
	limit                goal // of the time that the same bytes take, for which it is measured more often
}

func tcpCases() []tcpCase {
	return []tcpCase{
		{name: "pod-traffic on tc", attach: "attach tc pod-traffic --dev b --direction both", detach: "detach tc pod-traffic"},
		{name: "pod-traffic on cgroup", attach: "attach cgroup pod-traffic --cgroup {cgroup} --direction both", detach: "detach cgroup pod-traffic"},
		{name: "port-filter on tc", attach: "attach tc port-filter --dev b --direction ingress", detach: "detach tc port-filter"},
		{name: "port-filter on xdp, native", attach: "attach xdp port-filter --dev b --mode native", detach: "detach xdp port-filter"},
		{name: "port-filter on xdp, generic", attach: "attach xdp port-filter --dev b --mode generic", detach: "detach xdp port-filter"},
		{name: "xdp-counter on xdp, native", attach: "attach xdp xdp-counter --dev b --mode native", detach: "detach xdp xdp-counter"},
		{name: "xdp-counter on xdp, generic", attach: "attach xdp xdp-counter --dev b --mode generic", detach: "detach xdp xdp-counter"},
		{name: "flows", attach: "attach trace flows", detach: "detach trace flows", limit: ratioAtMost(1.02)},
		{name: "flows, loopback", attach: "attach trace flows", detach: "detach trace flows", loopback: true, limit: ratioAtMost(1.02)},
	}
}

func (c tcpCase) throughput() string { return "TCP, " + c.name + ": throughput" }
func (c tcpCase) cpu() string        { return "TCP, " + c.name + ": CPU" }
func (c tcpCase) time() string       { return "TCP, " + c.name + ": time" }

func (c tcpCase) records() []string {
	if c.limit != (goal{}) {
		return []string{c.time(), c.cpu()}
	}
	return []string{c.throughput(), c.cpu()}
}

const (
	tcpRounds      = 7
	tcpLimitRounds = 31     // of cases with a limit
	tcpLength      = "-t 1" // of a connection, in iperf3's words
)

func (c tcpCase) rounds() int {
	if c.limit != (goal{}) {
		return tcpLimitRounds
	}
	return tcpRounds
}

// flows are the figures of several connections.
type flows struct{ throughput, cpu []float64 } // Gbit/s, ms/GB

// measureTCP measures the cases in turn, each right after the same connection
// with nothing attached.
func measureTCP(t *testing.T, wanted func(string) bool) []record {
	var chosen []tcpCase
	for _, c := range tcpCases() {
		if anyOf(c.records(), wanted) {
			chosen = append(chosen, c)
		}
	}
	if chosen == nil {
		return nil
	}
	b := emptyBed(t)
	b.run(t, b.bpfnet, "load flows")
	with, without := make([]flows, len(chosen)), make([]flows, len(chosen))
	for round := range tcpLimitRounds {
		for i, c := range chosen {
			if round < c.rounds() {
				c.addRound(t, b, tcpLength, round%2 == 1, &with[i], &without[i])
			}
		}
	}
	var records []record
	for i, c := range chosen {
		speed := newRecord(c.throughput(), "Gbit/s", with[i].throughput, without[i].throughput, goal{})
		if c.limit != (goal{}) {
			speed = newRecord(c.time(), "ms/GB", with[i].times(), without[i].times(), c.limit)
		}
		records = append(records, speed, newRecord(c.cpu(), "ms/GB", with[i].cpu, without[i].cpu, goal{}))
	}
	return records
}

// times are those of a GB each, in ms.
func (f flows) times() []float64 {
	times := make([]float64, len(f.throughput))
	for i, gigabits := range f.throughput {
		times[i] = 8000 / gigabits
	}
	return times
}

// addRound measures both, one after the other.
func (c tcpCase) addRound(tb testing.TB, b *bed, length string, withFirst bool, with, without *flows) {
	tb.Helper()
	from := b.peer
	if c.loopback {
		from = b.namespace
	}
	if !withFirst {
		without.add(b.connect(tb, from, length))
	}
	words := b.words(0)
	b.run(tb, b.bpfnet, words.Replace(c.attach))
	with.add(b.connect(tb, from, length))
	b.run(tb, b.bpfnet, words.Replace(c.detach))
	if withFirst {
		without.add(b.connect(tb, from, length))
	}
}

func (f *flows) add(throughput, cpu float64) {
	f.throughput, f.cpu = append(f.throughput, throughput), append(f.cpu, cpu)
}

// connect sends over a TCP connection from a namespace to device b, its ends on the
// first and the last CPU. The CPU time is that of both processes and of the
// kernel's threads that handle packets for them.
func (b *bed) connect(tb testing.TB, from, length string) (gigabits, cpu float64) {
	tb.Helper()
	before := softirqTime(tb)
	server := b.iperf("-s -1 --forceflush")
	listening, err := server.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	start(tb, b.namespace, server)
	tb.Cleanup(func() { _ = server.Process.Kill() })
	awaitServer(tb, listening)
	client := b.iperf(fmt.Sprintf("-c 10.77.0.2 -J -A 0,%d %s", runtime.NumCPU()-1, length))
	var report strings.Builder
	client.Stdout = &report
	start(tb, from, client)
	if err := client.Wait(); err != nil {
		tb.Fatalf("%v: %v\n%s", client.Args, err, &report)
	}
	_, _ = io.Copy(io.Discard, listening)
	if err := server.Wait(); err != nil {
		tb.Fatalf("%v: %v", server.Args, err)
	}
	var result struct {
		End struct {
			Received struct {
				Bytes float64 `json:"bytes"`
				Rate  float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	if err := json.Unmarshal([]byte(report.String()), &result); err != nil {
		tb.Fatalf("%v: %v\n%s", client.Args, err, &report)
	}
	used := cpuTime(server) + cpuTime(client) + softirqTime(tb) - before
	return result.End.Received.Rate / 1e9, used / (result.End.Received.Bytes / 1e9)
}

// iperf is an iperf3 in the bed's cgroup.
func (b *bed) iperf(args string) *exec.Cmd {
	return exec.Command("sh", "-c", `echo 0 >"$0/cgroup.procs" && exec iperf3 `+args, b.cgroup)
}

func start(tb testing.TB, namespace string, command *exec.Cmd) {
	tb.Helper()
	if err := netns.Do(namespace, command.Start); err != nil {
		tb.Fatal(err)
	}
}

// awaitServer reads what iperf3 prints until it listens.
func awaitServer(tb testing.TB, output io.Reader) {
	tb.Helper()
	lines := bufio.NewScanner(output)
	for lines.Scan() {
		if strings.Contains(lines.Text(), "listening") {
			return
		}
	}
	tb.Fatal("iperf3 ended before it listened")
}

// softirqTime is the CPU time in ms of the threads that handle packets when
// there are too many to do so in passing.
func softirqTime(tb testing.TB) float64 {
	tb.Helper()
	names, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		tb.Fatal(err)
	}
	var sum float64
	for _, name := range names {
		if comm, err := os.ReadFile(name); err != nil || !strings.HasPrefix(string(comm), "ksoftirqd/") {
			continue
		}
		var ns float64
		text, err := os.ReadFile(filepath.Join(filepath.Dir(name), "schedstat"))
		if err != nil {
			tb.Fatal(err)
		}
		if _, err := fmt.Sscan(string(text), &ns); err != nil {
			tb.Fatal(err)
		}
		sum += ns / 1e6
	}
	return sum
}

// BenchmarkTCP is the comparison with short connections.
func BenchmarkTCP(b *testing.B) {
	bed := emptyBed(b)
	bed.run(b, bed.bpfnet, "load flows")
	for _, c := range tcpCases() {
		b.Run(c.name, func(b *testing.B) {
			var with, without flows
			for b.Loop() {
				c.addRound(b, bed, "-n 100M", false, &with, &without)
			}
			b.ReportMetric(median(with.throughput), "Gbit/s")
			b.ReportMetric(median(with.throughput)/median(without.throughput), "throughput-ratio")
			b.ReportMetric(median(with.cpu)/median(without.cpu), "CPU-ratio")
			b.ReportMetric(0, "ns/op")
		})
	}
}
