package endpoint

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

var (
	idA       = strings.Repeat("a1b2c3d4", 8)
	idB       = idA[:60] + "ffff"                                         // begins like idA
	uid       = fmt.Sprintf("0b6a1c5e-3c1f-4f0a-9d2e-%012x", os.Getpid()) // others' tests have Pods, too
	uidScored = strings.ReplaceAll(uid, "-", "_")
	static    = strings.Repeat("0123456789abcdef", 2)
)

// text writes a place as the tables below do: containers, outermost first, or the
// unit and slice.
func (p place) text() string {
	var parts []string
	for _, c := range p.containers {
		part := fmt.Sprintf("%s %s", c.engine, c.id)
		if c.name != "" {
			part += " named " + c.name
		}
		if c.pod.uid != "" {
			part += fmt.Sprintf(" in %s %s", c.pod.qos, c.pod.uid)
		}
		parts = append(parts, part)
	}
	if p.unit != "" {
		parts = append(parts, "unit "+p.unit)
	}
	if p.slice != "" {
		parts = append(parts, "slice "+p.slice)
	}
	return strings.NewReplacer(idA, "A", idB, "B", uid, "UID", static, "STATIC").Replace(strings.Join(parts, ", "))
}

func TestParsePath(t *testing.T) {
	for _, c := range []struct{ path, want, cgroup string }{
		{"/docker/A", "docker A", "/docker/A"},
		{"/system.slice/docker-A.scope", "docker A", "/system.slice/docker-A.scope"},
		{"/user.slice/user-1000.slice/user@1000.service/app.slice/docker-A.scope", "docker A", ""},
		{"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-A.scope/container", "podman A", "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-A.scope"},
		{"/docker/A/init.scope", "docker A", "/docker/A"},
		{"/parent/A", "unknown A", ""},
		{"/ecs/task/A", "unknown A", ""},
		{"/default/A", "containerd A", ""},
		{"/k8s.io/A", "containerd A", ""},
		{"/default/web", "", ""}, // ctr run web: nothing tells that it is a container
		{"/docker/" + idA[:63], "", ""},
		{"/docker/" + idA[:63] + "x", "", ""},
		{"/docker/A0", "", ""},
		{"/docker/buildkit/abc", "", ""},
		{"/system.slice/nerdctl-A.scope", "containerd A", ""},

		{"/kubepods/podUID/A", "unknown A in guaranteed UID", "/kubepods/podUID/A"},
		{"/kubepods/burstable/podUID/A", "unknown A in burstable UID", ""},
		{"/kubepods/besteffort/podUID/B", "unknown B in besteffort UID", ""},
		{"/kubepods/burstable/podSTATIC/A", "unknown A in burstable STATIC", ""},
		{"/kubepods/burstable/podUID/crio-A", "crio A in burstable UID", ""},
		{"/kubepods/burstable/podUID/crio-conmon-A", "", ""},
		{"/kubepods/burstable/podUID", "", ""},
		{"/kubepods/burstable/pod" + uid[:35] + "/A", "unknown A", ""},
		{"/home/podUID/A", "unknown A", ""},
		{"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podSCORED.slice/cri-containerd-A.scope", "containerd A in besteffort UID", ""},
		{"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podSTATIC.slice/cri-containerd-A.scope", "containerd A in burstable STATIC", ""},
		{"/kubepods.slice/kubepods-podSCORED.slice/cri-containerd-A.scope", "containerd A in guaranteed UID", ""},
		{"/kubepods.slice/kubepods-podSCORED.slice/docker-A.scope", "docker A in guaranteed UID", ""},
		{"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podSCORED.slice/crio-A.scope", "crio A in burstable UID", ""},
		{"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podSCORED.slice/crio-A.scope/container", "crio A in burstable UID", "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podSCORED.slice/crio-A.scope"},
		{"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podSCORED.slice/crio-conmon-A.scope", "unit crio-conmon-A.scope, slice kubepods-burstable-podSCORED.slice", ""},

		{"/machine.slice/libpod-A.scope", "podman A", ""},
		{"/libpod_parent/libpod-A", "podman A", ""},
		{"/libpod_parent/conmon", "", ""},
		{"/machine.slice/libpod-conmon-A.scope", "unit libpod-conmon-A.scope, slice machine.slice", ""},
		{"/system.slice/web.service/libpod-payload-A", "podman A", ""},

		{"/lxc.payload.web", "lxc web named web", "/lxc.payload.web"},
		{"/lxc.payload.web/system.slice/nginx.service", "lxc web named web", "/lxc.payload.web"},
		{"/lxc/web/ns", "lxc web named web", "/lxc/web"},
		{"/lxc.monitor.web", "", ""},
		{"/machine.slice/machine-web.scope/payload/init.scope", "nspawn web named web", "/machine.slice/machine-web.scope"},
		{`/machine.slice/machine-a\x2db.scope`, "nspawn a-b named a-b", ""},
		{"/machine.slice/systemd-nspawn@web.service/payload", "nspawn web named web", ""},
		{"/machine.slice/systemd-nspawn@web.service/supervisor", "unit systemd-nspawn@web.service, slice machine.slice", ""},
		{"/machine.slice/machine-web.scope/supervisor", "unit machine-web.scope, slice machine.slice", ""},
		{`/machine.slice/machine-qemu\x2d1\x2dvm.scope`, `unit machine-qemu\x2d1\x2dvm.scope, slice machine.slice`, ""},

		{"/docker/A/docker/B", "docker A, docker B", "/docker/A/docker/B"},
		{"/kubepods/besteffort/podUID/A/docker/B", "unknown A in besteffort UID, docker B", ""},
		{"/docker/A/kubelet/kubepods/burstable/podUID/B", "docker A, unknown B in burstable UID", ""}, // a node of kind
		{"/docker/A/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-podSCORED.slice/cri-containerd-B.scope", "docker A, containerd B in burstable UID", ""},
		{"/system.slice/docker-A.scope/system.slice/containerd.service", "docker A", "/system.slice/docker-A.scope"},

		{"/../../docker/A", "docker A", "/../../docker/A"}, // seen from a cgroup namespace
		{"/../A", "unknown A", ""},
		{"/", "", ""},
		{"", "", ""},
		{"//", "", ""},
		{"/init.scope", "unit init.scope", ""},
		{"/system.slice/nginx.service", "unit nginx.service, slice system.slice", ""},
		{"/user.slice/user-1000.slice/user@1000.service/app.slice/editor.service", "unit editor.service, slice app.slice", ""},
		{"/user.slice/user-1000.slice/session-3.scope", "unit session-3.scope, slice user-1000.slice", ""},
		{"/system.slice", "slice system.slice", ""},
	} {
		expand := strings.NewReplacer("/A", "/"+idA, "/B", "/"+idB, "-A", "-"+idA, "-B", "-"+idB, "UID", uid, "SCORED", uidScored, "STATIC", static)
		p := parsePath(expand.Replace(c.path))
		want := strings.NewReplacer("SCORED", uidScored).Replace(c.want)
		if got := p.text(); got != want {
			t.Errorf("%s: %q, want %q", c.path, got, want)
		}
		if n := len(p.containers); c.cgroup != "" && p.containers[n-1].path != expand.Replace(c.cgroup) {
			t.Errorf("%s: the container's cgroup is %s", c.path, p.containers[n-1].path)
		}
	}
}

// A Pod's cgroup is the one that holds those of its containers.
func TestPodPath(t *testing.T) {
	for path, want := range map[string]string{
		"/kubepods/burstable/pod" + uid + "/" + idA:                                            "/kubepods/burstable/pod" + uid,
		"/docker/" + idA + "/kubelet/kubepods/pod" + uid + "/" + idB + "/x":                    "/docker/" + idA + "/kubelet/kubepods/pod" + uid,
		"/kubepods.slice/kubepods-pod" + uidScored + ".slice/cri-containerd-" + idA + ".scope": "/kubepods.slice/kubepods-pod" + uidScored + ".slice",
		"/x/kubepods/besteffort/pod" + static + "/" + idA:                                      "/x/kubepods/besteffort/pod" + static,
	} {
		p := parsePath(path)
		if got := p.containers[len(p.containers)-1].pod.path; got != want {
			t.Errorf("%s: the Pod's is %s", path, got)
		}
	}
}

func TestParseCgroups(t *testing.T) {
	for name, c := range map[string]struct{ text, want, path, unified string }{
		"v2":                              {"0::/docker/A\n", "docker A", "/docker/A", "/docker/A"},
		"v1":                              {"5:memory:/docker/A\n4:cpu,cpuacct:/docker/A\n1:name=systemd:/docker/A\n", "docker A", "/docker/A", ""},
		"v1, one hierarchy":               {"5:memory:/docker/A\n4:cpu,cpuacct:/\n1:name=systemd:/system.slice/docker.service\n", "docker A", "/docker/A", ""},
		"v1, of two controllers":          {"4:cpuset,pids:/docker/A\n", "docker A", "/docker/A", ""},
		"hybrid":                          {"5:memory:/docker/A\n0::/docker/A\n", "docker A", "/docker/A", "/docker/A"},
		"hybrid, cgroup2 not used":        {"5:memory:/docker/A\n1:name=systemd:/docker/A\n0::/system.slice/containerd.service\n", "docker A", "/docker/A", "/system.slice/containerd.service"},
		"hybrid, the two differ":          {"5:memory:/docker/A\n0::/docker/B\n", "docker B", "/docker/B", "/docker/B"},
		"hybrid, unit":                    {"5:memory:/\n1:name=systemd:/system.slice/a.service\n0::/system.slice/a.service\n", "unit a.service, slice system.slice", "/system.slice/a.service", "/system.slice/a.service"},
		"hybrid, unit in version 1 alone": {"5:memory:/user\n1:name=systemd:/system.slice/a.service\n0::/\n", "unit a.service, slice system.slice", "/system.slice/a.service", "/"},
		"nothing":                         {"5:memory:/\n0::/\n", "", "/", "/"},
		"removed":                         {"0::/docker/A (deleted)\n", "", "", ""},
		"a colon in the path":             {"0::/a:b/docker/A\n", "docker A", "/a:b/docker/A", "/a:b/docker/A"},
		"empty":                           {"", "", "", ""},
		"damaged":                         {"0:\nx\n::\n", "", "", ""},
	} {
		expand := strings.NewReplacer("/A", "/"+idA, "/B", "/"+idB)
		m := parseCgroups(expand.Replace(c.text))
		if m.text() != c.want || m.path != expand.Replace(c.path) || m.unified != expand.Replace(c.unified) {
			t.Errorf("%s: %q in %q, on cgroup2 %q", name, m.text(), m.path, m.unified)
		}
	}
}

func FuzzParseCgroups(f *testing.F) {
	f.Add("0::/docker/" + idA + "\n")
	f.Add("5:memory:/kubepods/burstable/pod" + uid + "/" + idA + "\n0::/../..\n")
	f.Add(`0::/machine.slice/machine-a\x2`)
	f.Fuzz(func(t *testing.T, text string) {
		m := parseCgroups(text)
		for _, c := range m.containers {
			if c.id == "" || !strings.HasPrefix(m.path, c.path) || !strings.HasPrefix(c.path, c.pod.path) {
				t.Errorf("%q: %+v", text, c)
			}
		}
		if len(m.containers) > 0 && m.unit != "" {
			t.Errorf("%q is in a container and in a unit", text)
		}
	})
}

func TestParseRef(t *testing.T) {
	for text, want := range map[string]string{
		"pid:812": "pid 812", "container:web": "container web", "container:a:b": "container a:b",
		"cgroup:/a/b/": "cgroup /a/b", "cgroup:/": "cgroup /", "cgroup:/../a": "cgroup /../a", "dev:eth0": "dev eth0", "netns:4026532301": "netns 4026532301", "netns:blue": "netns blue",
		"10.77.0.4": "address 10.77.0.4", "fd77::4": "address fd77::4", "::ffff:10.77.0.4": "address 10.77.0.4", "fe80::1%eth0": "address fe80::1",
		"": "", "pid": "", "pid:": "", "pid:0": "", "pid:x": "", "pid:-1": "", "pid:99999999999": "", "cgroup:a": "", "dev:": "", "netns:/a/b": "",
		"pod:shop/web": "pod shop/web", "pod:": "", "web": "", "10.77.0.0/24": "", "10.77.0": "",
	} {
		r, err := ParseRef(text)
		got := r.form + " " + r.value
		if r.address.IsValid() {
			got = "address " + r.address.String()
		}
		if err != nil {
			got = ""
		}
		if got != want {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
}

func TestParseStat(t *testing.T) {
	rest := " S 1 2 3 0 -1 4 5 0 0 0 0 0 0 0 20 0 1 0 4711 8 9\n"
	for text, want := range map[string]process{
		"812 (sleep)" + rest:           {command: "sleep", start: 4711},
		"812 (a) S 1 (x))" + rest:      {command: "a) S 1 (x)", start: 4711},
		"812 (z) Z" + rest[2:]:         {},
		"812 (short) S 1 2 3 0 -1 4 5": {},
		"":                             {},
	} {
		p, alive := parseStat(text)
		if !alive {
			p = process{}
		}
		if p.command != want.command || p.start != want.start {
			t.Errorf("%q: %+v", text, p)
		}
	}
}

// Cgroups are reached through what is mounted, which may be a part, and seen from a
// cgroup namespace.
func TestDirectories(t *testing.T) {
	for _, c := range []struct{ mount, root, cgroup, dir string }{
		{"/c", "/", "/", "/c"},
		{"/c", "/", "/a/b", "/c/a/b"},
		{"/c", "/", "/../a", ""},
		{"/c", "/", "/..", ""},
		{"/c", "/", "/..a", "/c/..a"},
		{"/c", "/docker/x", "/docker/x/y", "/c/y"},
		{"/c", "/docker/x", "/docker/x", "/c"},
		{"/c", "/docker/x", "/docker/xy", ""},
		{"/c", "/docker/x", "/", ""},
		{"/c", "/../..", "/../../a", "/c/a"},
		{"/c", "/../..", "/../b", ""},
		{"", "", "/a", ""},
	} {
		s := scan{mount: c.mount, mountRoot: c.root}
		dir, ok := s.dir(c.cgroup)
		if dir != c.dir || ok != (c.dir != "") {
			t.Errorf("%+v: %q, %v", c, dir, ok)
		}
		if back := s.cgroupPath(c.dir); c.dir != "" && back != c.cgroup {
			t.Errorf("%+v: back it is %q", c, back)
		}
	}
}
