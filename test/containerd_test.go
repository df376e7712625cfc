package test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"bpfnet/internal/probe"
	"bpfnet/internal/testkit"
)

// image is what containers are made of.
const image = "docker.io/library/sleeper:1"

// criNode is a containerd with its CRI and CNI's bridge, as a node of Kubernetes has
// it.
type criNode struct {
	engine
	socket  string
	archive string // image
	runtime cri.RuntimeServiceClient
}

// pod is a Pod that runs.
type pod struct {
	config     *cri.PodSandboxConfig
	sandbox    string   // id
	containers []string // ids
}

func newContainerd(t *testing.T) criNode {
	t.Helper()
	n := criNode{engine: newEngine(t)}
	n.socket, n.archive = n.dir+"/c.sock", n.image()
	n.write("config.toml", `version = 2
root = "DIR/root"
state = "DIR/state"
[debug]
  level = "warn"
[grpc]
  address = "DIR/c.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "DIR/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "`+image+`"
  disable_apparmor = true
  restrict_oom_score_adj = true # containers may have no CAP_SYS_RESOURCE
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "PACKAGES/cni"
    conf_dir = "DIR/net"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native" # works on every file system
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
`)
	n.write("net/bridge.conflist", `{"cniVersion": "1.0.0", "name": "pods", "plugins": [`+bridge+`]}`)
	n.run(n.within("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"))
	conn, err := grpc.NewClient("unix://"+n.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	n.runtime = cri.NewRuntimeServiceClient(conn)
	n.start(n.within("containerd", "-c", n.dir+"/config.toml"), func() error {
		if _, err := os.Stat(n.socket); err != nil {
			return err // grpc would wait for a second
		}
		_, err := n.runtime.Version(t.Context(), &cri.VersionRequest{})
		return err
	})
	t.Cleanup(n.removePods)
	n.ctr("k8s.io", "image", "import", "--snapshotter", "native", n.archive)
	images := cri.NewImageServiceClient(conn)
	n.soon("the image is known", func() error {
		list, err := images.ListImages(t.Context(), &cri.ListImagesRequest{})
		if err == nil && len(list.Images) == 0 {
			err = fmt.Errorf("no image")
		}
		return err
	})
	return n
}

// bridge is the configuration of CNI's plug-in of that name.
const bridge = `{"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
	"ipam": {"type": "host-local", "dataDir": "DIR/ipam", "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
		"ranges": [[{"subnet": "10.205.0.0/24"}], [{"subnet": "fd77:205::/64"}]]}}`

// ctr runs containerd's own client.
func (n criNode) ctr(namespace string, args ...string) string {
	n.Helper()
	return n.run(n.command("ctr", append([]string{"-a", n.socket, "-n", namespace}, args...)...))
}

// newUID makes the uid of a Pod.
func newUID(t testing.TB) string {
	t.Helper()
	id := containerID(t)
	return strings.Join([]string{id[:8], id[8:12], id[12:16], id[16:20], id[20:32]}, "-")
}

// newStaticUID makes the uid of a static Pod, which has no dashes.
func newStaticUID(t testing.TB) string {
	t.Helper()
	return strings.ReplaceAll(newUID(t), "-", "")
}

// podConfig describes a Pod of the namespace "shop", as a kubelet does.
func (n criNode) podConfig(name, uid, qos string) *cri.PodSandboxConfig {
	labels := map[string]string{
		"app": name, "io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": "shop", "io.kubernetes.pod.uid": uid,
	}
	return &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: name, Namespace: "shop", Uid: uid},
		Hostname: name,
		Labels:   labels,
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent:    path.Join(n.cgroup, "kubepods", qos, "pod"+uid),
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}},
		},
	}
}

// onHost puts a Pod into the network namespace of the host.
func onHost(config *cri.PodSandboxConfig) *cri.PodSandboxConfig {
	config.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	config.Hostname = ""
	return config
}

// runPod starts a Pod with containers of these names.
func (n criNode) runPod(config *cri.PodSandboxConfig, containers ...string) pod {
	n.Helper()
	sandbox, err := n.runtime.RunPodSandbox(n.Context(), &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		n.Fatal(err)
	}
	p := pod{config: config, sandbox: sandbox.PodSandboxId}
	for _, name := range containers {
		p.containers = append(p.containers, n.runContainer(p, name))
	}
	return p
}

func (n criNode) runContainer(p pod, name string) (id string) {
	n.Helper()
	container, err := n.runtime.CreateContainer(n.Context(), &cri.CreateContainerRequest{
		PodSandboxId: p.sandbox, SandboxConfig: p.config,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: name},
			Image:    &cri.ImageSpec{Image: image},
			Labels:   map[string]string{"io.kubernetes.container.name": name},
			Linux:    &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: p.config.Linux.SecurityContext.NamespaceOptions}},
		},
	})
	if err != nil {
		n.Fatal(err)
	}
	if _, err := n.runtime.StartContainer(n.Context(), &cri.StartContainerRequest{ContainerId: container.ContainerId}); err != nil {
		n.Fatal(err)
	}
	return container.ContainerId
}

// removePod stops and removes a Pod.
func (n criNode) removePod(sandbox string) error {
	// Not the test's context, which has ended when things are cleaned up.
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	_, err := n.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: sandbox})
	if err == nil {
		_, err = n.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: sandbox})
	}
	return err
}

func (n criNode) removePods() {
	list, err := n.runtime.ListPodSandbox(context.Background(), &cri.ListPodSandboxRequest{})
	if err != nil {
		n.Error(err)
		return
	}
	for _, p := range list.Items {
		if err := n.removePod(p.Id); err != nil {
			n.Error(err)
		}
	}
}

// exec runs a command in a container and returns what it prints.
func (n criNode) exec(id string, command ...string) string {
	n.Helper()
	out, err := n.runtime.ExecSync(n.Context(), &cri.ExecSyncRequest{ContainerId: id, Cmd: command, Timeout: 10})
	if err != nil {
		n.Fatalf("%q: %v", command, err)
	}
	if out.ExitCode != 0 {
		n.Fatalf("%q: exit %d\n%s%s", command, out.ExitCode, out.Stdout, out.Stderr)
	}
	return strings.TrimSpace(string(out.Stdout))
}

// known is what the engine and ip(8) say of a Pod or a container, in the words of
// bpfnet's documents.
type known struct {
	UID         *string          `json:"uid"` // nil: no Pod
	QoS         *string          `json:"qos"`
	PID         int              `json:"pid"`
	CgroupPath  string           `json:"cgroup_path"`
	CgroupID    string           `json:"cgroup_id"`
	NetNS       uint64           `json:"netns"`
	HostNetwork bool             `json:"host_network"`
	Interfaces  []knownInterface `json:"interfaces"`
	Containers  []knownContainer `json:"containers"`
}

type knownInterface struct {
	DevName      string   `json:"devname"`
	IfIndex      int      `json:"ifindex"`
	InnerDevName string   `json:"inner_devname"`
	InnerIfIndex int      `json:"inner_ifindex"`
	Addresses    []string `json:"addresses"`
}

type knownContainer struct {
	ID         string `json:"id"`
	PID        int    `json:"pid"`
	CgroupPath string `json:"cgroup_path"`
	CgroupID   string `json:"cgroup_id"`
}

// asKnown makes the same of what bpfnet says.
const asKnown = `map({uid: .pod.uid, qos: .pod.qos, pid: .process.pid, cgroup_path, cgroup_id, netns, host_network,
	interfaces: [.interfaces[] | {devname, ifindex, inner_devname, inner_ifindex, addresses}],
	containers: [.containers[] | {id, pid: .process.pid, cgroup_path, cgroup_id}]}) | tojson`

// text is what asKnown prints of this alone.
func (k known) text() string {
	text, _ := json.Marshal([]known{k})
	return string(text)
}

// info is what containerd says of a container beyond CRI.
type info struct {
	PID  int `json:"pid"`
	Spec struct {
		Linux struct {
			CgroupsPath string `json:"cgroupsPath"`
		} `json:"linux"`
	} `json:"runtimeSpec"`
}

// container makes what is known of a container from what containerd says.
func (n criNode) container(id, verbose string) knownContainer {
	n.Helper()
	var i info
	if err := json.Unmarshal([]byte(verbose), &i); err != nil || i.PID == 0 {
		n.Fatalf("%v: %s", err, verbose)
	}
	return knownContainer{ID: id, PID: i.PID, CgroupPath: i.Spec.Linux.CgroupsPath, CgroupID: n.cgroupID(i.Spec.Linux.CgroupsPath)}
}

// alone is what is known of a container that is in no Pod.
func (e engine) alone(c knownContainer) known {
	e.Helper()
	return known{
		PID: c.PID, CgroupPath: c.CgroupPath, CgroupID: c.CgroupID, Containers: []knownContainer{c},
		NetNS: inode(e, fmt.Sprintf("/proc/%d/ns/net", c.PID)), Interfaces: e.interfaces(c.PID),
	}
}

// knows returns what is known of a Pod.
func (n criNode) knows(p pod) known {
	n.Helper()
	status, err := n.runtime.PodSandboxStatus(n.Context(), &cri.PodSandboxStatusRequest{PodSandboxId: p.sandbox, Verbose: true})
	if err != nil {
		n.Fatal(err)
	}
	first := n.container(p.sandbox, status.Info["info"])
	parent := p.config.Linux.CgroupParent
	qos := path.Base(path.Dir(parent))
	if qos == "kubepods" {
		qos = "guaranteed"
	}
	k := n.alone(first)
	k.UID, k.QoS, k.CgroupPath, k.CgroupID = &status.Status.Metadata.Uid, &qos, parent, n.cgroupID(parent)
	if k.HostNetwork = p.config.Linux.SecurityContext.NamespaceOptions.Network == cri.NamespaceMode_NODE; k.HostNetwork {
		k.Interfaces = []knownInterface{}
	} else if ips := addressesOf(status.Status.Network); !slices.Equal(ips, k.Interfaces[0].Addresses) {
		n.Fatalf("addresses: CRI has %q, ip %q", ips, k.Interfaces[0].Addresses)
	}
	for _, id := range p.containers {
		status, err := n.runtime.ContainerStatus(n.Context(), &cri.ContainerStatusRequest{ContainerId: id, Verbose: true})
		if err != nil {
			n.Fatal(err)
		}
		k.Containers = append(k.Containers, n.container(id, status.Info["info"]))
	}
	return k
}

func addressesOf(status *cri.PodSandboxNetworkStatus) []string {
	addresses := []string{status.Ip}
	for _, ip := range status.AdditionalIps {
		addresses = append(addresses, ip.Ip)
	}
	return addresses
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

// CRI's Pods are what containerd says that they are, by whatever one looks for them.
func TestPods(t *testing.T) {
	n := newContainerd(t)
	web := n.runPod(n.podConfig("web", newUID(t), "besteffort"), "nginx", "logs")
	pods := map[string]pod{
		"web":    web,
		"client": n.runPod(n.podConfig("client", newUID(t), ""), "client"),
		"host":   n.runPod(onHost(n.podConfig("host", newUID(t), "burstable")), "agent"),
		"static": n.runPod(n.podConfig("static", newStaticUID(t), "burstable"), "etcd"),
	}
	for name, p := range pods {
		n.found(name, n.knows(p))
	}
}

// found checks that bpfnet finds an endpoint by everything that names it.
func (e engine) found(name string, k known) {
	e.Helper()
	refs := []string{"cgroup:" + k.CgroupPath}
	if k.UID != nil {
		refs = append(refs, "pod:"+*k.UID)
	}
	for _, c := range k.Containers {
		refs = append(refs, "container:"+c.ID, "container:"+c.ID[:16], fmt.Sprintf("pid:%d", c.PID), "cgroup:"+c.CgroupPath)
	}
	for _, i := range k.Interfaces {
		refs = append(append(refs, "dev:"+i.DevName, fmt.Sprintf("netns:%d", k.NetNS)), i.Addresses...)
	}
	for _, ref := range refs {
		if got := e.endpoint(ref, asKnown); got != k.text() {
			e.Errorf("%s: %s is\n%s, want\n%s", name, ref, got, k.text())
		}
	}
}

// Containers that containerd runs without CRI are found, with the names that cgroups
// have under systemd, too.
func TestContainerd(t *testing.T) {
	n := newContainerd(t)
	n.ctr("plain", "image", "import", "--snapshotter", "native", n.archive)
	uid, other, static := newUID(t), newUID(t), newStaticUID(t)
	scored := strings.ReplaceAll(uid, "-", "_")
	for _, c := range []struct{ cgroup, uid, qos, engine string }{
		{"k8s.io/ID", "", "", "containerd"},
		{"parent/ID", "", "", "unknown"},
		{"system.slice/nerdctl-ID.scope", "", "", "containerd"},
		{"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + scored + ".slice/cri-containerd-ID.scope", uid, "burstable", "containerd"},
		{"kubepods.slice/kubepods-pod" + static + ".slice/crio-ID.scope", static, "guaranteed", "crio"},
		{"kubelet/kubepods/besteffort/pod" + other + "/ID", other, "besteffort", "unknown"},
	} {
		id := containerID(t)
		cgroup := path.Join(n.cgroup, strings.ReplaceAll(c.cgroup, "ID", id))
		namespace := n.cni()
		pid := n.runCtr(id, cgroup, namespace)
		k := n.alone(knownContainer{ID: id, PID: pid, CgroupPath: cgroup, CgroupID: n.cgroupID(cgroup)})
		if c.uid != "" {
			parent := path.Dir(cgroup)
			k.UID, k.QoS, k.CgroupPath, k.CgroupID = &c.uid, &c.qos, parent, n.cgroupID(parent)
		}
		if len(k.Interfaces) != 1 || len(k.Interfaces[0].Addresses) != 2 {
			t.Fatalf("interfaces: %s", k.text())
		}
		n.found(c.cgroup, k)
		if got := n.endpoint("container:"+id, ".[0].containers[0].engine"); got != c.engine {
			t.Errorf("%s: engine %s, want %s", c.cgroup, got, c.engine)
		}
	}
}

// cni makes a network namespace with an interface on the bridge, and returns its
// path: "ctr run" can't, but with files in /etc.
func (n criNode) cni() string {
	n.Helper()
	namespace := testkit.NetNS(n.T)
	config := strings.ReplaceAll(`{"cniVersion": "1.0.0", "name": "pods", `+bridge[1:], "DIR", n.dir)
	plugin := func(command string) {
		n.Helper()
		cmd := n.within("env", "CNI_COMMAND="+command, "CNI_CONTAINERID="+filepath.Base(namespace), "CNI_NETNS="+namespace, "CNI_IFNAME=eth0",
			"CNI_PATH="+n.packages+"/cni", n.packages+"/cni/bridge")
		cmd.Stdin = strings.NewReader(config)
		n.run(cmd)
	}
	plugin("ADD")
	n.Cleanup(func() { plugin("DEL") })
	return namespace
}

// runCtr starts a container in a cgroup and a network namespace.
func (n criNode) runCtr(id, cgroup, namespace string) (pid int) {
	n.Helper()
	n.ctr("plain", "run", "-d", "--snapshotter", "native", "--cpu-shares", "0", "--cgroup", cgroup, "--with-ns", "network:"+namespace, image, id)
	n.Cleanup(func() {
		n.ctr("plain", "task", "rm", "-f", id)
		n.ctr("plain", "container", "rm", id)
	})
	fields := strings.Fields(n.ctr("plain", "task", "ps", id)) // PID INFO 812 -
	pid, err := strconv.Atoi(fields[2])
	if err != nil {
		n.Fatalf("%q", fields)
	}
	return pid
}
