package endpoint

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"bpfnet/internal/engine"
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

	networks := map[string]NetNS{podNS: 0, webNS: 0, s.host: 0}
	for path := range networks {
		networks[path] = NetNS(inode(t, path))
	}

	owners := NewOwners(s.Kernel)
	check := func(when string) {
		t.Helper()
		_, err := owners.Find(context.Background(), time.Minute, []uint32{interfaces["vethpod"], interfaces["vethweb"], interfaces["lo"]},
			[]uint64{cgroups[pod], cgroups[pod+"/"+idA], cgroups[web+"/init"], cgroups[""], 1}, networks[podNS], networks[webNS], networks[s.host])
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
		for path, want := range map[string]string{podNS: "pod " + uid, webNS: "container " + idB, s.host: "nobody"} {
			if got := ownerText(owners.Network(networks[path])); got != want {
				t.Errorf("%s: network %s is of %s, want %s", when, path, got, want)
			}
		}
	}
	check("while they run")
	if got := ownerText(owners.Address(netip.MustParseAddr("10.202.7.4"))); got != "pod "+uid { // both have it
		t.Errorf("the address is of %s", got)
	}
	endPod()
	endInit()
	endBeside()
	check("when they have ended")

	owners.Retain(map[uint32]bool{interfaces["vethpod"]: true}, map[uint64]bool{cgroups[pod]: true})
	_, web4 := owners.Interface(interfaces["vethweb"])
	_, init := owners.Cgroup(cgroups[web+"/init"])
	if _, pod := owners.Network(networks[podNS]); pod {
		t.Error("a network is retained")
	}
	if pod4 := ownerText(owners.Interface(interfaces["vethpod"])); pod4 != "pod "+uid || web4 || init {
		t.Errorf("retained are %s, %v, %v", pod4, web4, init)
	}
}

func TestGoneCgroups(t *testing.T) {
	top := testkit.Cgroup(t)
	var ids []uint64
	for _, name := range []string{"stays", "goes"} {
		dir := filepath.Join(top, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Remove(dir) })
		ids = append(ids, inode(t, dir))
	}
	if err := os.Remove(filepath.Join(top, "goes")); err != nil {
		t.Fatal(err)
	}
	gone, err := New("", engine.Sockets{}).GoneCgroups(ids)
	if err != nil || !maps.Equal(gone, map[uint64]bool{ids[1]: true}) {
		t.Errorf("%v are gone of %v, %v", gone, ids, err)
	}
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

var looked = netip.MustParseAddr("10.0.0.4")

// looks counts how often endpoints are looked for. The Pod at interface 4 is named in
// the second look, and in no other.
type looks struct {
	API
	count int
	wait  chan struct{} // of each look
}

func (l *looks) List(context.Context) (Listing, error) {
	l.count++
	if l.wait != nil {
		<-l.wait
	}
	index := 4
	name, namespace := "web", "shop"
	e := Endpoint{Pod: &Pod{UID: uid}, Interfaces: []Interface{{IfIndex: &index, Addresses: []netip.Addr{looked}}}}
	if l.count == 2 {
		e.Pod.Name, e.Pod.Namespace = &name, &namespace
	}
	return Listing{Endpoints: []Endpoint{e}, Notes: []string{fmt.Sprint("look ", l.count)}}, nil
}

// Owners look again for what is new, and after a while for what has no name. A name
// stays when engines don't tell it any more.
func TestOwnersLookAgain(t *testing.T) {
	looks := &looks{}
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
		if _, err := owners.Find(context.Background(), time.Minute, want.interfaces, nil); err != nil || looks.count != want.looks {
			t.Errorf("step %d: looked %d times, want %d; %v", step, looks.count, want.looks, err)
		}
		if owner, _ := owners.Interface(4); looks.count > 0 && (owner.Pod.Name != nil) != (looks.count > 1) {
			t.Errorf("step %d: %+v", step, owner.Pod)
		}
		if owner, _ := owners.Address(looked); looks.count > 0 && (owner.Pod.Name != nil) != (looks.count > 1) {
			t.Errorf("step %d: by its address %+v", step, owner.Pod)
		}
	}
}

// A look that takes long is waited for once, and what it finds is known later.
func TestOwnersDontWait(t *testing.T) {
	looks := &looks{wait: make(chan struct{})}
	owners := NewOwners(looks)
	const wait = 50 * time.Millisecond
	find := func(want time.Duration) []string {
		t.Helper()
		began := time.Now()
		notes, err := owners.Find(context.Background(), wait, []uint32{4}, nil)
		if took := time.Since(began); err != nil || took < want || took > want+wait {
			t.Errorf("it took %s, want %s; %v", took, want, err)
		}
		return notes
	}
	find(wait)
	find(0)
	if _, ok := owners.Interface(4); ok {
		t.Error("it is known before it was looked for")
	}
	looks.wait <- struct{}{}
	time.Sleep(10 * time.Millisecond)
	if notes := find(0); !slices.Equal(notes, []string{"look 1"}) {
		t.Errorf("notes: %q", notes)
	}
	if owner, ok := owners.Interface(4); !ok || owner.Pod.UID != uid {
		t.Errorf("%+v, %v", owner, ok)
	}
}
