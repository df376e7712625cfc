package test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"bpfnet/internal/probe"
)

// podCounters are those of watch pods.
type podCounters struct {
	TransmitBytes   uint64 `json:"transmit_bytes"`
	TransmitPackets uint64 `json:"transmit_packets"`
	ReceiveBytes    uint64 `json:"receive_bytes"`
	ReceivePackets  uint64 `json:"receive_packets"`
}

func (c podCounters) minus(o podCounters) podCounters {
	return podCounters{
		c.TransmitBytes - o.TransmitBytes, c.TransmitPackets - o.TransmitPackets,
		c.ReceiveBytes - o.ReceiveBytes, c.ReceivePackets - o.ReceivePackets,
	}
}

func (c podCounters) plus(o podCounters) podCounters { return c.minus(podCounters{}.minus(o)) }

// podsDocument is that of watch pods.
type podsDocument struct {
	Pods []struct {
		Address  string
		DevName  string
		IfIndex  int
		CgroupID string `json:"cgroup_id"`
		podCounters
	}
	Others, Total podCounters
}

// must runs bpfnet.
func (e engine) must(args ...string) string {
	e.Helper()
	return e.run(e.bpfnet(args...))
}

// watchPods reads the counters of a loaded pod-traffic.
func (e engine) watchPods(instance string, args ...string) (doc podsDocument) {
	e.Helper()
	out := e.must(append([]string{"watch", "pods", "--once", "-o", "json", "--instance", instance}, args...)...)
	if err := json.Unmarshal([]byte(out), &doc); err != nil {
		e.Fatalf("%v: %s", err, out)
	}
	return doc
}

// of returns the row of an address.
func (d podsDocument) of(address, cgroupID string) podCounters {
	for _, p := range d.Pods {
		if p.Address == address && p.CgroupID == cgroupID {
			return p.podCounters
		}
	}
	return podCounters{}
}

// stats are the counters that ip(8) shows of an interface of the host, in the words
// of a Pod: what the host's side receives the Pod transmits.
func (e engine) stats(name string) podCounters {
	e.Helper()
	for _, d := range e.devices("/run/netns/" + e.namespace) {
		if d.IfName == name {
			return podCounters{d.Stats.RX.Bytes, d.Stats.RX.Packets, d.Stats.TX.Bytes, d.Stats.TX.Packets}
		}
	}
	e.Fatalf("no interface %s", name)
	return podCounters{}
}

// quietly does something between two looks at the counters of an interface that are
// the same, and returns them.
func (e engine) quietly(name string, do func()) podCounters {
	e.Helper()
	for range 50 {
		before := e.stats(name)
		do()
		if e.stats(name) == before {
			return before
		}
		time.Sleep(100 * time.Millisecond)
	}
	e.Fatalf("packets never stop passing %s", name)
	return podCounters{}
}

// talker is a Pod of one container that sends and receives.
type talker struct {
	known
	container string // id
	cgroupID  string // of the container
	dev       string // the host's side, and the pod-traffic on it
	inner     string
	addresses []string
}

func (n criNode) newTalker(p pod) talker {
	n.Helper()
	t := talker{known: n.knows(p), container: p.containers[0]}
	i := t.Interfaces[0]
	t.cgroupID, t.dev, t.inner, t.addresses = t.Containers[1].CgroupID, i.DevName, i.InnerDevName, i.Addresses
	return t
}

// count attaches pod-traffic to a host-side interface, as an instance of the same
// name, and returns what had passed before.
func (e engine) count(dev string) (before podCounters) {
	e.Helper()
	return e.quietly(dev, func() {
		_ = e.bpfnet("unload", dev, "--detach").Run() // of the attempt before
		e.must("load", "pod-traffic", "--name", dev)
		e.must("attach", "tc", dev, "--dev", dev, "--direction", "both")
	})
}

// ip runs ip(8) in the Pod's network namespace.
func (n criNode) ip(t talker, args ...string) string {
	n.Helper()
	return n.run(exec.Command("nsenter", append([]string{fmt.Sprintf("--net=/proc/%d/ns/net", t.PID), "ip"}, args...)...))
}

const sent = 300_000

// send sends that many bytes over TCP from one Pod to another one, which answers with
// their number.
func (n criNode) send(from, to talker, address string) {
	n.Helper()
	served := make(chan error, 1)
	go func() {
		_, err := n.runtime.ExecSync(n.Context(), &cri.ExecSyncRequest{
			ContainerId: to.container, Cmd: []string{"nc", "-l", "-p", "7000", "-e", "wc", "-c"}, Timeout: 10,
		})
		served <- err
	}()
	n.soon("the server listens", func() error {
		for _, table := range []string{"tcp", "tcp6"} {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", to.PID, table))
			if err != nil || strings.Contains(string(text), ":1B58 ") {
				return err
			}
		}
		return fmt.Errorf("no socket")
	})
	if got := n.exec(from.container, "sh", "-c", fmt.Sprintf("head -c %d /dev/zero | nc %s 7000", sent, address)); got != fmt.Sprint(sent) {
		n.Fatalf("%s received %q bytes", address, got)
	}
	if err := <-served; err != nil {
		n.Fatal(err)
	}
}

// retransmitted is how many segments a Pod has sent again.
func (n criNode) retransmitted(t talker) (count uint64) {
	n.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/snmp", t.PID))
	if err != nil {
		n.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if i := slices.Index(names, "RetransSegs"); fields[0] == "Tcp:" && i > 0 {
			count, _ = strconv.ParseUint(fields[i], 10, 64)
			return count
		}
		names = fields
	}
	n.Fatalf("no RetransSegs in %s", text)
	return 0
}

// What two Pods send each other is counted for each of them as its interface counts
// it, to the byte, and at the cgroup as at the interface, but for Ethernet's headers.
func TestTrafficOfPods(t *testing.T) {
	n := newContainerd(t)
	web := n.newTalker(n.runPod(n.podConfig("web", newUID(t), "besteffort"), "web"))
	client := n.newTalker(n.runPod(n.podConfig("client", newUID(t), "burstable"), "client"))
	before := map[string]podCounters{web.dev: n.count(web.dev), client.dev: n.count(client.dev)}
	for _, address := range web.addresses {
		n.send(client, web, address)
	}
	for dev := range before {
		var doc podsDocument
		passed := n.quietly(dev, func() { doc = n.watchPods(dev) }).minus(before[dev])
		sum := doc.Others
		for _, row := range doc.Pods {
			sum = sum.plus(row.podCounters)
		}
		if sum != doc.Total || sum.TransmitBytes != passed.TransmitBytes || sum.ReceiveBytes != passed.ReceiveBytes {
			t.Errorf("%s: pod-traffic counts %+v, in all %+v, the interface %+v", dev, sum, doc.Total, passed)
		}
	}
	n.sameAtCgroup(web, client)
}

// sameAtCgroup attaches pod-traffic at the cgroup of all Pods. So that both places
// see the same packets, these are segments, and none are the kernel's own.
func (n criNode) sameAtCgroup(web, client talker) {
	n.Helper()
	for i, pod := range []talker{web, client} {
		other := []talker{client, web}[i]
		n.ip(pod, "link", "set", "dev", pod.inner, "gso_max_segs", "1")
		mac := jq(n, ".[0].address", n.ip(other, "-j", "link", "show", "dev", other.inner))
		for _, address := range other.addresses {
			n.ip(pod, "neigh", "replace", address, "lladdr", mac, "dev", pod.inner, "nud", "permanent")
		}
	}
	mount, err := probe.Cgroup2Mount()
	if err != nil {
		n.Fatal(err)
	}
	n.must("load", "pod-traffic")
	n.must("attach", "cgroup", "pod-traffic", "--cgroup", filepath.Join(mount, n.cgroup, "kubepods"))
	before := []podsDocument{n.watchPods(web.dev), n.watchPods(client.dev)}
	resent := n.retransmitted(client)
	for _, address := range web.addresses {
		n.send(client, web, address)
	}
	resent = n.retransmitted(client) - resent
	cgroup := n.watchPods("pod-traffic")
	if len(cgroup.Pods) != 4 || cgroup.Others != (podCounters{}) {
		n.Errorf("at the cgroup: %+v", cgroup)
	}
	for i, pod := range []talker{web, client} {
		after := n.watchPods(pod.dev)
		for _, address := range pod.addresses {
			want := after.of(address, "").minus(before[i].of(address, ""))
			want.TransmitBytes -= 14 * want.TransmitPackets
			want.ReceiveBytes -= 14 * want.ReceivePackets
			if got := cgroup.of(address, pod.cgroupID); got != want {
				n.Errorf("%s: %+v at the cgroup, %+v at the interface", address, got, want)
			}
		}
	}
	// Every segment has a header with time stamps, but that of the SYN, which is 8 bytes longer.
	for i, header := range []uint64{20 + 32, 40 + 32} {
		c := cgroup.of(client.addresses[i], client.cgroupID)
		if want := sent + header*c.TransmitPackets + 8; resent == 0 && c.TransmitBytes != want {
			n.Errorf("%s sent %d bytes in %d packets, want %d", client.addresses[i], c.TransmitBytes, c.TransmitPackets, want)
		}
	}
}

// A Pod that is made again, with its name and address, is another one.
func TestPodMadeAgain(t *testing.T) {
	n := newContainerd(t)
	client := n.newTalker(n.runPod(n.podConfig("client", newUID(t), "burstable"), "client"))
	n.must("load", "pod-traffic")
	var made []talker
	for _, uid := range []string{newUID(t), newUID(t)} {
		p := n.runPod(n.podConfig("web", uid, "besteffort"), "web")
		web := n.newTalker(p)
		n.must("attach", "tc", "pod-traffic", "--dev", web.dev, "--direction", "both")
		n.send(client, web, web.addresses[0])
		made = append(made, web)
		n.found(n.knows(p), "pod:shop/web")
		if len(made) == 1 {
			n.remove(p)
			n.forgetAddresses()
			n.ip(client, "neigh", "flush", "dev", client.inner)
		}
	}
	gone, again := made[0], made[1]
	if !slices.Equal(gone.addresses, again.addresses) {
		t.Fatalf("addresses: %q and %q", gone.addresses, again.addresses)
	}
	for _, ref := range []string{"pod:" + gone.Pod.UID, "container:" + gone.container, "dev:" + gone.dev, "cgroup:" + gone.CgroupPath} {
		if got := n.endpoint(ref, "[.[].cgroup_path] | tojson"); !strings.Contains(got, `"not_found"`) {
			t.Errorf("%s, which has gone: %s", ref, got)
		}
	}
	var rows []int
	for _, row := range n.watchPods("pod-traffic", "--address", again.addresses[0]).Pods {
		rows = append(rows, row.IfIndex)
		if row.ReceiveBytes < sent {
			t.Errorf("received: %+v", row)
		}
	}
	if slices.Sort(rows); !slices.Equal(rows, []int{gone.Interfaces[0].IfIndex, again.Interfaces[0].IfIndex}) {
		t.Errorf("interfaces: %d, want %d and %d", rows, gone.Interfaces[0].IfIndex, again.Interfaces[0].IfIndex)
	}
}

// forgetAddresses makes CNI begin with the lowest address that is free, and not with
// the one after that it gave away last.
func (n criNode) forgetAddresses() {
	n.Helper()
	files, err := filepath.Glob(n.dir + "/ipam/pods/last_reserved_ip.*")
	if err != nil || len(files) != 2 {
		n.Fatalf("%q, %v", files, err)
	}
	for _, file := range files {
		if err := os.Remove(file); err != nil {
			n.Fatal(err)
		}
	}
}

// What takes an interface, a cgroup or a process takes a Pod and a container, by the
// names that containerd has for them, and so says who sent what.
func TestPodNames(t *testing.T) {
	n := newContainerd(t)
	web := n.newTalker(n.runPod(n.podConfig("web", newUID(t), "besteffort"), "nginx", "logs"))
	client := n.newTalker(n.runPod(n.podConfig("client", newUID(t), "burstable"), "curl"))
	host := n.runPod(onHost(n.podConfig("host", newUID(t), "")), "agent")
	agent := n.knows(host).Containers[1]
	n.must("load", "pod-traffic")
	attached := func(field string, args ...string) string {
		t.Helper()
		return jq(t, "[.attachments[]."+field+`] | unique | join(" ")`, n.must(append([]string{"attach", args[0], "pod-traffic", "-o", "json"}, args[1:]...)...))
	}
	for _, c := range []struct{ got, want string }{
		{attached("devname", "tc", "--pod", "shop/web", "--direction", "both"), web.dev},
		{attached("cgroup_id", "cgroup", "--pod", "shop/client"), client.CgroupID},
		{attached("cgroup_id", "cgroup", "--container", "shop/web/nginx"), web.cgroupID},
		{attached("cgroup_id", "cgroup", "--container", "agent"), agent.CgroupID},
	} {
		if c.got != c.want {
			t.Errorf("attached to %s, want %s", c.got, c.want)
		}
	}
	all := n.must("attach", "cgroup", "pod-traffic", "--all-pods", "--dry-run", "-o", "json")
	if got := jq(t, `[.attachments[].cgroup | select(contains("`+n.cgroup+`/"))] | unique | join(" ")`, all); !strings.HasSuffix(got, n.cgroup+"/kubepods") {
		t.Errorf("all Pods are in %q", got)
	}
	if out, err := n.bpfnet("attach", "tc", "pod-traffic", "--pod", "shop/host").CombinedOutput(); err == nil {
		t.Errorf("a Pod of the host's network has an interface of its own: %s", out)
	}

	n.send(client, web, web.addresses[0])
	n.send(talker{container: host.containers[0]}, web, web.addresses[0])
	const row = `"\(.address) \(.namespace)/\(.pod) \(.container)"`
	for _, c := range []struct {
		args, want string
	}{
		{"--observe tc", web.addresses[0] + " shop/web null"},
		{"--observe cgroup --pod shop/client", client.addresses[0] + " shop/client curl"},
		{"--observe cgroup --container nginx", web.addresses[0] + " shop/web nginx"},
		{"--observe cgroup --container agent", "10.205.0.1 shop/host agent"},
		{fmt.Sprintf("--observe cgroup --pid %d", agent.PID), "10.205.0.1 shop/host agent"},
	} {
		got := n.must(append(strings.Fields("watch pods --once -o json"), strings.Fields(c.args)...)...)
		if got := jq(t, `[.pods[] | select(.address | startswith("10.")) | `+row+`] | join(", ")`, got); got != c.want {
			t.Errorf("watch pods %s: %s, want %s", c.args, got, c.want)
		}
	}
}
