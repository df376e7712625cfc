package test

import (
	"encoding/json"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"bpfnet/internal/probe"
	"bpfnet/internal/testkit"
)

// podmanHost is a Podman, which has no daemon.
type podmanHost struct {
	engine
	network string // its name is the test's: addresses are noted in one place for all Podmans
}

func newPodman(t *testing.T) podmanHost {
	t.Helper()
	p := podmanHost{newEngine(t), testkit.Name(t)}
	p.write("containers.conf", `[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"] # no more than containers may have
pids_limit = 0 # needs no controller
seccomp_profile = "PACKAGES/root/usr/share/containers/seccomp.json"
[engine]
cgroup_manager = "cgroupfs"
runtime = "runc"
events_logger = "none"
lock_type = "file"
helper_binaries_dir = ["PACKAGES/podman"]
conmon_path = ["PACKAGES/bin/conmon"]
conmon_env_vars = ["PATH=`+p.path()+`", "LD_LIBRARY_PATH=PACKAGES/lib"]
[engine.runtimes]
runc = ["PACKAGES/bin/runc"]
[network]
network_backend = "netavark"
`)
	p.write("rootfs/bin/.keep", "")
	p.run(p.command("cp", p.packages+"/bin/busybox", p.dir+"/rootfs/bin/busybox"))
	p.env = append(p.env, "CONTAINERS_CONF="+p.dir+"/containers.conf", "NETAVARK_FW=iptables", "XTABLES_LIBDIR="+p.packages+"/xtables")
	t.Cleanup(func() {
		p.podman("rm", "--all", "--force", "--time", "0")
		p.podman("network", "rm", p.network)
	})
	p.podman("network", "create", "--subnet", "10.206.0.0/24", "--ipv6", "--subnet", "fd77:206::/64", "--internal", "--disable-dns", p.network)
	socket := p.dir + "/p.sock"
	p.start(p.podmanCommand("system", "service", "--time", "0", "unix://"+socket), func() error { _, err := os.Stat(socket); return err })
	p.sockets = []string{"--docker-socket", socket}
	return p
}

// podman runs the command.
func (p podmanHost) podman(args ...string) string {
	p.Helper()
	return p.run(p.podmanCommand(args...))
}

func (p podmanHost) podmanCommand(args ...string) *exec.Cmd {
	return p.within("podman", append([]string{"--root", p.dir + "/root", "--runroot", p.dir + "/run", "--tmpdir", p.dir + "/tmp",
		"--network-config-dir", p.dir + "/net", "--storage-driver", "vfs"}, args...)...)
}

// sleeper starts a container that sleeps.
func (p podmanHost) sleeper(name, network string) knownContainer {
	p.Helper()
	id := p.podman("run", "-d", "--name", name, "--network", network, "--cgroup-parent", p.cgroup+"/podman", "--label", "app="+name,
		"--rootfs", p.dir+"/rootfs", "/bin/busybox", "sleep", "600")
	var state struct {
		PID        int `json:"Pid"`
		CgroupPath string
	}
	if err := json.Unmarshal([]byte(p.podman("inspect", "-f", "{{json .State}}", name)), &state); err != nil {
		p.Fatal(err)
	}
	return knownContainer{
		Engine: "podman", ID: id, Name: &name, Labels: map[string]string{"app": name}, Source: "podman",
		PID: state.PID, CgroupPath: state.CgroupPath, CgroupID: p.cgroupID(state.CgroupPath),
	}
}

// Containers of a real Podman are what Podman says that they are.
func TestPodman(t *testing.T) {
	p := newPodman(t)
	web, host := p.alone(p.sleeper("web", p.network)), p.alone(p.sleeper("host", "host")).onHost()
	addresses := strings.Fields(p.podman("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.GlobalIPv6Address}}{{end}}", "web"))
	if len(addresses) != 2 || !slices.Equal(addresses, web.Interfaces[0].Addresses) {
		t.Fatalf("addresses: Podman has %q, ip %q", addresses, web.Interfaces[0].Addresses)
	}
	p.found(web, "container:web")
	p.found(host, "container:host")
	p.sockets = nil
	p.is("container:"+web.Containers[0].ID, web.unnamed("podman"))
}

// The same where /sys/fs/cgroup is cgroup2 and nothing else.
func TestPodmanUnified(t *testing.T) {
	testkit.NeedsKernel(t)
	needsPackages(t)
	if mount, err := probe.Cgroup2Mount(); err == nil && mount == "/sys/fs/cgroup" {
		return // it always is here
	}
	cmd := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-ec",
		`umount -l /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup; exec "$@"`, "sh", os.Args[0], "-test.run=^TestPodman$", "-test.v")
	cmd.Env = append(os.Environ(), "BPFNET_BINARY="+binary)
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestPodman") {
		t.Errorf("%v\n%s", err, out)
	}
}
