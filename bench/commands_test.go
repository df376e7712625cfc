package bench

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"bpfnet/internal/netns"
	"bpfnet/internal/testkit"
)

// commandCase is a command of bpfnet, beside one of bpftool that does the same
// where there is one. Words in braces stand for what bed.words lists.
type commandCase struct {
	name, ours, theirs string
	before, after      []string // of bpfnet, around each round and not measured
	containers         int      // there are so many, from this case on

	wall, cpu, memory goal // CPU time is measured where it has a goal
}

func atMost(limit float64) goal      { return goal{"value", limit} }
func ratioAtMost(limit float64) goal { return goal{"ratio", limit} }

func commandCases() []commandCase {
	load, attach := "load xdp-counter --name new", "attach xdp new --dev b"
	cases := []commandCase{
		{name: "version", ours: "version", theirs: "version", wall: ratioAtMost(5)},
		{name: "completion", ours: "completion bash"},
		{name: "programs", ours: "programs"},
		{name: "doctor", ours: "doctor"},

		{name: "load", ours: load, after: []string{"unload new"}},
		{name: "load --replace, attached", ours: "load pod-traffic --replace --max-entries pods={port}"},
		{name: "attach tc", ours: "attach tc new --dev b --direction both", before: []string{"load pod-traffic --name new"}, after: []string{"unload new --detach"}},
		{name: "attach xdp", ours: attach, before: []string{load}, after: []string{"unload new --detach"}},
		{name: "detach", ours: "detach xdp new", before: []string{load, attach}, after: []string{"unload new"}},
		{name: "unload", ours: "unload new", before: []string{load}},
		{name: "run --once", ours: "run xdp-counter --dev b --once", before: []string{"unload xdp-counter"}, after: []string{"load xdp-counter"}},

		{name: "status", ours: "status"},
		{name: "watch pods --once", ours: "watch pods --once"},
		{name: "watch counters --once", ours: "watch counters --once"},
		{name: "ports allow", ours: "ports allow {port}/tcp", after: []string{"ports remove {port}/tcp"}},
		{name: "ports list", ours: "ports list"},

		{name: "prog show", ours: "-j prog show", theirs: "-j prog show"},
		{name: "link show", ours: "-j link show", theirs: "-j link show"},
		{name: "net show", ours: "-j net show", theirs: "-j net show"},
		{name: "cgroup show", ours: "-j cgroup show {cgroup}", theirs: "-j cgroup show {cgroup}"},

		{name: "map show", ours: "-j map show", theirs: "-j map show"},
		{name: "map get", ours: "map get {small} {key}", theirs: "map lookup pinned {small} key hex {bytes}", wall: atMost(5)},
		{name: "map set", ours: `map set {small} {key} {"packets":{round},"bytes":7}`, theirs: "map update pinned {small} key hex {bytes} value hex {count} 07 00 00 00 00 00 00 00", wall: atMost(5)},
		{name: "map delete", ours: "map delete {small} {key}", theirs: "map delete pinned {small} key hex {bytes}", wall: atMost(5)},
		{name: "map import, 10,000 updates", ours: "map import {small} {import}", theirs: "batch file {batch}", wall: ratioAtMost(1. / 3)},
	}
	other, empty := []string{"blocklist import {other}"}, []string{"blocklist clear"}
	cases = append(cases, []commandCase{
		{name: "blocklist import, 1,000,000 IPv4 entries, new", ours: "blocklist import {feed}", after: empty, wall: atMost(2000), memory: atMost(200)},
		{name: "blocklist import --replace, 1,000,000 IPv4 entries by others", ours: "blocklist import {feed} --replace", before: other, after: empty, wall: atMost(2000), memory: atMost(200)},
		{name: "blocklist test, of 1,000,000 IPv4 entries", ours: "blocklist test 198.51.100.7", before: other, after: empty},
	}...)
	for _, m := range []struct {
		name, path string
		ratio      float64
	}{
		{"hash of 1,000,000", "{million}", 1. / 4},
		{"LPM trie of 200,000 IPv4 prefixes", "{prefixes4}", 1. / 3},
		{"LPM trie of 200,000 prefixes of both families", "{prefixes}", 1. / 3},
	} {
		for _, format := range []struct{ name, flags string }{{"ndjson", "-o ndjson"}, {"json", "-o json"}, {"bpftool's JSON", "-j"}} {
			cases = append(cases, commandCase{
				name:   "map dump, " + m.name + ", " + format.name,
				ours:   format.flags + " map dump " + m.path,
				theirs: "-j map dump pinned " + m.path,
				cpu:    ratioAtMost(m.ratio),
				memory: atMost(30),
			})
		}
	}
	return append(cases, commandCase{name: "endpoint list, of 200 containers", ours: "endpoint list", containers: 200, wall: atMost(150)})
}

// measurement is one figure of a case.
type measurement struct {
	name, unit string
	goal       goal
	of         func(usage) float64
}

// latencies are what a case measures beside bpftool.
func (c commandCase) latencies() []measurement {
	list := []measurement{{"command, " + c.name + ": wall", "ms", c.wall, func(u usage) float64 { return u.wall }}}
	if c.cpu.of != "" {
		list = append(list, measurement{"command, " + c.name + ": CPU", "ms", c.cpu, func(u usage) float64 { return u.cpu }})
	}
	return list
}

func (c commandCase) peak() string { return "command, " + c.name + ": peak RSS" }

// records are the names of what is measured of a case.
func (c commandCase) records() []string {
	var names []string
	for _, m := range c.latencies() {
		names = append(names, m.name)
	}
	return append(names, c.peak())
}

// How often a case is measured: for about this time, and within these bounds.
const (
	caseTime     = 5 * time.Second
	leastRounds  = 5
	mostRounds   = 51
	memoryRounds = 3
)

func measureCommands(t *testing.T, wanted func(string) bool) []record {
	var records []record
	var b *bed
	for _, c := range commandCases() {
		if !anyOf(c.records(), wanted) {
			continue
		}
		if b == nil {
			b = makeBed(t, 1)
		}
		b.crowd(t, c.containers)
		records = append(records, c.measure(t, b)...)
	}
	return records
}

func (c commandCase) measure(tb testing.TB, b *bed) []record {
	var ours, theirs []usage
	round := 0
	for start := time.Now(); round < leastRounds || round < mostRounds && time.Since(start) < caseTime; round++ {
		mine, other := c.compare(tb, b, round)
		ours, theirs = append(ours, mine), append(theirs, other)
	}
	var records []record
	for _, m := range c.latencies() {
		var baselines []float64
		if c.theirs != "" {
			baselines = each(theirs, m.of)
		}
		records = append(records, newRecord(m.name, m.unit, each(ours, m.of), baselines, m.goal))
	}
	var peaks []float64
	for range memoryRounds {
		peaks = append(peaks, c.peakMemory(tb, b, round))
		round++
	}
	return append(records, newRecord(c.peak(), "MB", peaks, nil, c.memory))
}

func each(usages []usage, of func(usage) float64) []float64 {
	var values []float64
	for _, u := range usages {
		values = append(values, of(u))
	}
	return values
}

// compare is one round: bpfnet, then bpftool.
func (c commandCase) compare(tb testing.TB, b *bed, round int) (ours, theirs usage) {
	tb.Helper()
	words := b.words(round)
	c.around(tb, b, words, func() { ours = b.run(tb, b.bpfnet, words.Replace(c.ours)) })
	if c.theirs != "" {
		theirs = b.run(tb, b.bpftool, words.Replace(c.theirs))
	}
	return ours, theirs
}

// peakMemory is the most memory in MB that the command had.
func (c commandCase) peakMemory(tb testing.TB, b *bed, round int) float64 {
	tb.Helper()
	words := b.words(round)
	report := filepath.Join(tb.TempDir(), "time")
	c.around(tb, b, words, func() {
		b.run(tb, "/usr/bin/time", "-f %M -o "+report+" "+b.bpfnet+" "+words.Replace(c.ours))
	})
	text, err := os.ReadFile(report)
	if err != nil {
		tb.Fatal(err)
	}
	kilobytes, err := strconv.ParseFloat(strings.TrimSpace(string(text)), 64)
	if err != nil {
		tb.Fatal(err)
	}
	return kilobytes * 1024 / 1e6
}

// around runs a step between what the case has before and after it.
func (c commandCase) around(tb testing.TB, b *bed, words *strings.Replacer, step func()) {
	tb.Helper()
	for _, line := range c.before {
		b.run(tb, b.bpfnet, words.Replace(line))
	}
	step()
	for _, line := range c.after {
		b.run(tb, b.bpfnet, words.Replace(line))
	}
}

// bed is where commands run: a network namespace with a veth pair, a root in
// bpffs with the built-in programs loaded, and maps.
type bed struct {
	bpfnet, bpftool string
	namespace       string // of device b
	peer            string // namespace of device a, the other end
	root, cgroup    string
	maps            pinnedMaps
	containers      int
}

// loaded is what every bed begins with.
var loaded = []string{
	"load xdp-counter", "load pod-traffic",
	"ports allow 5201/tcp", "ports default drop --established", // 5201 is iperf3's
}

// makeBed makes a bed whose large maps have 1/shrink of the size that their
// names say.
func makeBed(tb testing.TB, shrink int) *bed {
	tb.Helper()
	b := emptyBed(tb)
	b.maps = makeMaps(tb, shrink)
	b.run(tb, b.bpfnet, "attach tc pod-traffic --dev b --direction both")
	b.run(tb, b.bpfnet, "attach cgroup pod-traffic --cgroup "+b.cgroup+" --direction both")
	return b
}

// emptyBed makes a bed without maps, nothing attached.
func emptyBed(tb testing.TB) *bed {
	tb.Helper()
	b := &bed{root: testkit.Root(tb), cgroup: testkit.Cgroup(tb)}
	b.bpfnet, b.bpftool = programs(tb)
	b.peer, b.namespace = testkit.Pair(tb)
	for _, line := range loaded {
		b.run(tb, b.bpfnet, line)
	}
	return b
}

// crowd makes containers, if there are none.
func (b *bed) crowd(tb testing.TB, count int) {
	tb.Helper()
	testkit.Crowd(tb, b.namespace, b.cgroup, max(0, count-b.containers))
	b.containers = max(b.containers, count)
}

// words replaces what stands for maps, keys and files in command lines. Every
// round has other keys and values, and so have the two programs, so that there
// is always something to change.
func (b *bed) words(round int) *strings.Replacer {
	theirs := make([]byte, 16)
	flowKey(2*round+1, theirs)
	m := b.maps
	return strings.NewReplacer("{million}", m.million, "{small}", m.small, "{prefixes4}", m.prefixes4, "{prefixes}", m.prefixes,
		"{import}", m.imports[round%2], "{batch}", m.batches[round%2], "{key}", flowText(2*round), "{bytes}", fmt.Sprintf("% x", theirs),
		"{round}", fmt.Sprint(round), "{count}", fmt.Sprintf("% x", binary.LittleEndian.AppendUint64(nil, uint64(round))),
		"{feed}", m.feeds[round%2], "{other}", m.feeds[(round+1)%2],
		"{port}", fmt.Sprint(10_000+round%1000), "{cgroup}", b.cgroup)
}

// usage is what one process took, in ms.
type usage struct{ wall, cpu float64 }

// run runs a program to its end, in the bed's namespace and on its root.
func (b *bed) run(tb testing.TB, program, line string) usage {
	tb.Helper()
	command := exec.Command(program, strings.Fields(line)...)
	command.Env = append(os.Environ(), "BPFNET_BPFFS="+b.root, "BPFNET_OUTPUT=")
	var stderr bytes.Buffer
	command.Stderr = &stderr
	var start time.Time
	err := netns.Do(b.namespace, func() error {
		start = time.Now()
		return command.Start()
	})
	if err != nil {
		tb.Fatal(err)
	}
	err = command.Wait()
	wall := time.Since(start)
	if err != nil {
		tb.Fatalf("%s %s: %v\n%s", program, line, err, stderr.Bytes())
	}
	return usage{ms(wall), cpuTime(command)}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// cpuTime is what an ended process used, in ms.
func cpuTime(ended *exec.Cmd) float64 {
	return ms(ended.ProcessState.UserTime() + ended.ProcessState.SystemTime())
}

// programs returns the paths of bpfnet, which it builds like "make build", and
// of bpftool.
func programs(tb testing.TB) (bpfnet, bpftool string) {
	tb.Helper()
	testkit.NeedsKernel(tb)
	bpftool, err := exec.LookPath("bpftool")
	if err != nil {
		tb.Fatal(err)
	}
	bpfnet = filepath.Join(tb.TempDir(), "bpfnet")
	build := exec.Command("go", "build", "-trimpath", "-tags=urfave_cli_no_docs,grpcnotrace", "-o", bpfnet, "bpfnet")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		tb.Fatalf("build bpfnet: %v\n%s", err, out)
	}
	return bpfnet, bpftool
}

// BenchmarkCommandsOnSmallMaps is the comparison with maps of 1/20 of the size that
// the names say, small enough for every run of the tests.
func BenchmarkCommandsOnSmallMaps(b *testing.B) {
	bed := makeBed(b, 20)
	for _, c := range commandCases() {
		b.Run(c.name, func(b *testing.B) {
			bed.crowd(b, c.containers)
			var ours, theirs []usage
			for round := 0; b.Loop(); round++ {
				mine, other := c.compare(b, bed, round)
				ours, theirs = append(ours, mine), append(theirs, other)
			}
			wall, cpu := func(u usage) float64 { return u.wall }, func(u usage) float64 { return u.cpu }
			b.ReportMetric(median(each(ours, wall)), "wall-ms")
			if c.theirs != "" {
				b.ReportMetric(median(each(ours, cpu))/median(each(theirs, cpu)), "CPU-ratio")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}
