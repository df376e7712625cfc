package bench

import (
	"bufio"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

const (
	watchCPU    = "watch peers, 65,536 peers, every 1 s: CPU"
	watchMemory = "watch peers, 65,536 peers: peak RSS"
)

func watchRecords() []string { return []string{watchCPU, watchMemory} }

// newsPerSecond is how many of the peers there is news of.
const newsPerSecond = 100

// measureWatch measures what part of a CPU a watch of peers uses that takes a sample
// each second.
func measureWatch(t *testing.T, wanted func(string) bool) []record {
	if !anyOf(watchRecords(), wanted) {
		return nil
	}
	b := emptyBed(t)
	b.run(t, b.bpfnet, "load peers")
	b.run(t, b.bpfnet, "attach cgroup peers --cgroup "+b.cgroup)
	entries, err := ebpf.LoadPinnedMap(filepath.Join(b.root, "peers/maps/peer_entries"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer entries.Close()
	putPeers(t, entries, int(entries.MaxEntries()), 1)
	watch := exec.Command(b.bpfnet, "watch", "peers", "--interval", "1s", "-o", "ndjson")
	watch.Env = append(os.Environ(), "BPFNET_BPFFS="+b.root)
	stdout, err := watch.StdoutPipe()
	if err == nil {
		err = watch.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = watch.Process.Kill()
		_ = watch.Wait()
	}()
	documents := bufio.NewReaderSize(stdout, 1<<20)
	next := func() {
		for more := true; more; {
			if _, more, err = documents.ReadLine(); err != nil {
				t.Fatal(err)
			}
		}
	}
	next() // all of them
	next()
	var parts []float64
	for round := range 20 {
		before, start := cpuOf(t, watch.Process.Pid), time.Now()
		putPeers(t, entries, newsPerSecond, uint64(round)+2)
		next()
		parts = append(parts, 100*(cpuOf(t, watch.Process.Pid)-before)/time.Since(start).Seconds())
	}
	return []record{
		newRecord(watchCPU, "%", parts, nil, atMost(5)),
		newRecord(watchMemory, "MB", []float64{peakOf(t, watch.Process.Pid)}, nil, goal{}),
	}
}

// putPeers puts entries of peers of one endpoint into a map.
func putPeers(t *testing.T, m *ebpf.Map, count int, attempts uint64) {
	t.Helper()
	for i := range count {
		key := make([]byte, m.KeySize()) // struct peer_key
		copy(key, []byte{10: 0xff, 11: 0xff, 12: 10, 13: 77, 14: 0, 15: 4})
		copy(key[16:], []byte{10: 0xff, 11: 0xff, 12: 203, 13: 0, 14: byte(i >> 8), 15: byte(i)})
		key[32], key[42], key[43] = 1, 6, 1
		value := binary.NativeEndian.AppendUint64(nil, attempts)
		if err := m.Put(key, append(value, make([]byte, int(m.ValueSize())-len(value))...)); err != nil {
			t.Fatal(err)
		}
	}
}
