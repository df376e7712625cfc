package bench

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

var (
	measuring = flag.Bool("measure", false, "measure, and compare with results.ndjson")
	update    = flag.Bool("update", false, "keep what is measured in results.ndjson and RESULTS.md")
	only      = flag.String("cases", "", "measure only what has a name that this regular expression matches")
)

const (
	recordsFile = "results.ndjson"
	resultsFile = "RESULTS.md"
)

// TestResults checks that the kept results are about the cases there are, and
// that the page shows them. With -measure it compares them with what it measures,
// with -update it keeps that.
func TestResults(t *testing.T) {
	kept, err := readRecords(recordsFile)
	if err != nil {
		t.Fatal(err)
	}
	if *measuring {
		busy := busyText()
		measured := measureAll(t)
		fmt.Printf("\n%s\n%s%s\n", table(measured, kept), verdict(measured, kept), busy)
		if !*update {
			return
		}
		kept = merge(recordNames(), kept, measured)
		keep(t, kept)
	}
	var missing []string
	for _, name := range recordNames() {
		if _, ok := find(kept, name); !ok {
			missing = append(missing, name)
		}
	}
	if missing != nil {
		t.Errorf("%s has no line for these: make bench UPDATE=1 measures them\n%s", recordsFile, strings.Join(missing, "\n"))
	}
	page, err := os.ReadFile(resultsFile)
	if err != nil {
		t.Fatal(err)
	}
	if string(page) != resultsPage(kept) {
		t.Errorf("%s doesn't show %s: make bench UPDATE=1", resultsFile, recordsFile)
	}
}

// recordNames are the names of all measurements, in the order of the table.
func recordNames() []string {
	var names []string
	for _, c := range cases() {
		names = append(names, c.record())
	}
	for _, c := range tcpCases() {
		names = append(names, c.records()...)
	}
	for _, c := range commandCases() {
		names = append(names, c.records()...)
	}
	return slices.Concat(names, scrapeRecords(), watchRecords(), dropRecords(),
		callRecords(), connectionRecords(), shortRecords(), flowWatchRecords(), []string{binarySize})
}

func keep(t *testing.T, records []record) {
	t.Helper()
	if err := writeRecords(recordsFile, records); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(resultsFile, []byte(resultsPage(records)), 0o644); err != nil {
		t.Fatal(err)
	}
}

func measureAll(t *testing.T) []record {
	if os.Geteuid() != 0 {
		t.Fatal("measuring needs root: it loads BPF programs")
	}
	pattern, err := regexp.Compile(*only)
	if err != nil {
		t.Fatal(err)
	}
	var all []record
	for _, part := range []struct {
		name    string
		measure func(*testing.T, func(string) bool) []record
	}{{"packets", measurePackets}, {"TCP", measureTCP}, {"commands", measureCommands}, {"scrapes", measureScrapes}, {"watches", measureWatch}, {"drops", measureDrops}, {"calls", measureCalls},
		{"connections", measureConnections}, {"short connections", measureShort}, {"watches of flows", measureFlowWatch}, {"binary", measureBinary}} {
		fmt.Fprintln(os.Stderr, "bench: measuring", part.name)
		t.Run(part.name, func(t *testing.T) { all = append(all, part.measure(t, pattern.MatchString)...) })
	}
	if t.Failed() {
		t.FailNow()
	}
	where := machine(t)
	for i := range all {
		all[i].Machine = where
	}
	return all
}

func anyOf(names []string, wanted func(string) bool) bool { return slices.ContainsFunc(names, wanted) }

const binarySize = "binary size"

func measureBinary(t *testing.T, wanted func(string) bool) []record {
	if !wanted(binarySize) {
		return nil
	}
	bpfnet, _ := programs(t)
	info, err := os.Stat(bpfnet)
	if err != nil {
		t.Fatal(err)
	}
	return []record{newRecord(binarySize, "MB", []float64{float64(info.Size()) / 1e6}, nil, goal{})}
}

// verdict says in words what the table shows.
func verdict(measured, kept []record) string {
	var moved, missed int
	for _, r := range measured {
		if old, ok := find(kept, r.Name); ok {
			if _, beyond := r.moved(old); beyond {
				moved++
			}
		}
		if r.missed() {
			missed++
		}
	}
	text := fmt.Sprintf("%d measurements, %d moved beyond the noise, %d over their goal", len(measured), moved, missed)
	if len(measured) > 0 && len(kept) > 0 && measured[0].Machine != kept[0].Machine {
		text += "; kept results are from another machine: " + kept[0].Machine
	}
	return text
}

// busyText says when others use so much of the machine that wall times mean little.
func busyText() string {
	var load float64
	text, _ := os.ReadFile("/proc/loadavg")
	if _, err := fmt.Sscan(string(text), &load); err != nil || load < float64(runtime.NumCPU())/2 {
		return ""
	}
	return fmt.Sprintf("; the machine was busy before, load %.1f: trust ns, CPU, RSS and ratios, not ms and Gbit/s", load)
}

// resultsPage is the whole of RESULTS.md.
func resultsPage(records []record) string {
	var machines []string
	for _, r := range records {
		if !slices.Contains(machines, r.Machine) {
			machines = append(machines, r.Machine)
		}
	}
	return fmt.Sprintf(resultsText, strings.Join(machines, "; and "), loads, roundsPerLoad, packetsPerRound,
		tcpLimitRounds, tcpRounds, callBursts, burst, table(records, nil))
}

const resultsText = `# What packets and commands cost

Machine: %s.

Compare lines of one run with each other, not with other machines. Value and
baseline are medians of rounds, a ratio is the median of the rounds' value
divided by baseline, measured right after each other. Noise is the median
distance from the median, of the ratio or, without one, of the value.

- packet: ns of a program over an empty program of the same type, by
  BPF_PROG_TEST_RUN: the CPU time of the call, not the kernel's whole nanoseconds.
  %d loads with %d rounds each of %d packets on one pinned CPU, each case next to
  its empty program, all cases in turn. Lists have the shape of published ones:
  of 20 entries 19 are single addresses, the others mostly /24, up to /16, or /64
  up to /32 of IPv6. LPM is a trie of the kernel's with the same entries, and
  nothing but its lookup.
- TCP: iperf3 over a veth pair for a second, or over loopback, the program
  attached to the receiving end; the baseline has nothing attached. CPU is that of
  both ends and of ksoftirqd. Native XDP takes segmentation offload from the other
  end of the veth pair, whatever the program does. Time is the inverse of
  throughput; flows counts at both ends, and has %d rounds instead of %d, every other
  one with it first: the median of so many is good to a quarter of the noise.
- command: a whole process, from fork to exit, its output discarded; the baseline
  is bpftool with the same on the same pinned maps. Keys and values of the hash
  are structs of 16 bytes with BTF, values of the tries a __u32. Lists of the
  blocklist have that shape, too, and replace others in which hardly an entry is
  the same.
- scrape: the request of a client on the same machine until it has all of the
  answer. Pods are cgroups, or veths, without names, with one address each. CPU is
  the exporter's for one scrape, as a part of 10 seconds of one CPU.
- drop: ns of the program drops for a packet that is dropped, as the kernel counts
  the time of programs, the two looks at the clock for that included.
- flows: what a call costs more, in CPU time of its thread, on one socket over
  loopback, 50 bytes at a time; sends are corked, but for sendto, so that it is the
  call that is measured and not the network. A round is the quartile of %d bursts of %d calls.
  Most of it is what the kernel takes for any program there, which is the baseline:
  TCP's receiving passes two tracepoints, and sendto and recvfrom one and a cgroup
  hook, before which the kernel locks the socket. Net is what is more than with empty
  programs. The hash is by process and addresses, with the same counters, on the same
  tracepoints. A connection is opened and closed, both ends on one CPU.

%s
Made from [results.ndjson](results.ndjson) by ` + "`make bench UPDATE=1`" + `. Without
UPDATE it compares with what is kept here.
`

// machine describes what was measured on, without its name.
func machine(t *testing.T) string {
	t.Helper()
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("Linux %s, %s, %s, %d CPUs, %s", unix.ByteSliceToString(name.Release[:]),
		runtime.GOARCH, cpuModel(), runtime.NumCPU(), bpftoolVersion(t))
}

func cpuModel() string {
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if key, value, found := strings.Cut(line, ":"); found && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown CPU"
}

func bpftoolVersion(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("bpftool", "version").Output()
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(out), "\n")
	return filepath.Base(first)
}
