package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const commandResultsFile = "MAPS.md"

// How often a case is measured: for about this time, and within these bounds.
const (
	caseTime    = 15 * time.Second
	leastRounds = 5
	mostRounds  = 101
)

// TestMapResults checks that the written results are about the cases there are;
// with -update it measures and writes them.
func TestMapResults(t *testing.T) {
	if *update {
		if err := os.WriteFile(commandResultsFile, []byte(commandResults(t)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	written, err := os.ReadFile(commandResultsFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range commandCases() {
		if !strings.Contains(string(written), "| "+c.name+" |") {
			t.Errorf("%s has no line for %s: run go test ./bench -run TestMapResults -update", commandResultsFile, c.name)
		}
	}
}

func commandResults(t *testing.T) string {
	bpfnet, bpftool := programs(t)
	maps := makeMaps(t, 1)
	var lines strings.Builder
	for _, c := range commandCases() {
		ours, theirs := c.compare(t, bpfnet, bpftool, maps)
		fmt.Fprintf(&lines, "| %s | %s | %.2f / %.2f | %.2f / %.2f | %s |\n", c.name, c.reached(ours, theirs),
			ours.wall, theirs.wall, ours.cpu, theirs.cpu, memoryText(ours, theirs))
	}
	return fmt.Sprintf(commandResultsText, machine(t), bpftoolVersion(t, bpftool), lines.String())
}

// compare measures both programs in turn and returns the medians.
func (c commandCase) compare(tb testing.TB, bpfnet, bpftool string, maps pinnedMaps) (ours, theirs usage) {
	var mine, others samples
	start := time.Now()
	for round := 0; round < leastRounds || round < mostRounds && time.Since(start) < caseTime; round++ {
		words := maps.words(round)
		mine.add(measure(tb, bpfnet, words.Replace(c.ours)))
		others.add(measure(tb, bpftool, words.Replace(c.theirs)))
	}
	return mine.median(), others.median()
}

// samples are the figures of several runs.
type samples struct{ wall, cpu, rss []float64 }

func (s *samples) add(u usage) {
	s.wall, s.cpu, s.rss = append(s.wall, u.wall), append(s.cpu, u.cpu), append(s.rss, u.rss)
}

func (s *samples) median() usage { return usage{median(s.wall), median(s.cpu), median(s.rss)} }

// reached says how far the goals are reached.
func (c commandCase) reached(ours, theirs usage) string {
	var texts []string
	for _, g := range c.goals {
		texts = append(texts, fmt.Sprintf("%s %.2f of %.2f", g.what, g.value(ours, theirs), g.limit))
	}
	return strings.Join(texts, ", ")
}

// memoryText is empty for commands that end before their memory is looked at.
func memoryText(ours, theirs usage) string {
	if ours.rss == 0 || theirs.rss == 0 {
		return ""
	}
	return fmt.Sprintf("%.0f / %.0f", ours.rss, theirs.rss)
}

func bpftoolVersion(t *testing.T, bpftool string) string {
	out, err := exec.Command(bpftool, "version").Output()
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(out), "\n")
	return filepath.Base(first)
}

const commandResultsText = `# What commands on maps cost, beside bpftool

Whole processes, from fork to exit, their output discarded: medians of bpfnet
and of bpftool, which run in turn on the same pinned maps. A ratio is bpfnet's
number divided by bpftool's; RSS is the peak. Keys and values of the hash are
structs of 16 bytes with BTF, values of the tries a __u32.

Machine: %s; %s.

| case | reached, of at most | wall ms | CPU ms | RSS MB |
|---|---|---:|---:|---:|
%s
Made by ` + "`go test ./bench -run TestMapResults -update -timeout 30m`" + `, which builds
bpfnet, makes the maps and takes them away again; as root, with bpftool.
`

// BenchmarkCommandsOnSmallMaps is the comparison with maps of 1/20 of the size that
// the names say, small enough for every run of the tests.
func BenchmarkCommandsOnSmallMaps(b *testing.B) {
	bpfnet, bpftool := programs(b)
	maps := makeMaps(b, 20)
	for _, c := range commandCases() {
		b.Run(c.name, func(b *testing.B) {
			var mine, others samples
			for round := 0; b.Loop(); round++ {
				words := maps.words(round)
				mine.add(measure(b, bpfnet, words.Replace(c.ours)))
				others.add(measure(b, bpftool, words.Replace(c.theirs)))
			}
			ours, theirs := mine.median(), others.median()
			b.ReportMetric(ours.wall, "wall-ms")
			b.ReportMetric(ours.cpu/theirs.cpu, "CPU-ratio")
			b.ReportMetric(0, "ns/op")
		})
	}
}
