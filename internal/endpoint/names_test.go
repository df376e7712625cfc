package endpoint

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"bpfnet/internal/engine"
	"bpfnet/internal/engine/enginetest"
	"bpfnet/internal/fault"
	"bpfnet/internal/testkit"
)

// docker serves containers by their id.
func docker(t testing.TB, names map[string]string) string {
	return enginetest.HTTP(t, func(w http.ResponseWriter, _ *http.Request) {
		var list []string
		for _, id := range slices.Sorted(maps.Keys(names)) {
			list = append(list, fmt.Sprintf(`{"Id": %q, "Names": [%q], "Labels": {"team": "shop"}}`, id, "/"+names[id]))
		}
		fmt.Fprintf(w, "[%s]", strings.Join(list, ","))
	})
}

// ofDigit is an id of one digit.
func ofDigit(digit string) string { return strings.Repeat(digit, 64) }

// A Pod of the kubelet with cgroupfs, of a sandbox and two containers, and containers
// of Docker have the names that engines give to their ids, and to no others.
func TestNames(t *testing.T) {
	s := newSite(t)
	pod, web := "/kubepods/burstable/pod"+uid, "/docker/"+ofDigit("c")
	for _, path := range []string{pod + "/" + ofDigit("a"), pod + "/" + ofDigit("b"), pod + "/" + ofDigit("d"), web, "/docker/" + ofDigit("e")} {
		s.run(path, s.host)
	}
	server := &enginetest.CRI{Runtime: "cri-o"}
	server.Pod(ofDigit("a"), "shop", "web", "another-uid", 1, map[string]string{"app": "web", "io.kubernetes.pod.uid": "another-uid"})
	server.Container(ofDigit("b"), ofDigit("a"), "nginx")
	server.Container(ofDigit("f"), ofDigit("a"), "no-process")
	server.Container(ofDigit("e")[1:]+"0", ofDigit("a"), "looks-alike")
	s.sockets = engine.Sockets{CRI: server.Serve(t), Docker: docker(t, map[string]string{ofDigit("c"): "db", ofDigit("b"): "k8s_nginx", ofDigit("9"): "no-process"})}
	var got []string
	for _, e := range s.listed() {
		if p := e.Pod; p != nil {
			got = append(got, fmt.Sprintf("%v/%v %v %v %v %v", value(p.Namespace), value(p.Name), p.UID, p.Labels, value(p.QoS), p.Source))
		}
		for _, c := range e.Containers {
			got = append(got, fmt.Sprintf("%s %s %v %v %v", c.ID[:1], c.Engine, value(c.Name), c.Labels, c.Source))
		}
	}
	want := []string{
		"c docker db map[team:shop] docker",
		"e docker <nil> map[] cgroup",
		"shop/web " + uid + " map[app:web] burstable cri",
		"a crio <nil> map[] cri",
		"b crio nginx map[io.kubernetes.container.name:nginx] cri",
		"d unknown <nil> map[] cgroup",
	}
	if !slices.Equal(got, want) {
		t.Errorf("endpoints:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for ref, path := range map[string]string{
		"pod:shop/web": pod, "pod:" + uid: pod, "container:nginx": pod, "container:shop/web/nginx": pod, "container:" + ofDigit("b"): pod,
		"container:db": web, "container:cccc": web,
	} {
		if got := s.one("%s", ref); got != path {
			t.Errorf("%s is %s, want %s", ref, got, path)
		}
	}
	for _, ref := range []string{"pod:shop/nginx", "pod:shop", "pod:web", "container:no-process", "container:k8s_nginx", "container:web/nginx", "container:/nginx"} {
		s.refused(ref, fault.ErrNotFound, "has a process")
	}
}

// A name that several have is an error that says how to tell them apart. An id goes
// before a name, and a name before the beginning of an id.
func TestAmbiguousNames(t *testing.T) {
	s := newSite(t)
	uidB := "22222222" + uid[8:]
	podA, podB := "/kubepods/pod"+uid, "/kubepods/pod"+uidB
	for _, path := range []string{podA + "/" + ofDigit("a"), podB + "/" + ofDigit("b"), "/docker/" + ofDigit("c"), "/docker/" + ofDigit("d")} {
		s.run(path, s.host)
	}
	server := &enginetest.CRI{Runtime: "containerd"}
	server.Pod(ofDigit("0"), "shop", "web", uid, 1, nil)
	server.Pod(ofDigit("1"), "shop", "db", uidB, 1, nil)
	server.Container(ofDigit("a"), ofDigit("0"), "app")
	server.Container(ofDigit("b"), ofDigit("1"), "app")
	s.sockets = engine.Sockets{CRI: server.Serve(t), Docker: docker(t, map[string]string{ofDigit("c"): "app", ofDigit("d"): "aaa"})}
	s.refused("container:app", fault.ErrUsage, `several containers are called "app": `+ofDigit("c")+", shop/db/app, shop/web/app")
	for ref, path := range map[string]string{
		"container:shop/db/app": podB, "container:" + ofDigit("c"): "/docker/" + ofDigit("c"), "container:aaa": "/docker/" + ofDigit("d"), "container:aaaa": podA,
	} {
		if got := s.one("%s", ref); got != path {
			t.Errorf("%s is %s, want %s", ref, got, path)
		}
	}
}

// A Pod that is made anew under its name, while the old one is ending, is the one that
// is ready, or else the newer one: by its name it is never both.
func TestRecreatedPod(t *testing.T) {
	s := newSite(t)
	uidB := "22222222" + uid[8:]
	podA, podB := "/kubepods/pod"+uid, "/kubepods/pod"+uidB
	for _, path := range []string{podA + "/" + ofDigit("0"), podA + "/" + ofDigit("a"), podA + "/" + ofDigit("c"), podB + "/" + ofDigit("1"), podB + "/" + ofDigit("b")} {
		s.run(path, s.host)
	}
	for _, c := range []struct {
		name         string
		madeA, madeB int64
		endingA      bool
		want         string
	}{
		{"the newer one", 1, 2, false, podB}, {"the newer one, the other way round", 2, 1, false, podA}, {"the one that is ready", 2, 1, true, podB},
	} {
		server := &enginetest.CRI{Runtime: "containerd"}
		if p := server.Pod(ofDigit("0"), "shop", "web", uid, c.madeA, map[string]string{"made": "a"}); c.endingA {
			p.State = cri.PodSandboxState_SANDBOX_NOTREADY
		}
		server.Pod(ofDigit("1"), "shop", "web", uidB, c.madeB, map[string]string{"made": "b"})
		server.Container(ofDigit("a"), ofDigit("0"), "app")
		server.Container(ofDigit("b"), ofDigit("1"), "app")
		server.Container(ofDigit("c"), ofDigit("0"), "only-a")
		s.sockets = engine.Sockets{CRI: server.Serve(t), Docker: docker(t, nil)}
		if c.want == podB {
			s.refused("container:only-a", fault.ErrNotFound, "has a process")
		}
		if got := s.one("container:%s", ofDigit("c")); got != podA {
			t.Errorf("%s: a container of the old Pod is in %s", c.name, got)
		}
		for _, ref := range []string{"pod:shop/web", "container:app", "container:shop/web/app"} {
			if got := s.one("%s", ref); got != c.want {
				t.Errorf("%s: %s is %s, want %s", c.name, ref, got, c.want)
			}
		}
		if got := s.one("pod:%s", uid); got != podA {
			t.Errorf("pod:UID is %s", got)
		}
		for _, e := range s.listed() {
			if want := map[string]string{podA: "a", podB: "b"}[strings.TrimPrefix(e.Cgroup.Path, s.base)]; e.Pod.Labels["made"] != want {
				t.Errorf("%s has the labels %v", e.Cgroup.Path, e.Pod.Labels)
			}
		}
	}
}

// A Pod of which CRI made a new sandbox has two while the old one is ending.
func TestNewSandbox(t *testing.T) {
	s := newSite(t)
	pod := "/kubepods/pod" + uid
	for _, id := range []string{"0", "1"} {
		s.run(pod+"/"+ofDigit(id), s.host)
	}
	server := &enginetest.CRI{Runtime: "containerd"}
	server.Pod(ofDigit("0"), "shop", "web", uid, 1, map[string]string{"made": "first"}).State = cri.PodSandboxState_SANDBOX_NOTREADY
	server.Pod(ofDigit("1"), "shop", "web", uid, 2, map[string]string{"made": "second"})
	s.sockets = engine.Sockets{CRI: server.Serve(t), Docker: docker(t, nil)}
	if found := s.shown("pod:shop/web"); len(found) != 1 || len(found[0].Containers) != 2 || found[0].Pod.Labels["made"] != "second" {
		t.Errorf("%+v", found)
	}
}

// Pods that no kubelet made have no cgroup: their containers are found by the Pod's
// name all the same.
func TestPodWithoutCgroup(t *testing.T) {
	s := newSite(t)
	ns := testkit.NetNS(t)
	s.run("/k8s.io/"+ofDigit("0"), ns)
	s.run("/k8s.io/"+ofDigit("a"), ns)
	server := &enginetest.CRI{Runtime: "containerd"}
	server.Pod(ofDigit("0"), "shop", "bare", "a uid", 1, nil)
	server.Container(ofDigit("a"), ofDigit("0"), "app")
	s.sockets = engine.Sockets{CRI: server.Serve(t), Docker: docker(t, nil)}
	for _, ref := range []string{"pod:shop/bare", "pod:a uid"} {
		found := s.shown("%s", ref)
		if len(found) != 2 || found[0].Kind != KindContainer || found[0].Pod.UID != "a uid" || found[0].Pod.QoS != nil || *found[1].Pod.Name != "bare" {
			t.Errorf("%s: %+v", ref, found)
		}
	}
	if got := s.one("container:app"); got != "/k8s.io/"+ofDigit("a") {
		t.Errorf("container:app is %s", got)
	}
}

// Of a container whose id isn't one, containerd tells the cgroup. It can't take over
// what is somebody else's.
func TestPlaced(t *testing.T) {
	s := newSite(t)
	pid, _ := s.run("/default/web/inner", s.host)
	other, _ := s.run("/docker/"+ofDigit("a"), s.host)
	outside, _ := s.run("/default/website", s.host)
	processes, _, err := readProcesses()
	if err != nil {
		t.Fatal(err)
	}
	look := &scan{told: map[string]engine.Container{}}
	look.match(processes, engine.Answer{Placed: []engine.Container{
		{ID: "web", Engine: "containerd", Source: engine.Containerd, Name: "web", Cgroup: s.base + "/default/web"},
		{ID: "all", Engine: "containerd", Source: engine.Containerd, Name: "all", Cgroup: s.base + "/docker"},
		{ID: "root", Engine: "containerd", Source: engine.Containerd, Name: "root", Cgroup: "/"},
	}})
	for pid, want := range map[int]string{pid: "web " + s.base + "/default/web", other: ofDigit("a") + " " + s.base + "/docker/" + ofDigit("a"), outside: " "} {
		at := slices.IndexFunc(processes, func(p *process) bool { return p.pid == pid })
		if c, _ := processes[at].container(); c.id+" "+c.path != want {
			t.Errorf("the container is %q, want %q", c.id+" "+c.path, want)
		}
	}
	if told := look.told[s.base+"/default/web"]; told.Name != "web" || len(look.told) != 1 {
		t.Errorf("told: %+v", look.told)
	}
}

// An engine that can't be asked costs a note, and what isn't found says that it may be
// for that.
func TestUnasked(t *testing.T) {
	s := newSite(t)
	s.run("/docker/"+ofDigit("a"), s.host)
	nowhere := filepath.Join(t.TempDir(), "socket")
	s.sockets = engine.Sockets{CRI: nowhere, Docker: enginetest.Listen(t).Addr().String()}
	start := time.Now()
	l, err := s.List(context.Background())
	if took := time.Since(start); err != nil || took > 3*engine.Timeout {
		t.Errorf("took %s: %v", took, err)
	}
	if len(l.Notes) < 2 || !strings.Contains(l.Notes[0], nowhere+" can't be asked for names: no such file") || !strings.Contains(l.Notes[1], "no answer within 1s") {
		t.Errorf("notes: %q", l.Notes)
	}
	s.sockets.Docker = filepath.Join(filepath.Dir(nowhere), "docker")
	if got := s.one("container:%s", ofDigit("a")); got != "/docker/"+ofDigit("a") {
		t.Errorf("the container is %s", got)
	}
	for _, ref := range []string{"container:web", "pod:shop/web"} {
		_, err := s.show(ref)
		if hints := strings.Join(fault.Hints(err), "\n"); !errors.Is(err, fault.ErrNotFound) || !strings.Contains(hints, nowhere) || !strings.Contains(hints, s.sockets.Docker) {
			t.Errorf("%s: %v, hints %q", ref, err, hints)
		}
	}
}

// Where nobody told a name, the hint says how one can be asked.
func TestNoEngine(t *testing.T) {
	s := newSite(t)
	s.sockets = engine.Sockets{CRI: (&enginetest.CRI{}).Serve(t), Docker: docker(t, nil)}
	_, err := s.show("container:web")
	if hints := strings.Join(fault.Hints(err), "\n"); !errors.Is(err, fault.ErrNotFound) || !strings.Contains(hints, "--cri-socket") {
		t.Errorf("%v, hints %q", err, hints)
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := New("", engine.Sockets{}).List(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// The engine of a container that another one is in is told as well.
func TestOuterEngine(t *testing.T) {
	s := newSite(t)
	s.run("/custom/"+ofDigit("a")+"/docker/"+ofDigit("b"), s.host)
	s.sockets.Docker = docker(t, map[string]string{ofDigit("a"): "node"})
	if e := s.shown("container:%s", ofDigit("b"))[0]; len(e.Outer) != 1 || e.Outer[0].Engine != Docker {
		t.Errorf("outer: %+v", e.Outer)
	}
}
