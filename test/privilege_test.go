package test

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"

	"bpfnet/internal/testkit"
)

// as returns a command line that runs bpfnet as root with only the named
// capabilities, which is what a service with a bounding set gets. It runs in the
// host's namespace: entering another one needs CAP_SYS_ADMIN.
func (n node) as(caps string, args ...string) *exec.Cmd {
	set := "-all"
	for _, c := range strings.Fields(caps) {
		set += ",+" + c
	}
	// nsenter enters the node before the capabilities are dropped.
	line := append([]string{"--net=/run/netns/" + n.host, "--", "setpriv", "--bounding-set", set, "--inh-caps", set, binary}, args...)
	cmd := exec.Command("nsenter", line...)
	cmd.Env = append(os.Environ(), n.env()...)
	return cmd
}

func (n node) runAs(t *testing.T, caps string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	cmd := n.as(caps, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	_ = cmd.Run()
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

const enough = "bpf net_admin perfmon"

// The whole life of a program needs three capabilities and not CAP_SYS_ADMIN.
func TestThreeCapabilitiesAreEnough(t *testing.T) {
	n := newNode(t)
	cgroup := testkit.Cgroup(t)
	uid, path := place(t)
	container(t, n.podB, path, "sleep", "600")
	for _, args := range [][]string{
		{"load", "pod-traffic"},
		{"attach", "tc", "pod-traffic", "--pod", uid, "--direction", "both"},
		{"attach", "tc", "pod-traffic", "--all-pods", "--direction", "both"},
		{"attach", "cgroup", "pod-traffic", "--pod", uid},
		{"watch", "pods", "--once", "--pod", uid},
		{"detach", "tc", "pod-traffic", "--pod", uid},
		{"detach", "cgroup", "pod-traffic", "--pod", uid},
		{"attach", "tc", "pod-traffic", "--dev", "veth-a", "--direction", "both"},
		{"attach", "cgroup", "pod-traffic", "--cgroup", cgroup},
		{"watch", "pods", "--once"},
		{"load", "peers"},
		{"attach", "tc", "peers", "--dev", "veth-a", "--direction", "both"},
		{"watch", "peers", "--once"},
		{"map", "dump", "pod-traffic/pods"},
		{"load", "xdp-counter"},
		{"attach", "xdp", "xdp-counter", "--dev", "veth-b", "--mode", "generic"},
		{"watch", "counters", "--once"},
		{"load", "xdp-counter", "--replace", "--prog", "xdp_counter"},
		{"ports", "allow", "80/tcp"},
		{"attach", "tc", "port-filter", "--dev", "veth-a", "--direction", "ingress"},
		{"ports", "default", "drop"},
		{"ports", "list"},
		{"load", "blocklist"},
		{"attach", "tc", "blocklist", "--dev", "veth-b", "--direction", "both"},
		{"blocklist", "add", "198.51.100.0/24", "2001:db8:bad::/48"},
		{"blocklist", "add", "198.51.100.7", "--reason", "scans"},
		{"blocklist", "add", "--domain", "*.bad.example"},
		{"blocklist", "list", "--hits"}, {"blocklist", "lists"}, {"blocklist", "test", "198.51.100.7"},
		{"watch", "alerts", "--once"},
		{"blocklist", "clear"},
		{"status"}, {"prog", "list"}, {"link", "list"}, {"map", "list"}, {"programs"}, {"doctor"},
		{"net", "show"}, {"cgroup", "show", cgroup}, {"endpoint", "list"}, {"endpoint", "show", "pid:1"}, {"-j", "prog", "show", "pod-traffic"}, {"-j", "link", "show", "pod-traffic"},
		{"detach", "tc", "pod-traffic"},
		{"unload", "--all", "--detach"},
	} {
		if code, _, stderr := n.runAs(t, enough, args...); code != 0 {
			t.Errorf("%q: exit %d\n%s", args, code, stderr)
		}
	}
}

// Without CAP_SYS_ADMIN bpfnet's own links are known, by their pins.
func TestOwnLinksOfNetworks(t *testing.T) {
	n := newNode(t)
	n.must(t, "load", "pod-traffic")
	n.must(t, "attach", "tc", "pod-traffic", "--dev", "veth-a", "--direction", "ingress")
	code, stdout, stderr := n.runAs(t, enough, "net", "show", "-o", "ndjson")
	pinned := strings.Contains(stdout, `"hook":"tcx_ingress","mechanism":"link"`) && strings.Contains(stdout, `"pinned":"/`)
	if code != 0 || hasFeature("tcx") && !pinned || !strings.Contains(stderr, "CAP_SYS_ADMIN") {
		t.Errorf("exit %d: %s%s", code, stdout, stderr)
	}
}

// What a user may not read of a container is null, and one note says so; what the
// kernel tells everybody is there.
func TestEndpointsOfOthers(t *testing.T) {
	n := newNode(t)
	id := containerID(t)
	container(t, n.podA, "docker/"+id, "sleep", "600")
	nobody := exec.Command("nsenter", "--net=/run/netns/"+n.host, "--", "setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", binary, "endpoint", "show", "dev:veth-a", "-o", "json")
	for who, cmd := range map[string]*exec.Cmd{
		"three capabilities": n.as(enough, "endpoint", "show", "dev:veth-a", "-o", "json"),
		"nobody":             nobody,
	} {
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		if err := cmd.Run(); err != nil || strings.Count(stderr.String(), "looked into") != 1 || !strings.Contains(stderr.String(), "CAP_SYS_PTRACE and CAP_SYS_ADMIN are missing") {
			t.Errorf("%s: %v, %s", who, err, stderr.String())
		}
		got := jq(t, `.[0] | [.containers[0].id, .process.executable, .netns, .netns_cookie, .host_network, (.interfaces[0] | .devname, .inner_devname, .addresses), (.cgroup_id != null)] | tojson`, stdout.String())
		if want := `["` + id + `",null,null,null,false,"veth-a",null,null,true]`; got != want {
			t.Errorf("%s: %s, want %s", who, got, want)
		}
	}
	for caps, args := range map[string][]string{enough: {"endpoint", "show", addressA}, "sys_ptrace": {"endpoint", "show", addressA}} {
		if code, _, stderr := n.runAs(t, caps, args...); code != 5 || !strings.Contains(stderr, "CAP_SYS_ADMIN") {
			t.Errorf("with %q, %q: exit %d\n%s", caps, args, code, stderr)
		}
	}
}

// A missing capability is exit 5, and the message names it.
func TestMissingCapabilityIsNamed(t *testing.T) {
	n := newNode(t)
	n.must(t, "load", "pod-traffic")
	n.must(t, "load", "xdp-counter")
	uid, path := place(t)
	container(t, n.host, path, "sleep", "600")
	for _, c := range []struct {
		caps, missing string
		args          []string
	}{
		{"net_admin perfmon", "CAP_BPF", []string{"load", "pod-traffic", "--name", "x"}},
		{"bpf perfmon", "CAP_NET_ADMIN", []string{"load", "pod-traffic", "--name", "x"}},
		{"bpf net_admin", "CAP_PERFMON", []string{"load", "xdp-counter", "--name", "x"}},
		{enough, "CAP_SYS_ADMIN", []string{"status", "--netns", n.podA}},
		{enough, "hint: the processes of others take CAP_SYS_PTRACE", []string{"status", "-q", "--netns", "pod:" + uid}},
		{enough, "hint: the processes of others take CAP_SYS_PTRACE", []string{"attach", "tc", "pod-traffic", "--direction", "both", "--pod", uid}},
		{enough, "CAP_SYS_ADMIN", []string{"-j", "prog", "show"}},
		{enough, "CAP_SYS_ADMIN", []string{"status", "--interval", "100ms", "--count", "1"}},
	} {
		code, _, stderr := n.runAs(t, c.caps, c.args...)
		if code != 5 || !strings.Contains(stderr, c.missing) {
			t.Errorf("with %q, %q: exit %d, want 5 naming %s\n%s", c.caps, c.args, code, c.missing, stderr)
		}
	}
	if got := n.summary(t); !strings.HasPrefix(got, "pod-traffic(") || strings.Contains(got, "x(") || strings.Contains(got, "@") {
		t.Errorf("left behind: %s", got)
	}
}

// What a user may not read is a missing permission, not a missing program.
func TestOtherUsersGetPermissionDenied(t *testing.T) {
	n := newNode(t)
	n.must(t, "load", "port-filter")
	for _, args := range [][]string{{"status"}, {"ports", "list"}, {"map", "list"}, {"map", "get", "port-filter/counters", "0"}, {"unload", "--all"}} {
		cmd := exec.Command("setpriv", append([]string{"--reuid", "65534", "--regid", "65534", "--clear-groups", binary}, args...)...)
		cmd.Env = append(os.Environ(), n.env()...)
		out, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != 5 {
			t.Errorf("%q: exit %d, want 5\n%s", args, code, out)
		}
	}
}
