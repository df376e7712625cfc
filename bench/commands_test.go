package bench

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bpfnet/internal/testkit"
)

// commandCase is a command of bpfnet beside one of bpftool that does the same.
// Words in braces stand for what pinnedMaps.words lists.
type commandCase struct {
	name, ours, theirs string
	goals              []goal
}

// goal is a number that must not be exceeded.
type goal struct {
	what  string
	limit float64
	value func(ours, theirs usage) float64
}

func cpuGoal(limit float64) goal {
	return goal{"CPU ratio", limit, func(ours, theirs usage) float64 { return ours.cpu / theirs.cpu }}
}

func wallGoal(limit float64) goal {
	return goal{"wall ratio", limit, func(ours, theirs usage) float64 { return ours.wall / theirs.wall }}
}

func timeGoal(limit float64) goal {
	return goal{"wall ms", limit, func(ours, _ usage) float64 { return ours.wall }}
}

func memoryGoal(limit float64) goal {
	return goal{"RSS MB", limit, func(ours, _ usage) float64 { return ours.rss }}
}

func commandCases() []commandCase {
	cases := []commandCase{
		{"version", "version", "version", []goal{wallGoal(3)}},
		{"map get", "map get {small} {key}", "map lookup pinned {small} key hex {bytes}", []goal{timeGoal(5)}},
		{"map set", `map set {small} {key} {"packets":{round},"bytes":7}`, "map update pinned {small} key hex {bytes} value hex {count} 07 00 00 00 00 00 00 00", []goal{timeGoal(5)}},
		{"map delete", "map delete {small} {key}", "map delete pinned {small} key hex {bytes}", []goal{timeGoal(5)}},
		{"map import, 10,000 updates", "map import {small} {import}", "batch file {batch}", []goal{wallGoal(1. / 3)}},
	}
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
				goals:  []goal{cpuGoal(m.ratio), memoryGoal(30)},
			})
		}
	}
	return cases
}

// words replaces what stands for maps, keys and files in command lines. Every
// round has other keys and values, and so have the two programs, so that there
// is always something to change.
func (m pinnedMaps) words(round int) *strings.Replacer {
	theirs := make([]byte, 16)
	flowKey(2*round+1, theirs)
	return strings.NewReplacer("{million}", m.million, "{small}", m.small, "{prefixes4}", m.prefixes4, "{prefixes}", m.prefixes,
		"{import}", m.imports[round%2], "{batch}", m.batches[round%2], "{key}", flowText(2*round), "{bytes}", fmt.Sprintf("% x", theirs),
		"{round}", fmt.Sprint(round), "{count}", fmt.Sprintf("% x", binary.LittleEndian.AppendUint64(nil, uint64(round))))
}

// usage is what one process took.
type usage struct{ wall, cpu, rss float64 } // ms, ms, MB

// measure runs a program to its end.
func measure(tb testing.TB, program, line string) usage {
	tb.Helper()
	command := exec.Command(program, strings.Fields(line)...)
	var stderr bytes.Buffer
	command.Stderr = &stderr
	start := time.Now()
	if err := command.Start(); err != nil {
		tb.Fatal(err)
	}
	done, peak := make(chan struct{}), make(chan float64)
	go watchMemory(command.Process.Pid, done, peak)
	err := command.Wait()
	wall := time.Since(start)
	close(done)
	if err != nil {
		tb.Fatalf("%s %s: %v\n%s", program, line, err, stderr.Bytes())
	}
	return usage{ms(wall), ms(command.ProcessState.UserTime() + command.ProcessState.SystemTime()), max(<-peak, 0)}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// watchMemory sends the peak of a process's memory in MB. What the kernel
// reports at the end begins with the memory of the parent.
func watchMemory(pid int, done <-chan struct{}, peak chan<- float64) {
	const interval = 20 * time.Millisecond
	var most float64
	for ticks := time.NewTicker(interval); ; {
		select {
		case <-ticks.C:
			most = max(most, residentPeak(pid))
		case <-done:
			ticks.Stop()
			peak <- most
			return
		}
	}
}

func residentPeak(pid int) (megabytes float64) {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(status)) {
		if _, err := fmt.Sscanf(line, "VmHWM: %f kB", &megabytes); err == nil {
			return megabytes / 1000
		}
	}
	return 0
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
	build := exec.Command("go", "build", "-trimpath", "-tags=urfave_cli_no_docs", "-o", bpfnet, "bpfnet")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		tb.Fatalf("build bpfnet: %v\n%s", err, out)
	}
	return bpfnet, bpftool
}
