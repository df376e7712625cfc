package endpoint

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"bpfnet/internal/fault"
	"bpfnet/internal/testkit"
)

// The cgroups of all Pods, whatever names the kubelet and the engine give them.
func TestPodRootOf(t *testing.T) {
	for path, want := range map[string]string{
		"/kubepods/burstable/pod" + uid + "/" + idA:                                                          "/kubepods",
		"/kubepods/pod" + uid + "/" + idA:                                                                    "/kubepods",
		"/kubelet/kubepods/besteffort/pod" + static + "/crio-" + idA:                                         "/kubelet/kubepods",
		"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + uidScored + ".slice/crio-" + idA: "/kubepods.slice",
		"/kubepods.slice/kubepods-pod" + uidScored + ".slice/cri-containerd-" + idA + ".scope":               "/kubepods.slice",
		"/docker/" + idB + "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod" + uidScored + ".slice/cri-containerd-" + idA + ".scope": "/docker/" + idB + "/kubelet.slice/kubelet-kubepods.slice",
		"/burstable/pod" + uid + "/" + idA: "/",
	} {
		p := parsePath(path)
		if len(p.containers) == 0 {
			t.Errorf("%s is no container", path)
			continue
		}
		if got := p.containers[len(p.containers)-1].pod.root(); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
}

func TestPodRoots(t *testing.T) {
	s := newSite(t)
	ns := testkit.NetNS(t)
	s.run("/kubepods/burstable/pod"+uid+"/"+idA, ns)
	s.run("/kubepods/besteffort/pod"+static+"/"+idB, s.host)
	s.run("/kubepods/besteffort/pod"+static+"/"+idB+"/kubepods/burstable/pod"+uid+"/"+idA, ns) // a node in a Pod
	s.run("/docker/"+idB+"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod"+uidScored+".slice/cri-containerd-"+idA+".scope", ns)
	roots, err := s.PodRoots(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	roots = slices.DeleteFunc(roots, func(dir string) bool { return !within(dir, s.dir) })
	if want := []string{s.dir + "/docker/" + idB + "/kubelet.slice/kubelet-kubepods.slice", s.dir + "/kubepods"}; !slices.Equal(roots, want) {
		t.Errorf("%q", roots)
	}
}

// Cgroups that a container makes in its own belong to it, and processes in them.
func TestCgroupOf(t *testing.T) {
	s := newSite(t)
	pod := "/kubepods/pod" + uid
	first, _ := s.run(pod+"/"+idA, s.host)
	time.Sleep(20 * time.Millisecond) // the next tick
	s.run(pod+"/"+idB, s.host)
	inner, _ := s.run(pod+"/"+idB+"/init.scope", s.host)
	one := func(dirs ...string) map[uint64]bool {
		ids := map[uint64]bool{}
		for _, dir := range dirs {
			ids[inode(t, filepath.Join(s.dir, pod, dir))] = true
		}
		return ids
	}
	for ref, want := range map[string]map[uint64]bool{
		"container:" + idB:                   one(idB, idB+"/init.scope"),
		"container:" + idB[:62]:              one(idB, idB+"/init.scope"),
		fmt.Sprint("pid:", inner):            one(idB, idB+"/init.scope"),
		fmt.Sprint("pid:", first):            one(idA),
		"pod:" + uid:                         one("", idA, idB, idB+"/init.scope"),
		"cgroup:" + s.base + pod + "/" + idA: one("", idA, idB, idB+"/init.scope"),
	} {
		r, err := ParseRef(ref)
		if err != nil {
			t.Fatal(err)
		}
		c, ids, err := s.CgroupOf(s.shown("%s", ref)[0], r)
		if err != nil || !maps.Equal(ids, want) || c.ID == nil || !want[*c.ID] {
			t.Errorf("%s: %+v, %v, want %v, %v", ref, c, ids, want, err)
		}
	}
	r, _ := ParseRef("container:nobody")
	if _, _, err := s.CgroupOf(s.shown("container:%s", idB)[0], r); !errors.Is(err, fault.ErrNotFound) {
		t.Error(err)
	}
}

func TestOpenCgroup(t *testing.T) {
	dir := testkit.Cgroup(t)
	if c, err := OpenCgroup(dir); err != nil || *c.ID != inode(t, dir) || !c.IDs()[*c.ID] {
		t.Errorf("%+v, %v", c, err)
	}
	if _, err := OpenCgroup(filepath.Join(dir, "none")); !errors.Is(err, fault.ErrNotFound) {
		t.Error(err)
	}
	if _, err := OpenCgroup(t.TempDir()); !errors.Is(err, fault.ErrUsage) {
		t.Error(err)
	}
}

func TestContainerOf(t *testing.T) {
	name, web := idB[:4], "web"
	e := Endpoint{Containers: []Container{{ID: idA}, {ID: idB, Name: &name}, {ID: static, Name: &web}}}
	for ref, want := range map[string]string{idA: idA, idB: idB, name: idB, idA[:62]: idA, web: static, "nobody": ""} {
		if c, ok := e.Container(ref); c.ID != want || ok != (want != "") {
			t.Errorf("%s is %q", ref, c.ID)
		}
	}
}
