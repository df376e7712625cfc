package test

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// dockerHost is a dockerd.
type dockerHost struct{ engine }

// newDocker starts the Docker of test/engines.
func newDocker(t *testing.T) dockerHost {
	t.Helper()
	d := dockerHost{newEngine(t)}
	socket := "unix://" + d.dir + "/socket"
	d.sockets = []string{"--docker-socket", socket}
	d.env = append(d.env, "DOCKER_HOST="+socket)
	d.start(d.within("dockerd",
		"--data-root", d.dir+"/root", "--exec-root", d.dir+"/exec", "--pidfile", d.dir+"/pid", "--host", socket,
		"--iptables=false", "--ip6tables=false", "--bip", "10.204.0.1/24", "--ipv6", "--fixed-cidr-v6", "fd77:204::/64",
		"--cgroup-parent", d.cgroup+"/docker", "--exec-opt", "native.cgroupdriver=cgroupfs"),
		func() error { return d.command("docker", "info").Run() })
	t.Cleanup(func() { _ = d.command("sh", "-c", "docker ps -aq | xargs -r docker rm -f").Run() })
	d.docker("load", "-i", d.image())
	return d
}

// docker runs the client.
func (d dockerHost) docker(args ...string) string {
	d.Helper()
	return d.run(d.command("docker", args...))
}

// sleeper starts a container that sleeps.
func (d dockerHost) sleeper(name, network string) known {
	d.Helper()
	id := d.docker("run", "-d", "--name", name, "--network", network, "--label", "app="+name, "sleeper:1")
	pid, err := strconv.Atoi(d.docker("inspect", "-f", "{{.State.Pid}}", name))
	if err != nil {
		d.Fatal(err)
	}
	cgroup := d.cgroup + "/docker/" + id
	return d.alone(knownContainer{
		Engine: "docker", ID: id, Name: &name, Labels: map[string]string{"app": name}, Source: "docker",
		PID: pid, CgroupPath: cgroup, CgroupID: d.cgroupID(cgroup),
	})
}

// Containers of a real Docker are what Docker says that they are.
func TestDocker(t *testing.T) {
	d := newDocker(t)
	web, host := d.sleeper("web", "bridge"), d.sleeper("host", "host").onHost()
	addresses := strings.Fields(d.docker("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.GlobalIPv6Address}}{{end}}", "web"))
	if len(addresses) != 2 || !slices.Equal(addresses, web.Interfaces[0].Addresses) {
		t.Fatalf("addresses: Docker has %q, ip %q", addresses, web.Interfaces[0].Addresses)
	}
	d.found(web, "container:web")
	d.found(host, "container:host")
	bare := d.engine
	bare.sockets = nil
	bare.is("container:"+web.Containers[0].ID, web.unnamed("docker"))

	beside := d.sleeper("beside", "container:web")
	d.is("container:beside", beside)
	for _, ref := range append(addresses, "dev:"+web.Interfaces[0].DevName, fmt.Sprintf("netns:%d", web.NetNS)) {
		if got := d.endpoint(ref, `[.[] | select(.host_network == false) | .containers[0].name] | sort | join(" ")`); got != "beside web" {
			t.Errorf("%s: %s", ref, got)
		}
	}
	d.watched(web)
	d.docker("rm", "-f", "beside", "web")
	d.found(d.sleeper("web", "bridge"), "container:web", addresses[0])
	if got := d.endpoint("container:"+web.Containers[0].ID, "."); !strings.Contains(got, `"not_found"`) {
		t.Errorf("the container that has gone: %s", got)
	}
}

// watched counts a container's traffic, and looks at it by the pid that Docker
// tells.
func (d dockerHost) watched(web known) {
	d.Helper()
	d.must("load", "pod-traffic")
	d.must("attach", "tc", "pod-traffic", "--container", "web", "--direction", "both")
	d.docker("exec", "web", "busybox", "ping", "-q", "-c1", "10.204.0.1")
	for name, want := range map[string]string{"web": `["web",true]`, "host": "[]"} {
		cmd := d.command("bash", "-c", `docker inspect -f '{{.State.Pid}}' "$0" | xargs "$@"`, name)
		cmd.Args = append(cmd.Args, d.bpfnet("watch", "pods", "--once", "-o", "json", "--pid").Args...)
		cmd.Env = append(os.Environ(), "BPFNET_BPFFS="+d.root)
		filter := `[.pods[] | select(.address == "` + web.Interfaces[0].Addresses[0] + `") | .container, .transmit_packets > 0] | tojson`
		if got := jq(d, filter, d.run(cmd)); got != want {
			d.Errorf("watched by the pid of %s: %s, want %s", name, got, want)
		}
	}
	d.must("unload", "pod-traffic", "--detach")
}
