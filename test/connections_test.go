package test

import (
	"bufio"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bpfnet/internal/flow"
	"bpfnet/internal/netns"
)

// refused has as many connections fail as the machine can, until they are stopped.
type refused struct {
	*testing.T
	count   atomic.Uint64
	stopped atomic.Bool
	running sync.WaitGroup
}

// floodConnections connects in the namespace of Pod A to where nobody listens.
func (n node) floodConnections(t *testing.T) *refused {
	r := &refused{T: t}
	for range max(2, runtime.NumCPU()) {
		r.running.Go(func() {
			err := netns.Do("/run/netns/"+n.podA, func() error {
				fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					return err
				}
				defer unix.Close(fd)
				for !r.stopped.Load() {
					if err := unix.Connect(fd, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{127, 0, 0, 1}}); !errors.Is(err, unix.ECONNREFUSED) {
						return err
					}
					r.count.Add(1)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() { r.stopped.Store(true) })
	return r
}

// stop ends it, and returns how many have failed.
func (r *refused) stop() uint64 {
	r.stopped.Store(true)
	r.running.Wait()
	return r.count.Load()
}

// attemptsFailed is how many connections failed in Pod A, which the kernel counts.
func (n node) attemptsFailed(t *testing.T) (count uint64) {
	t.Helper()
	out, err := exec.Command("nsenter", "--net=/run/netns/"+n.podA, "cat", "/proc/net/snmp").Output()
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile(`(?m)^Tcp: .*$`).FindAllString(string(out), 2)
	for i, name := range strings.Fields(rows[0]) {
		if name == "AttemptFails" {
			count, err = strconv.ParseUint(strings.Fields(rows[1])[i], 10, 64)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return count
}

// TestWatchConnectionsFlood: in a flood lines are whole, and the end is clean when nobody
// reads any more; of what a slow reader doesn't get each record is counted.
func TestWatchConnectionsFlood(t *testing.T) {
	n := newNode(t)
	n.must(t, "load", "flows", "--set", "pid="+strconv.Itoa(os.Getpid()))
	n.must(t, "attach", "trace", "flows")
	flood := n.floodConnections(t)
	cmd := exec.Command("bash", "-o", "pipefail", "-c", `"$0" "$@" | head -n 5`)
	ours := n.bpfnet("watch", "connections", "-o", "ndjson")
	cmd.Args, cmd.Env = append(cmd.Args, ours.Args...), ours.Env
	lines := strings.Split(strings.TrimSpace(startWatch(t, cmd).wait(t)), "\n")
	if len(lines) != 5 {
		t.Errorf("%d lines", len(lines))
	}
	for _, line := range lines {
		var doc flow.EventDocument
		if err := json.Unmarshal([]byte(line), &doc); err != nil || doc.Schema != flow.EventSchema {
			t.Errorf("%v in %s", err, line)
		}
	}
	flood.stop()
	for _, only := range []string{"--failed", "--failed=false"} {
		n.stalls(t, only)
	}
	n.must(t, "unload", "--all", "--detach")
}

// stalls floods a watch whose reader does nothing for 3 s. Of each failure there is one
// record if the watch is for these, else another one of its end, which isn't told.
func (n node) stalls(t *testing.T, only string) {
	t.Helper()
	watch := n.bpfnet("watch", "connections", only, "-o", "ndjson")
	watch.Stderr = os.Stderr
	out, err := watch.StdoutPipe()
	if err == nil {
		err = watch.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = watch.Process.Kill() }()
	time.Sleep(500 * time.Millisecond) // it says nothing when it has begun
	before, began := n.attemptsFailed(t), time.Now()
	flood := n.floodConnections(t)
	time.Sleep(3 * time.Second)
	var last flow.EventDocument
	var read, ends uint64
	lines := bufio.NewScanner(out)
	count := func() {
		if err := json.Unmarshal(lines.Bytes(), &last); err != nil {
			t.Fatalf("%v in %s", err, lines.Bytes())
		}
		if last.Event == "failed" && *last.Network.Peer.Port == 9 {
			read++
		}
	}
	for time.Since(began) < 5*time.Second && lines.Scan() {
		count()
	}
	failed := flood.stop()
	rate := float64(failed) / time.Since(began).Seconds()
	time.AfterFunc(time.Second, func() { _ = watch.Process.Signal(unix.SIGINT) })
	for lines.Scan() {
		count()
	}
	if err := watch.Wait(); err != nil {
		t.Error(err)
	}
	if only != "--failed" {
		ends = failed
	}
	most := watch.ProcessState.SysUsage().(*syscall.Rusage).Maxrss >> 10 // MiB
	if most > 200 {
		t.Errorf("it took %d MiB", most)
	}
	if kernel := n.attemptsFailed(t) - before; kernel != failed || read+last.Loss.Events < failed || read+last.Loss.Events > failed+ends || last.Loss.Events == 0 || last.Loss.MapFull != 0 {
		t.Errorf("%d were read and %+v lost, of %d that failed, %d for the kernel", read, last.Loss, failed, kernel)
	}
	t.Logf("%.0f events/s, %d read, %d lost, %d MiB", rate, read, last.Loss.Events, most)
}
