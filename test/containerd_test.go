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

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

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
	n.sockets = []string{"--cri-socket", n.socket}
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
	_, i := n.status(p.sandbox)
	namespace := i.netns()
	n.Cleanup(func() {
		if err := n.removePod(p.sandbox); err != nil {
			n.Error(err)
		}
		if _, err := os.Stat(namespace); namespace != "" && err == nil {
			n.Errorf("left behind: %s", namespace)
		}
	})
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

// removePod stops and removes a Pod, if it is there.
func (n criNode) removePod(sandbox string) error {
	// Not the test's context, which has ended when things are cleaned up.
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	_, err := n.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: sandbox})
	if status.Code(err) == codes.NotFound {
		return nil
	}
	if err == nil {
		_, err = n.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: sandbox})
	}
	return err
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

// info is what containerd says of a container beyond CRI.
type info struct {
	PID  int `json:"pid"`
	Spec struct {
		Linux struct {
			CgroupsPath string                        `json:"cgroupsPath"`
			Namespaces  []struct{ Type, Path string } `json:"namespaces"`
		} `json:"linux"`
	} `json:"runtimeSpec"`
}

// verbose reads an answer of containerd about a container that runs.
func verbose(t testing.TB, answer map[string]string) (i info) {
	t.Helper()
	if err := json.Unmarshal([]byte(answer["info"]), &i); err != nil || i.PID == 0 {
		t.Fatalf("%v: %s", err, answer)
	}
	return i
}

// netns is the path of its network namespace, which is among everybody's in
// /run/netns; "" is the host's.
func (i info) netns() string {
	for _, ns := range i.Spec.Linux.Namespaces {
		if ns.Type == "network" {
			return ns.Path
		}
	}
	return ""
}

// container makes what is known of a container from what containerd says.
func (n criNode) container(id string, i info, name *string, labels map[string]string) knownContainer {
	n.Helper()
	place := i.Spec.Linux.CgroupsPath
	return knownContainer{Engine: "containerd", ID: id, Name: name, Labels: labels, Source: "cri", PID: i.PID, CgroupPath: place, CgroupID: n.cgroupID(place)}
}

// status is what containerd says of a Pod's sandbox.
func (n criNode) status(sandbox string) (*cri.PodSandboxStatus, info) {
	n.Helper()
	answer, err := n.runtime.PodSandboxStatus(n.Context(), &cri.PodSandboxStatusRequest{PodSandboxId: sandbox, Verbose: true})
	if err != nil {
		n.Fatal(err)
	}
	return answer.Status, verbose(n, answer.Info)
}

// knows returns what is known of a Pod.
func (n criNode) knows(p pod) known {
	n.Helper()
	status, i := n.status(p.sandbox)
	parent := p.config.Linux.CgroupParent
	qos := path.Base(path.Dir(parent))
	if qos == "kubepods" {
		qos = "guaranteed"
	}
	k := n.alone(n.container(p.sandbox, i, nil, map[string]string{}))
	k.CgroupPath, k.CgroupID = parent, n.cgroupID(parent)
	metadata := status.Metadata
	k.Pod = &knownPod{
		UID: metadata.Uid, QoS: qos, Namespace: &metadata.Namespace, Name: &metadata.Name, Source: "cri",
		Labels: map[string]string{"app": status.Labels["app"]},
	}
	if p.config.Linux.SecurityContext.NamespaceOptions.Network == cri.NamespaceMode_NODE {
		k = k.onHost()
	} else if ips := addressesOf(status.Network); !slices.Equal(ips, k.Interfaces[0].Addresses) {
		n.Fatalf("addresses: CRI has %q, ip %q", ips, k.Interfaces[0].Addresses)
	}
	for _, id := range p.containers {
		answer, err := n.runtime.ContainerStatus(n.Context(), &cri.ContainerStatusRequest{ContainerId: id, Verbose: true})
		if err != nil {
			n.Fatal(err)
		}
		k.Containers = append(k.Containers, n.container(id, verbose(n, answer.Info), &answer.Status.Metadata.Name, answer.Status.Labels))
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

// CRI's Pods are what containerd says that they are, by whatever one looks for them,
// and without asking containerd all but their names.
func TestPods(t *testing.T) {
	n := newContainerd(t)
	web := n.knows(n.runPod(n.podConfig("web", newUID(t), "besteffort"), "nginx", "logs"))
	client := n.knows(n.runPod(n.podConfig("client", newUID(t), ""), "client"))
	host := n.knows(n.runPod(onHost(n.podConfig("host", newUID(t), "burstable")), "agent"))
	static := n.knows(n.runPod(n.podConfig("static", newStaticUID(t), "burstable"), "etcd"))
	n.found(web, "pod:shop/web", "container:nginx", "container:shop/web/logs")
	n.found(client, "pod:shop/client")
	n.found(host, "pod:shop/host", "container:agent")
	n.found(static, "pod:shop/static", "container:etcd")
	alone := n.engine
	alone.sockets = nil
	for _, k := range []known{web, client} {
		alone.is("pod:"+k.Pod.UID, k.unnamed("unknown"))
	}
	all := []known{web, client, host, static}
	slices.SortFunc(all, func(a, b known) int { return strings.Compare(a.CgroupPath, b.CgroupPath) })
	n.are(all, "list")
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
		k := n.runCtr(containerID(t), path.Join(n.cgroup, c.cgroup))
		if c.uid != "" {
			k.CgroupPath = path.Dir(k.CgroupPath)
			k.CgroupID = n.cgroupID(k.CgroupPath)
			k.Pod = &knownPod{UID: c.uid, QoS: c.qos, Source: "cgroup"}
		}
		if len(k.Interfaces) != 1 || len(k.Interfaces[0].Addresses) != 2 {
			t.Fatalf("interfaces: %s", text(k))
		}
		bare := n
		bare.sockets = nil
		bare.found(k.unnamed(c.engine))
		if c.engine != "unknown" {
			k.Containers[0].Engine = c.engine
		}
		n.is("container:"+k.Containers[0].ID, k)
	}
	// Of a container that a person named only containerd knows where it is. The name is
	// the test's: runc has one place for all containerds.
	name := testkit.Name(t)
	n.found(n.runCtr(name, path.Join(n.cgroup, "plain", name)), "container:"+name)
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

// runCtr starts a container in a network namespace, and in a cgroup whose name may
// have ID for its id.
func (n criNode) runCtr(id, cgroup string) known {
	n.Helper()
	cgroup = strings.ReplaceAll(cgroup, "ID", id)
	n.ctr("plain", "run", "-d", "--snapshotter", "native", "--cpu-shares", "0", "--cgroup", cgroup, "--label", "app=web",
		"--with-ns", "network:"+n.cni(), image, id)
	n.Cleanup(func() {
		n.ctr("plain", "task", "rm", "-f", id)
		n.ctr("plain", "container", "rm", id)
	})
	fields := strings.Fields(n.ctr("plain", "task", "ps", id)) // PID INFO 812 -
	pid, err := strconv.Atoi(fields[2])
	if err != nil {
		n.Fatalf("%q", fields)
	}
	var container struct{ Labels map[string]string }
	if err := json.Unmarshal([]byte(n.ctr("plain", "container", "info", id)), &container); err != nil {
		n.Fatal(err)
	}
	c := knownContainer{
		Engine: "containerd", ID: id, Labels: container.Labels, Source: "containerd", PID: pid, CgroupPath: cgroup, CgroupID: n.cgroupID(cgroup),
	}
	if len(id) < 64 {
		c.Name = &id
	}
	return n.alone(c)
}
