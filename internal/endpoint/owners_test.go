package endpoint

import (
	"context"
	"testing"
	"time"

	"bpfnet/internal/testkit"
)

// Whose an interface and a cgroup are is found, also of a cgroup below a container's,
// and stays known when all are gone.
func TestOwners(t *testing.T) {
	s := newSite(t)
	podNS, webNS := testkit.NetNS(t), testkit.NetNS(t)
	s.connect(podNS, "vethpod", "10.202.7.4/24")
	s.connect(webNS, "vethweb", "10.202.7.4/24")
	pod, web := "/kubepods/pod"+uid, "/docker/"+idB
	_, endPod := s.run(pod+"/"+idA, podNS)
	_, endInit := s.run(web+"/init", webNS)
	time.Sleep(20 * time.Millisecond) // the next tick
	_, endBeside := s.run("/docker/"+static+static, webNS)
	interfaces := map[string]uint32{"vethpod": 0, "vethweb": 0, "lo": 0}
	s.in(s.host, func() {
		for name := range interfaces {
			interfaces[name] = uint32(indexOf(name))
		}
	})
	cgroups := map[string]uint64{pod: 0, pod + "/" + idA: 0, web + "/init": 0, "": 0}
	for path := range cgroups {
		cgroups[path] = inode(t, s.dir+path)
	}

	owners := NewOwners(s.Kernel)
	check := func(when string) {
		t.Helper()
		_, err := owners.Find(context.Background(), []uint32{interfaces["vethpod"], interfaces["vethweb"], interfaces["lo"]},
			[]uint64{cgroups[pod], cgroups[pod+"/"+idA], cgroups[web+"/init"], cgroups[""], 1})
		if err != nil {
			t.Fatal(err)
		}
		for dev, want := range map[string]string{"vethpod": "pod " + uid, "vethweb": "container " + idB, "lo": "nobody"} {
			if got := ownerText(owners.Interface(interfaces[dev])); got != want {
				t.Errorf("%s: %s is of %s, want %s", when, dev, got, want)
			}
		}
		for path, want := range map[string]string{
			pod: "pod " + uid, pod + "/" + idA: "pod " + uid + " container " + idA, web + "/init": "container " + idB, "": "nobody",
		} {
			if got := ownerText(owners.Cgroup(cgroups[path])); got != want {
				t.Errorf("%s: cgroup %q is of %s, want %s", when, path, got, want)
			}
		}
	}
	check("while they run")
	endPod()
	endInit()
	endBeside()
	check("when they have ended")
}

func ownerText(o Owner, known bool) string {
	switch {
	case !known:
		return "nobody"
	case o.Pod == nil:
		return "container " + o.Container.ID
	case o.Container == nil:
		return "pod " + o.Pod.UID
	}
	return "pod " + o.Pod.UID + " container " + o.Container.ID
}

// countedLooks counts how often endpoints are looked for.
type countedLooks struct {
	API
	count int
}

func (c *countedLooks) List(context.Context) (Listing, error) {
	c.count++
	index := 4
	name, namespace := "web", "shop"
	e := Endpoint{Pod: &Pod{UID: uid}, Interfaces: []Interface{{IfIndex: &index}}}
	if c.count > 1 {
		e.Pod.Name, e.Pod.Namespace = &name, &namespace
	}
	return Listing{Endpoints: []Endpoint{e}}, nil
}

// Owners look again for what is new, and after a while for what has no name.
func TestOwnersLookAgain(t *testing.T) {
	looks := &countedLooks{}
	owners := NewOwners(looks)
	for step, want := range []struct {
		interfaces []uint32
		wait       bool
		looks      int
	}{
		{nil, false, 0}, {[]uint32{4}, false, 1}, {[]uint32{4}, false, 1}, {[]uint32{4}, true, 2}, {[]uint32{4}, true, 2},
		{[]uint32{4, 5}, false, 3}, {[]uint32{4, 5}, false, 3}, {[]uint32{5, 6}, false, 4}, {[]uint32{4}, true, 4},
	} {
		if want.wait {
			for place, at := range owners.asked {
				owners.asked[place] = at.Add(-lookAgain)
			}
		}
		if _, err := owners.Find(context.Background(), want.interfaces, nil); err != nil || looks.count != want.looks {
			t.Errorf("step %d: looked %d times, want %d; %v", step, looks.count, want.looks, err)
		}
	}
}
