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
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bpfnet/internal/datapath"
	"bpfnet/internal/netns"
	"bpfnet/internal/testkit"
)

// scraped is how many Pods are scraped, each with a place of its own.
const scraped = 2000

// scrapeCase is where Pods are counted. prepare makes them, and returns the network
// namespace in which they are.
type scrapeCase struct {
	name    string
	prepare func(*bed, *testing.T) (namespace string)
}

func scrapeCases() []scrapeCase {
	return []scrapeCase{
		{"scrape, 2,000 Pods", (*bed).fillCgroups},
		{"scrape, 2,000 veths at tc", (*bed).attachVeths},
	}
}

// records are the names of what is measured of a case.
func (c scrapeCase) records() []string {
	return []string{c.name + ": wall", c.name + ", every 10 s: CPU", c.name + ": peak RSS"}
}

func scrapeRecords() (names []string) {
	for _, c := range scrapeCases() {
		names = append(names, c.records()...)
	}
	return names
}

func measureScrapes(t *testing.T, wanted func(string) bool) (all []record) {
	for _, c := range scrapeCases() {
		if anyOf(c.records(), wanted) {
			t.Run(c.name, func(t *testing.T) { all = append(all, c.measure(t)...) })
		}
	}
	return all
}

// measure measures what a scrape takes until all of the answer is there, and what part
// of a CPU the exporter uses when it is scraped every 10 seconds.
func (c scrapeCase) measure(t *testing.T) []record {
	b := emptyBed(t)
	address, process := b.export(t, c.prepare(b, t))
	var walls, cpus []float64
	for start := time.Now(); len(walls) < leastRounds || len(walls) < mostRounds && time.Since(start) < caseTime; {
		before, begin := cpuOf(t, process), time.Now()
		text := scrape(t, address)
		walls = append(walls, ms(time.Since(begin)))
		if n := bytes.Count(text, []byte("\nbpfnet_pod_network_io_")); n != 4*scraped {
			t.Fatalf("%d series of Pods", n)
		}
		cpus = append(cpus, 100*(cpuOf(t, process)-before)/10)
	}
	names := c.records()
	return []record{
		newRecord(names[0], "ms", walls, nil, atMost(100)),
		newRecord(names[1], "%", []float64{mean(cpus)}, nil, atMost(1)),
		newRecord(names[2], "MB", []float64{peakOf(t, process)}, nil, goal{}),
	}
}

// mean is of what not every round has to pay for: garbage is collected in some.
func mean(values []float64) (sum float64) {
	for _, v := range values {
		sum += v
	}
	return sum / float64(len(values))
}

// fillCgroups attaches pod-traffic to a cgroup, makes others in it, and puts entries for
// them into the map.
func (b *bed) fillCgroups(t *testing.T) (namespace string) {
	t.Helper()
	b.run(t, b.bpfnet, "attach cgroup pod-traffic --cgroup "+b.cgroup)
	b.putPods(t, "cgroup_pods", func(i int) []byte {
		dir := filepath.Join(b.cgroup, fmt.Sprintf("pod%d", i))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Remove(dir) })
		info, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		return binary.NativeEndian.AppendUint64(nil, info.Sys().(*syscall.Stat_t).Ino)
	})
	return b.namespace
}

// attachVeths attaches pod-traffic to both directions of veths, which takes a minute, and
// puts entries for them into the map.
func (b *bed) attachVeths(t *testing.T) (namespace string) {
	t.Helper()
	namespace = testkit.NetNS(t)
	var attach []datapath.AttachRequest
	indexes := make([]uint32, scraped)
	err := netns.Do(namespace, func() error {
		for i := range scraped {
			veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprintf("pod%d", i)}, PeerName: fmt.Sprintf("peer%d", i)}
			if err := netlink.LinkAdd(veth); err != nil {
				return err
			}
			indexes[i] = uint32(veth.Index)
			attach = append(attach, datapath.AttachRequest{Hook: "tc", Name: "pod-traffic", Device: veth.Name, Direction: datapath.Both})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	engine, err := datapath.Open(datapath.Options{Root: b.root, NetNS: namespace})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := engine.Attach(t.Context(), attach...); err != nil {
		t.Fatal(err)
	}
	b.putPods(t, "pods", func(i int) []byte { return binary.NativeEndian.AppendUint32(nil, indexes[i]) })
	return namespace
}

// putPods puts Pods into a map of pod-traffic, each with an address of its own.
func (b *bed) putPods(t *testing.T, name string, place func(i int) []byte) {
	t.Helper()
	m, err := ebpf.LoadPinnedMap(filepath.Join(b.root, "pod-traffic/maps", name), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	counted := make([][4]uint64, ebpf.MustPossibleCPU())
	for i := range scraped {
		key := []byte{10: 0xff, 11: 0xff, 12: 10, 13: 77, 14: byte(i >> 8), 15: byte(i)}
		counted[0] = [4]uint64{uint64(i), 1, 2, 3}
		if err := m.Put(append(key, place(i)...), counted); err != nil {
			t.Fatal(err)
		}
	}
}

var servedAt = regexp.MustCompile(`served at (\S+),`)

// export starts an exporter of what is in a network namespace, and returns its address
// and pid.
func (b *bed) export(t *testing.T, namespace string) (address string, pid int) {
	t.Helper()
	exporter := exec.Command(b.bpfnet, "--netns", namespace, "export", "prometheus", "--listen", "127.0.0.1:0")
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

// cpuOf is the CPU time in seconds that a process has used, with its threads that have
// ended.
func cpuOf(t *testing.T, pid int) (seconds float64) {
	t.Helper()
	const sched = 2 // CPUCLOCK_SCHED, of a process as clock_getcpuclockid(3) makes it
	var used unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|sched), &used); err != nil {
		t.Fatalf("read the CPU time of %d: %v", pid, err)
	}
	return time.Duration(used.Nano()).Seconds()
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
