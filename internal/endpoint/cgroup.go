package endpoint

import (
	"encoding/hex"
	"slices"
	"strings"
)

// Engine is what runs a container.
type Engine string

// The engines. Unknown is one that the path of the cgroup doesn't tell.
const (
	Docker     Engine = "docker"
	Containerd Engine = "containerd"
	CRIO       Engine = "crio"
	Podman     Engine = "podman"
	LXC        Engine = "lxc"
	Nspawn     Engine = "nspawn"
	Unknown    Engine = "unknown"
)

// place is what the path of a cgroup says about the processes in it.
type place struct {
	path       string
	containers []level // the outermost one first
	unit       string  // systemd's, innermost; "" in a container
	unitPath   string
	slice      string
}

// level is a container on the way down a path.
type level struct {
	engine   Engine
	id, name string // name is "" where the path has only the id
	path     string // of the container's cgroup
	pod      podLevel
}

// podLevel is the Pod around a container; its uid is "" if there is none.
type podLevel struct {
	uid  string // with dashes, unless it is that of a static Pod
	qos  string
	path string
}

// scopes are the names that engines give to the cgroups of containers, in front of
// an id of 64 digits, with and without ".scope" behind. "crio-conmon-ID" isn't one:
// that is the process beside a container.
var scopes = []struct {
	prefix string
	engine Engine
}{
	{"docker-", Docker},
	{"cri-containerd-", Containerd},
	{"nerdctl-", Containerd},
	{"crio-", CRIO},
	{"libpod-", Podman},
	{"libpod-payload-", Podman},
}

// parents say whose an id is that is a whole name: the name above it. Of containerd
// these are its usual namespaces.
var parents = map[string]Engine{"docker": Docker, "default": Containerd, "k8s.io": Containerd}

// parsePath reads the path of a cgroup, as /proc has it.
func parsePath(path string) place {
	p := place{path: path}
	segments := strings.Split(path, "/")
	var pod podLevel
	above := ""
	for i, segment := range segments {
		upTo := strings.Join(segments[:i+1], "/")
		below := segments[min(i+1, len(segments)-1)]
		if found, ok := parsePod(above, segment); ok {
			pod, pod.path = found, upTo
		} else if c, ok := parseContainer(above, segment, below, pod.uid != ""); ok {
			c.path, c.pod = upTo, pod
			p.containers, pod = append(p.containers, c), podLevel{}
			p.unit, p.unitPath, p.slice = "", "", ""
		}
		switch {
		case len(p.containers) > 0:
		case strings.HasSuffix(segment, ".slice"):
			p.slice = segment
		case isUnit(segment):
			p.unit, p.unitPath = segment, upTo
		}
		above = segment
	}
	return p
}

// parsePod reads the name of a Pod's cgroup: "podUID" below the class of its
// quality of service, or "kubepods-CLASS-podUID.slice".
func parsePod(above, segment string) (podLevel, bool) {
	if uid, ok := strings.CutPrefix(segment, "pod"); ok && isUID(uid) {
		switch above {
		case "kubepods":
			return podLevel{uid: uid, qos: "guaranteed"}, true
		case "burstable", "besteffort":
			return podLevel{uid: uid, qos: above}, true
		}
	}
	name, ok := strings.CutSuffix(segment, ".slice")
	at := strings.LastIndex(name, "-pod")
	if !ok || at < 0 {
		return podLevel{}, false
	}
	class, uid := name[:at], strings.ReplaceAll(name[at+len("-pod"):], "_", "-")
	if !isUID(uid) || !slices.Contains(strings.Split(class, "-"), "kubepods") {
		return podLevel{}, false
	}
	for _, qos := range []string{"burstable", "besteffort"} {
		if strings.HasSuffix(class, "-"+qos) {
			return podLevel{uid: uid, qos: qos}, true
		}
	}
	return podLevel{uid: uid, qos: "guaranteed"}, true
}

// parseContainer reads the name of a container's cgroup.
func parseContainer(above, segment, below string, inPod bool) (level, bool) {
	name := strings.TrimSuffix(segment, ".scope")
	for _, s := range scopes {
		if id, ok := strings.CutPrefix(name, s.prefix); ok && isID(id) {
			return level{engine: s.engine, id: id}, true
		}
	}
	if isID(segment) {
		engine, known := parents[above]
		if !known || inPod {
			engine = Unknown
		}
		return level{engine: engine, id: segment}, true
	}
	if name, ok := machine(above, segment, below); ok {
		return level{engine: Nspawn, id: name, name: name}, true
	}
	name, ok := strings.CutPrefix(segment, "lxc.payload.")
	if !ok && (above == "lxc" || above == "lxc.payload") {
		name, ok = segment, true
	}
	return level{engine: LXC, id: name, name: name}, ok && name != ""
}

// machine reads the unit of a container of systemd-nspawn. Virtual machines have
// such units too, and in "supervisor" is systemd-nspawn itself.
func machine(above, segment, below string) (string, bool) {
	name, ok := cutBoth(segment, "machine-", ".scope")
	if !ok && above == "machine.slice" {
		name, ok = cutBoth(segment, "systemd-nspawn@", ".service")
	}
	if !ok || name == "" || below == "supervisor" || strings.HasPrefix(name, `qemu\x2d`) || strings.HasPrefix(name, `lxc\x2d`) {
		return "", false
	}
	return unescapeUnit(name), true
}

func cutBoth(text, prefix, suffix string) (string, bool) {
	text, begins := strings.CutPrefix(text, prefix)
	text, ends := strings.CutSuffix(text, suffix)
	return text, begins && ends
}

// unescapeUnit undoes what systemd does to characters that the name of a unit
// can't have: "a\x2db" is "a-b".
func unescapeUnit(name string) string {
	before, rest, found := strings.Cut(name, `\x`)
	if !found || len(rest) < 2 {
		return name
	}
	char, err := hex.DecodeString(rest[:2])
	if err != nil {
		return before + `\x` + unescapeUnit(rest)
	}
	return before + string(char) + unescapeUnit(rest[2:])
}

// isUnit says whether a cgroup is one of systemd's for processes.
func isUnit(segment string) bool {
	for _, suffix := range []string{".service", ".scope", ".socket", ".mount", ".swap"} {
		if len(segment) > len(suffix) && strings.HasSuffix(segment, suffix) {
			return true
		}
	}
	return false
}

// isID says whether a text is an id as engines make them: 64 hexadecimal digits.
func isID(text string) bool { return len(text) == 64 && isHex(text) }

// isUID says whether a text is the uid of a Pod: that of a static one has no dashes.
func isUID(text string) bool {
	if len(text) == 32 {
		return isHex(text)
	}
	if len(text) != 36 || text[8] != '-' || text[13] != '-' || text[18] != '-' || text[23] != '-' {
		return false
	}
	return isHex(strings.ReplaceAll(text, "-", "")) && strings.Count(text, "-") == 4
}

func isHex(text string) bool {
	return strings.Trim(text, "0123456789abcdef") == ""
}

// membership is in which cgroups a process is.
type membership struct {
	place          // from the hierarchy that says the most
	unified string // path on cgroup2; "" without cgroup2
}

// hierarchies are the controllers of cgroup v1 whose paths engines set, in the
// order in which they are asked.
var hierarchies = []string{"name=systemd", "memory", "pids", "cpu", "devices", "freezer"}

// parseCgroups reads /proc/PID/cgroup. What cgroup2 says about containers counts,
// and where it says nothing, version 1.
func parseCgroups(text string) membership {
	paths := map[string]string{}
	for line := range strings.Lines(text) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(fields) < 3 || strings.HasSuffix(fields[2], " (deleted)") {
			continue
		}
		for controller := range strings.SplitSeq(fields[1], ",") {
			paths[controller] = fields[2]
		}
	}
	m := membership{place: parsePath(paths[""]), unified: paths[""]}
	if len(m.containers) > 0 {
		return m
	}
	for _, controller := range hierarchies {
		path, ok := paths[controller]
		if !ok {
			continue
		}
		if p := parsePath(path); len(p.containers) > 0 || m.unit == "" && (p.unit != "" || m.path == "") {
			m.place = p
		}
		if len(m.containers) > 0 {
			break
		}
	}
	return m
}
