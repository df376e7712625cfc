package test

import (
	"strings"
	"testing"
	"time"
)

// TestWatchedInstance attaches, detaches and unloads what is watched: each watch says so,
// and ends when there is nothing left to watch. So do watches of flows, of which another
// instance may have the name then.
func TestWatchedInstance(t *testing.T) {
	n := newNode(t)
	for _, test := range []struct{ program, attach, watch string }{
		{"pod-traffic", "tc pod-traffic --dev veth-a --direction both", "pods"},
		{"peers", "tc peers --dev veth-a --direction both", "peers"},
		{"xdp-counter", "xdp xdp-counter --dev veth-b --mode generic", "counters"},
		{"dns", "tc dns --dev veth-a --direction both", "dns"},
		{"drops", "trace drops", "drops"},
		{"flows", "trace flows", "flows"},
		{"flows", "trace flows", "connections"},
	} {
		args := []string{"watch", test.watch}
		if test.watch != "dns" && test.watch != "connections" {
			args = append(args, "--interval", "100ms")
		}
		hook, _, _ := strings.Cut(test.attach, " ")
		detached, attached := test.program+" is not attached", "note: "+test.program+" is attached now"
		if r := n.onHost("load", test.program); r.code == 6 || r.code == 7 {
			t.Logf("%s: %s", test.program, r.stderr)
			continue
		}
		watch := startWatch(t, n.bpfnet(args...))
		watch.waitFor(t, detached)
		n.must(t, append([]string{"attach"}, strings.Fields(test.attach)...)...)
		watch.waitFor(t, attached)
		n.must(t, "detach", hook, test.program)
		for end := time.Now().Add(20 * time.Second); strings.Count(watch.stderr.String(), detached) < 2 && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		}
		n.must(t, "unload", test.program)
		watch.endsWith(t, "bpfnet: no loaded program \""+test.program+"\"\n")
		if text := watch.stderr.String(); strings.Count(text, detached) != 2 || strings.Count(text, attached) != 1 {
			t.Errorf("watch %s says:\n%s", test.watch, text)
		}
		if test.program != "flows" {
			continue
		}
		n.must(t, "load", "flows")
		n.must(t, "attach", "trace", "flows")
		watch = startWatch(t, n.bpfnet(args...))
		time.Sleep(time.Second) // it says nothing when it has begun
		n.sh(t, `set -e; bpfnet unload flows --detach; bpfnet load flows; bpfnet attach trace flows`)
		watch.endsWith(t, "flows\"")
		n.must(t, "unload", "flows", "--detach")
	}
}

// endsWith waits for the end because an instance is gone.
func (b *background) endsWith(t *testing.T, says string) {
	t.Helper()
	select {
	case <-b.ended:
	case <-time.After(20 * time.Second):
		t.Fatalf("it goes on: %s", b.stderr.String())
	}
	if code, text := b.cmd.ProcessState.ExitCode(), b.stderr.String(); code != 3 || !strings.Contains(text, says) {
		t.Errorf("exit %d: %s", code, text)
	}
}
