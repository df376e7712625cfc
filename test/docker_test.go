package test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bpfnet/internal/testkit"
)

// dockerHost is a dockerd in a network namespace of its own, whose containers have
// their cgroups below one of the test's.
type dockerHost struct {
	*testing.T
	bin, dir, namespace, cgroup string
}

// newDocker starts the Docker of test/engines.
func newDocker(t *testing.T) dockerHost {
	t.Helper()
	out, err := exec.Command("./engines").Output()
	if err != nil {
		t.Skipf("Debian's packages of Docker can't be fetched: %v", err)
	}
	d := dockerHost{T: t, bin: strings.TrimSpace(string(out)), dir: t.TempDir()}
	d.namespace = filepath.Base(testkit.NetNS(t))
	d.cgroup = "/" + filepath.Base(testkit.Cgroup(t))
	t.Cleanup(d.clear)
	daemon := d.command("nsenter", "--net=/run/netns/"+d.namespace, "--", filepath.Join(d.bin, "dockerd"),
		"--data-root", d.dir+"/root", "--exec-root", d.dir+"/exec", "--pidfile", d.dir+"/pid", "--host", d.socket(),
		"--iptables=false", "--ip6tables=false", "--bip", "10.204.0.1/24", "--ipv6", "--fixed-cidr-v6", "fd77:204::/64",
		"--cgroup-parent", d.cgroup+"/docker", "--exec-opt", "native.cgroupdriver=cgroupfs")
	log := &bytes.Buffer{}
	daemon.Stdout, daemon.Stderr = log, log
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = daemon.Process.Signal(os.Interrupt)
		_ = daemon.Wait()
		if t.Failed() {
			t.Logf("dockerd:\n%s", log)
		}
	})
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		out, err := d.command("docker", "info").CombinedOutput()
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("dockerd doesn't answer: %s", out)
		}
	}
	t.Cleanup(func() { _ = d.command("sh", "-c", "docker ps -aq | xargs -r docker rm -f").Run() })
	d.importImage()
	return d
}

func (d dockerHost) socket() string { return "unix://" + d.dir + "/socket" }

// command returns a command that finds Docker's, and its daemon.
func (d dockerHost) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command("env", append([]string{"PATH=" + d.bin + ":" + os.Getenv("PATH"), "DOCKER_HOST=" + d.socket(), name}, args...)...)
	return cmd
}

// docker runs the client.
func (d dockerHost) docker(args ...string) string {
	d.Helper()
	out, err := d.command("docker", args...).CombinedOutput()
	if err != nil {
		d.Fatalf("docker %q: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// importImage makes an image of busybox, which sleeps.
func (d dockerHost) importImage() {
	d.Helper()
	out, err := d.command("sh", "-c", `tar -C "$0" -chf - busybox | docker import --change 'ENTRYPOINT ["/busybox", "sleep", "600"]' - sleeper`, d.bin).CombinedOutput()
	if err != nil {
		d.Fatalf("import image: %v\n%s", err, out)
	}
}

// clear takes away what the daemon leaves: a mount, and cgroups of version 1.
func (d dockerHost) clear() {
	script := `
awk -v dir="$0/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | sort -r | xargs -r umount -l
awk -F ' - ' '$2 ~ /^cgroup2? / { split($1, f, " "); print f[5] }' /proc/self/mountinfo | while read -r mount; do
	[ ! -d "$mount$1" ] || find "$mount$1" -depth -type d -exec rmdir {} +
done`
	if out, err := exec.Command("bash", "-c", script, d.dir, d.cgroup).CombinedOutput(); err != nil {
		d.Errorf("clean up: %v\n%s", err, out)
	}
}

// endpoint is what bpfnet shows of the test's endpoints.
func (d dockerHost) endpoint(ref, filter string) string {
	d.Helper()
	out, err := exec.Command(binary, "--netns", d.namespace, "endpoint", "show", ref, "-q", "-o", "json").CombinedOutput()
	if err != nil {
		return strings.TrimSpace(string(out))
	}
	return jq(d, `map(select(.cgroup_path | startswith("`+d.cgroup+`/"))) | `+filter, string(out))
}

// Containers of a real Docker are what Docker says that they are: by their id, pid,
// addresses, interface and cgroup.
func TestDocker(t *testing.T) {
	testkit.NeedsKernel(t)
	d := newDocker(t)
	web := d.docker("run", "-d", "--name", "web", "sleeper")
	beside := d.docker("run", "-d", "--name", "beside", "--network", "container:web", "sleeper")
	host := d.docker("run", "-d", "--name", "host", "--network", "host", "sleeper")
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
	d.docker("rm", "-f", "beside", "web")
	again := d.docker("run", "-d", "--name", "web", "sleeper")
	if got := d.endpoint(addresses[0], `[.[].containers[0].id] | join(" ")`); got != again {
		t.Errorf("%s of a container of the same name: %s, want %s", addresses[0], got, again)
	}
	if got := d.endpoint("container:"+web, "."); !strings.Contains(got, `"not_found"`) {
		t.Errorf("the container that has gone: %s", got)
	}
}
