package test

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"bpfnet/internal/probe"
)

// known is what the engine and ip(8) say of a Pod or a container, in the words of
// bpfnet's documents.
type known struct {
	Pod         *knownPod        `json:"pod"`
	PID         int              `json:"pid"`
	CgroupPath  string           `json:"cgroup_path"`
	CgroupID    string           `json:"cgroup_id"`
	NetNS       uint64           `json:"netns"`
	HostNetwork bool             `json:"host_network"`
	Interfaces  []knownInterface `json:"interfaces"`
	Containers  []knownContainer `json:"containers"`
}

type knownPod struct {
	UID       string            `json:"uid"`
	QoS       string            `json:"qos"`
	Namespace *string           `json:"namespace"`
	Name      *string           `json:"name"`
	Labels    map[string]string `json:"labels"`
	Source    string            `json:"source"`
}

type knownContainer struct {
	Engine     string            `json:"engine"`
	ID         string            `json:"id"`
	Name       *string           `json:"name"`
	Labels     map[string]string `json:"labels"`
	Source     string            `json:"source"`
	PID        int               `json:"pid"`
	CgroupPath string            `json:"cgroup_path"`
	CgroupID   string            `json:"cgroup_id"`
}

type knownInterface struct {
	DevName      string   `json:"devname"`
	IfIndex      int      `json:"ifindex"`
	InnerDevName string   `json:"inner_devname"`
	InnerIfIndex int      `json:"inner_ifindex"`
	Addresses    []string `json:"addresses"`
}

// asKnown makes the same of what bpfnet says.
const asKnown = `map(.pid = .process.pid | .containers |= map(.pid = .process.pid))`

// text writes a list of them.
func text(list ...known) string {
	text, _ := json.Marshal(list)
	return string(text)
}

// unnamed is what is known without the engine, from cgroups; they tell of which
// engine the containers are, or don't.
func (k known) unnamed(engine string) known {
	if k.Pod != nil {
		k.Pod = &knownPod{UID: k.Pod.UID, QoS: k.Pod.QoS, Source: "cgroup"}
	}
	k.Containers = slices.Clone(k.Containers)
	for i := range k.Containers {
		c := &k.Containers[i]
		c.Engine, c.Name, c.Labels, c.Source = engine, nil, nil, "cgroup"
	}
	return k
}

// alone is what is known of a container that is in no Pod.
func (e engine) alone(c knownContainer) known {
	e.Helper()
	return known{
		PID: c.PID, CgroupPath: c.CgroupPath, CgroupID: c.CgroupID, Containers: []knownContainer{c},
		NetNS: inode(e, fmt.Sprintf("/proc/%d/ns/net", c.PID)), Interfaces: e.interfaces(c.PID),
	}
}

// onHost is the same in the network namespace of the host.
func (k known) onHost() known {
	k.HostNetwork, k.Interfaces = true, []knownInterface{}
	return k
}

// found checks that bpfnet finds an endpoint by everything that names it, and by
// further references.
func (e engine) found(k known, refs ...string) {
	e.Helper()
	refs = append(refs, "cgroup:"+k.CgroupPath)
	if k.Pod != nil {
		refs = append(refs, "pod:"+k.Pod.UID)
	}
	for _, c := range k.Containers {
		refs = append(refs, "container:"+c.ID[:len(c.ID)/2], fmt.Sprintf("pid:%d", c.PID), "cgroup:"+c.CgroupPath)
	}
	for _, i := range k.Interfaces {
		refs = append(append(refs, "dev:"+i.DevName, fmt.Sprintf("netns:%d", k.NetNS)), i.Addresses...)
	}
	for _, ref := range refs {
		e.is(ref, k)
	}
}

// is checks what bpfnet shows for a reference.
func (e engine) is(ref string, k known) {
	e.Helper()
	e.are([]known{k}, "show", ref)
}

// are checks which of the test's endpoints a command prints.
func (e engine) are(want []known, command ...string) {
	e.Helper()
	got := e.endpoints(asKnown, command...)
	var list []known
	if err := json.Unmarshal([]byte(got), &list); err == nil {
		got = text(list...)
	}
	if want := text(want...); got != want {
		e.Errorf("endpoint %q:\n%s, want\n%s", command, got, want)
	}
}

// endpoint is what bpfnet shows of the test's endpoints.
func (e engine) endpoint(ref, filter string) string {
	e.Helper()
	return e.endpoints(filter, "show", ref)
}

func (e engine) endpoints(filter string, command ...string) string {
	e.Helper()
	out, err := e.bpfnet(slices.Concat([]string{"endpoint"}, command, []string{"-q", "-o", "json"})...).CombinedOutput()
	if err != nil {
		return strings.TrimSpace(string(out))
	}
	return jq(e, `map(select(.cgroup_path | startswith("`+e.cgroup+`/"))) | `+filter, string(out))
}

// ipDevice is an interface as ip says it is.
type ipDevice struct {
	IfIndex   int    `json:"ifindex"`
	IfName    string `json:"ifname"`
	LinkIndex int    `json:"link_index"`
	Addresses []struct {
		Local, Scope string
	} `json:"addr_info"`
	Stats struct {
		RX, TX struct{ Bytes, Packets uint64 }
	} `json:"stats64"`
}

// devices lists interfaces with their addresses and counters, as ip(8) sees them in
// a network namespace.
func (e engine) devices(namespace string) (list []ipDevice) {
	e.Helper()
	out := e.run(exec.Command("nsenter", "--net="+namespace, "ip", "-s", "-j", "addr", "show"))
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		e.Fatalf("%v: %s", err, out)
	}
	return list
}

// cgroupID is the id of a cgroup, the inode of its directory.
func (e engine) cgroupID(path string) string {
	e.Helper()
	mount, err := probe.Cgroup2Mount()
	if err != nil {
		e.Fatal(err)
	}
	return fmt.Sprint(inode(e, filepath.Join(mount, path)))
}

// inode is that of a file.
func inode(t testing.TB, path string) uint64 {
	t.Helper()
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		t.Fatalf("stat %s: %v", path, err)
	}
	return stat.Ino
}

// interfaces are the veth pairs that a process' network namespace has with that of
// the engine.
func (e engine) interfaces(pid int) (list []knownInterface) {
	e.Helper()
	inner, outer := e.devices(fmt.Sprintf("/proc/%d/ns/net", pid)), e.devices("/run/netns/"+e.namespace)
	for _, in := range inner {
		for _, out := range outer {
			if in.LinkIndex == 0 || in.LinkIndex != out.IfIndex || out.LinkIndex != in.IfIndex {
				continue
			}
			i := knownInterface{DevName: out.IfName, IfIndex: out.IfIndex, InnerDevName: in.IfName, InnerIfIndex: in.IfIndex}
			for _, a := range in.Addresses {
				if a.Scope == "global" {
					i.Addresses = append(i.Addresses, a.Local)
				}
			}
			list = append(list, i)
		}
	}
	return list
}
