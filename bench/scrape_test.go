package bench

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

// scrapedPods is how many Pods are scraped, each in a cgroup of its own.
const scrapedPods = 2000

const (
	scrapeWall   = "scrape, 2,000 Pods: wall"
	scrapeCPU    = "scrape, 2,000 Pods, every 10 s: CPU"
	scrapeMemory = "scrape, 2,000 Pods: peak RSS"
)

func scrapeRecords() []string { return []string{scrapeWall, scrapeCPU, scrapeMemory} }

// measureScrapes measures what a scrape takes until all of the answer is there, and
// what part of a CPU the exporter uses when it is scraped every 10 seconds.
func measureScrapes(t *testing.T, wanted func(string) bool) []record {
	if !anyOf(scrapeRecords(), wanted) {
		return nil
	}
	b := emptyBed(t)
	b.run(t, b.bpfnet, "attach cgroup pod-traffic --cgroup "+b.cgroup)
	b.fillCgroups(t)
	address, process := b.export(t)
	var walls, cpus []float64
	for start := time.Now(); len(walls) < leastRounds || len(walls) < mostRounds && time.Since(start) < caseTime; {
		before, begin := cpuOf(t, process), time.Now()
		text := scrape(t, address)
		walls = append(walls, ms(time.Since(begin)))
		if n := bytes.Count(text, []byte("\nbpfnet_pod_network_io_")); n != 4*scrapedPods {
			t.Fatalf("%d series of Pods", n)
		}
		cpus = append(cpus, 100*(cpuOf(t, process)-before)/10)
	}
	return []record{
		newRecord(scrapeWall, "ms", walls, nil, atMost(100)),
		newRecord(scrapeCPU, "%", []float64{mean(cpus)}, nil, atMost(1)),
		newRecord(scrapeMemory, "MB", []float64{peakOf(t, process)}, nil, goal{}),
	}
}

// mean is of what has a coarse clock.
func mean(values []float64) (sum float64) {
	for _, v := range values {
		sum += v
	}
	return sum / float64(len(values))
}

// fillCgroups makes cgroups, and puts entries for them into pod-traffic's map.
func (b *bed) fillCgroups(t *testing.T) {
	t.Helper()
	m, err := ebpf.LoadPinnedMap(filepath.Join(b.root, "pod-traffic/maps/cgroup_pods"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	counted := make([][4]uint64, ebpf.MustPossibleCPU())
	for i := range scrapedPods {
		dir := filepath.Join(b.cgroup, fmt.Sprintf("pod%d", i))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Remove(dir) })
		info, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		key := []byte{10: 0xff, 11: 0xff, 12: 10, 13: 77, 14: byte(i >> 8), 15: byte(i)}
		key = binary.NativeEndian.AppendUint64(key, info.Sys().(*syscall.Stat_t).Ino)
		counted[0] = [4]uint64{uint64(i), 1, 2, 3}
		if err := m.Put(key, counted); err != nil {
			t.Fatal(err)
		}
	}
}

var servedAt = regexp.MustCompile(`served at (\S+),`)

// export starts an exporter, and returns its address and pid.
func (b *bed) export(t *testing.T) (address string, pid int) {
	t.Helper()
	exporter := exec.Command(b.bpfnet, "export", "prometheus", "--listen", "127.0.0.1:0")
	exporter.Env = append(os.Environ(), "BPFNET_BPFFS="+b.root)
	stderr, err := exporter.StderrPipe()
	if err == nil {
		err = exporter.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = exporter.Process.Kill()
		_ = exporter.Wait()
	})
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		if found := servedAt.FindStringSubmatch(lines.Text()); found != nil {
			return found[1], exporter.Process.Pid
		}
	}
	t.Fatal("nothing is served")
	return "", 0
}

func scrape(t *testing.T, address string) []byte {
	t.Helper()
	answer, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// cpuOf is the CPU time in seconds that the threads of a process have used.
func cpuOf(t *testing.T, pid int) (seconds float64) {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(threads) == 0 {
		t.Fatalf("no threads of %d: %v", pid, err)
	}
	for _, thread := range threads {
		text, err := os.ReadFile(thread)
		var ns float64
		if err == nil {
			_, err = fmt.Sscan(string(text), &ns)
		}
		if err != nil {
			t.Fatal(err)
		}
		seconds += ns / 1e9
	}
	return seconds
}

// peakOf is the most memory in MB that a process has had.
func peakOf(t *testing.T, pid int) float64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "VmHWM:")
	var kilobytes float64
	if _, err := fmt.Sscan(rest, &kilobytes); err != nil {
		t.Fatal(err)
	}
	return kilobytes * 1024 / 1e6
}
