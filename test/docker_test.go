package test

import (
	"bytes"
	"fmt"
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

// Containers of a real Docker are what Docker says that they are: by their id, pid,
// addresses, interface and cgroup.
func TestDocker(t *testing.T) {
	d := newDocker(t)
	web := d.docker("run", "-d", "--name", "web", "sleeper:1")
	beside := d.docker("run", "-d", "--name", "beside", "--network", "container:web", "sleeper:1")
	host := d.docker("run", "-d", "--name", "host", "--network", "host", "sleeper:1")
	addresses := strings.Fields(d.docker("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.GlobalIPv6Address}}{{end}}", "web"))
	if len(addresses) != 2 {
		t.Fatalf("addresses: %q", addresses)
	}
	for name, id := range map[string]string{"web": web, "beside": beside, "host": host} {
		pid := d.docker("inspect", "-f", "{{.State.Pid}}", name)
		want := fmt.Sprintf("%s docker %s %s/docker/%s %t", id, pid, d.cgroup, id, name == "host")
		for _, ref := range []string{"container:" + id, "container:" + id[:20], "pid:" + pid, "cgroup:" + d.cgroup + "/docker/" + id} {
			if got := d.endpoint(ref, `.[] | "\(.containers[0].id) \(.containers[0].engine) \(.process.pid) \(.cgroup_path) \(.host_network)"`); got != want {
				t.Errorf("%s: %q, want %q", ref, got, want)
			}
		}
	}
	dev := d.endpoint("container:"+web, ".[0].interfaces[0].devname")
	for _, ref := range append(addresses, "dev:"+dev) {
		if got := d.endpoint(ref, `[.[] | select(.host_network == false) | .containers[0].id] | sort == (["`+web+`", "`+beside+`"] | sort)`); got != "true" {
			t.Errorf("%s: %s", ref, d.endpoint(ref, "."))
		}
	}
	if got := d.endpoint("container:"+web, `.[0].interfaces[0].addresses | join(" ")`); got != strings.Join(addresses, " ") {
		t.Errorf("addresses: %s, Docker has %s", got, addresses)
	}
	d.watched(web)
	d.docker("rm", "-f", "beside", "web")
	again := d.docker("run", "-d", "--name", "web", "sleeper:1")
	if got := d.endpoint(addresses[0], `[.[].containers[0].id] | join(" ")`); got != again {
		t.Errorf("%s of a container of the same name: %s, want %s", addresses[0], got, again)
	}
	if got := d.endpoint("container:"+web, "."); !strings.Contains(got, `"not_found"`) {
		t.Errorf("the container that has gone: %s", got)
	}
}

// watched counts a container's traffic, and looks at it by the pid that Docker
// tells.
func (d dockerHost) watched(id string) {
	d.Helper()
	cmd := d.command("env", "NS="+d.namespace, "ID="+id, "BPFNET_BPFFS="+d.root, "BPFNET="+binary, "bash", "-euc", `
on() { nsenter --net=/run/netns/$NS "$@"; }
on $BPFNET load pod-traffic
on $BPFNET attach tc pod-traffic --container $ID --direction both
docker exec web /bin/busybox ping -q -c3 10.204.0.1 >&2
docker inspect -f '{{.State.Pid}}' web | on xargs $BPFNET watch pods -o json --once --pid | jq -c '.pods[] | select(.address == "10.204.0.2") | .transmit_packets >= 3'
docker inspect -f '{{.State.Pid}}' host | on xargs $BPFNET watch pods -o json --once --pid | jq '.pods | length'
on $BPFNET unload pod-traffic --detach`)
	var log bytes.Buffer
	cmd.Stderr = &log
	out, err := cmd.Output()
	if err != nil || !strings.Contains(string(out), "true\n0\n") {
		d.Errorf("watched: %v\n%s%s", err, out, &log)
	}
}
