package test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	vns "github.com/vishvananda/netns"
)

// followEvent is a document of attach --follow.
type followEvent struct {
	Time    time.Time
	Event   string
	DevName string
	IfIndex int
	Pod     string
	PodUID  string `json:"pod_uid"`
	TookUS  *int64 `json:"took_us"`
	Traffic []struct {
		Address string
		podCounters
	}
	Error string
}

// follower is an attach --follow that runs.
type follower struct {
	criNode
	cmd    *exec.Cmd
	events chan followEvent
}

func (n criNode) follow() *follower {
	n.Helper()
	f := &follower{criNode: n, events: make(chan followEvent, 100)}
	f.cmd = n.bpfnet("attach", "tc", "pod-traffic", "--all-pods", "--follow", "--direction", "both", "-o", "ndjson")
	f.cmd.Stderr = &bytes.Buffer{}
	out, err := f.cmd.StdoutPipe()
	if err == nil {
		err = f.cmd.Start()
	}
	if err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() {
		_ = f.cmd.Process.Kill()
		_ = f.cmd.Wait()
		if n.Failed() {
			n.Logf("%q: %s", f.cmd.Args, f.cmd.Stderr)
		}
	})
	go func() {
		defer close(f.events)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var e followEvent
			if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
				n.Errorf("%v: %s", err, lines.Bytes())
			}
			f.events <- e
		}
	}()
	return f
}

// next is the next event, which must be one of a device, and come before the follower
// looks again for no reason.
func (f *follower) next(event, dev string) followEvent {
	f.Helper()
	select {
	case e := <-f.events:
		if e.Event != event || e.DevName != dev {
			f.Fatalf("%+v, want %s %s", e, event, dev)
		}
		return e
	case <-time.After(4 * time.Second):
		f.Fatalf("no %s %s", event, dev)
	}
	return followEvent{}
}

// named is the same of a Pod, whose name comes with the event or after it.
func (f *follower) named(event string, t talker) followEvent {
	f.Helper()
	e := f.next(event, t.dev)
	named := e
	for named.Pod == "" {
		named = f.next("identified", t.dev)
	}
	if named.Pod != *t.Pod.Name || named.PodUID != t.Pod.UID {
		f.Errorf("%+v, want %s", named, text(t.known))
	}
	return e
}

// appearances returns when an interface appeared on the host, as the kernel told.
func (e engine) appearances() func(index int) time.Time {
	e.Helper()
	ns, err := vns.GetFromName(e.namespace)
	if err != nil {
		e.Fatal(err)
	}
	defer ns.Close()
	updates, done := make(chan netlink.LinkUpdate, 1000), make(chan struct{})
	if err := netlink.LinkSubscribeWithOptions(updates, done, netlink.LinkSubscribeOptions{Namespace: &ns, ErrorCallback: func(error) {}}); err != nil {
		e.Fatal(err)
	}
	e.Cleanup(func() { close(done) })
	var seen sync.Map
	go func() {
		for u := range updates {
			seen.LoadOrStore(int(u.Index), time.Now())
		}
	}()
	return func(index int) time.Time {
		at, _ := seen.Load(index)
		return at.(time.Time)
	}
}

// Who follows the Pods of a real containerd is attached to each as soon as it has an
// interface, adopts what another one left that was killed, and tells the last counters
// of Pods that have gone, once.
func TestFollowPods(t *testing.T) {
	n := newContainerd(t)
	run := func(name string) (pod, talker) {
		p := n.runPod(n.podConfig(name, newUID(t), "besteffort"), name)
		return p, n.newTalker(p)
	}
	n.must("load", "pod-traffic")
	_, first := run("first")
	appeared := n.appearances()
	f := n.follow()
	if e := f.named("attached", first); e.TookUS != nil {
		t.Errorf("%+v", e)
	}

	second, web := run("second")
	e := f.named("attached", web)
	took := e.Time.Sub(appeared(e.IfIndex))
	t.Logf("attached %v after %s appeared, by its own measure %d µs", took, web.dev, *e.TookUS)
	if took > 2*time.Second {
		t.Errorf("attached %v after the interface appeared", took)
	}

	n.runPod(onHost(n.podConfig("host", newUID(t), "besteffort")), "host")
	n.send(first, web, web.addresses[0])
	last := n.watchPods("pod-traffic").of(web.addresses[0], "")
	n.remove(second)
	n.told(f.next("gone", web.dev), web, last)

	third, web := run("third")
	f.named("attached", web)
	n.send(first, web, web.addresses[0])
	last = n.watchPods("pod-traffic").of(web.addresses[0], "")
	f.end(os.Kill)
	n.remove(third)

	f = n.follow()
	n.told(f.next("gone", web.dev), web, last)
	f.named("adopted", first)
	if err := f.end(os.Interrupt); err != nil {
		t.Error(err)
	}
	if got := jq(t, `[.[] | .devname] | unique | join(" ")`, n.must("link", "list", "-o", "json")); got != first.dev {
		t.Errorf("attached to %s, want %s", got, first.dev)
	}
}

// remove removes a Pod.
func (n criNode) remove(p pod) {
	n.Helper()
	if err := n.removePod(p.sandbox); err != nil {
		n.Fatal(err)
	}
}

// told checks that an event has the last counters of a Pod, which aren't in the map
// any more.
func (n criNode) told(e followEvent, t talker, last podCounters) {
	n.Helper()
	var told podCounters
	for _, row := range e.Traffic {
		if row.Address == t.addresses[0] {
			told = row.podCounters
		}
	}
	if told != last || told.ReceiveBytes < sent {
		n.Errorf("%+v: counters %+v, want %+v", e, told, last)
	}
	if left := n.watchPods("pod-traffic").of(t.addresses[0], ""); left != (podCounters{}) {
		n.Errorf("still counted: %+v", left)
	}
}

// end ends the follower, of which no further event must have come.
func (f *follower) end(signal os.Signal) error {
	f.Helper()
	if err := f.cmd.Process.Signal(signal); err != nil {
		f.Fatal(err)
	}
	for e := range f.events {
		f.Errorf("unexpected: %+v", e)
	}
	return f.cmd.Wait()
}
