package bench

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "measure and write RESULTS.md")

const (
	resultsFile = "RESULTS.md"
	rounds      = 41
)

// TestResults checks that the written results are about the cases there are;
// with -update it measures and writes them.
func TestResults(t *testing.T) {
	if *update {
		if err := os.WriteFile(resultsFile, []byte(results(t)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	written, err := os.ReadFile(resultsFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range cases() {
		if !strings.Contains(string(written), "| "+c.name+" |") {
			t.Errorf("%s has no line for %s: run go test ./bench -run TestResults -update", resultsFile, c.name)
		}
	}
}

// results measures all cases in turn, round by round, so that what disturbs the
// machine disturbs all alike.
func results(t *testing.T) string {
	settle(t)
	yardsticks := loadEmpty(t)
	var subjects []subject
	for _, c := range cases() {
		subjects = append(subjects, prepare(t, c, yardsticks))
	}
	samples := make([][]float64, len(subjects))
	for range rounds {
		for i, s := range subjects {
			samples[i] = append(samples[i], s.netCost(t))
		}
	}
	var lines strings.Builder
	for i, s := range subjects {
		fmt.Fprintf(&lines, "| %s | %.1f | %s |\n", s.name, median(samples[i]), s.goalText())
	}
	return fmt.Sprintf(resultsText, machine(t), rounds, packetsPerRound, lines.String())
}

func (s subject) goalText() string {
	if s.goal == 0 {
		return ""
	}
	return fmt.Sprintf("%g", s.goal)
}

const resultsText = `# What packets cost

Nanoseconds per packet over an empty program of the same type, by
BPF_PROG_TEST_RUN: the time of the call, not the kernel's whole nanoseconds.

Machine: %s.
%d rounds of %d packets on one pinned CPU, each case next to its empty program,
all cases in turn; medians. Compare lines of one run with each other, not with
other machines.

| case | net ns | goal |
|---|---:|---:|
%s
Made by ` + "`go test ./bench -run TestResults -update`" + `; for comparisons between
commits ` + "`go test ./bench -run '^$' -bench . -count 10`" + ` and benchstat.
`

func machine(t *testing.T) string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("Linux %s, %s, %s, %d CPUs", unix.ByteSliceToString(name.Release[:]),
		runtime.GOARCH, cpuModel(), runtime.NumCPU())
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
