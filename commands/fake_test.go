package commands

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/cilium/ebpf"

	"bpfnet/internal/blocklist"
	"bpfnet/internal/bpftool"
	"bpfnet/internal/bypass"
	"bpfnet/internal/counter"
	"bpfnet/internal/datapath"
	"bpfnet/internal/drops"
	"bpfnet/internal/endpoint"
	"bpfnet/internal/fault"
	"bpfnet/internal/flow"
	"bpfnet/internal/follow"
	"bpfnet/internal/maps"
	"bpfnet/internal/peers"
	"bpfnet/internal/ports"
	"bpfnet/internal/probe"
	"bpfnet/internal/sockets"
	"bpfnet/internal/traffic"
	"bpfnet/pinned"
)

// fake is a Backend without a kernel. Its instances behave as real ones as far
// as commands can tell; the parts of other packages are set by the tests that
// need them.
type fake struct {
	instances map[string]*datapath.Instance
	devices   []string
	options   Options // of the last Open
	stats     bool    // EnableStats is on
	reads     uint64  // calls of Instances while stats is on

	maps     maps.API
	bpftool  bpftool.API
	report   probe.Report
	steps    []probe.Step
	bypass   bypass.Report
	traffic  traffic.Sampler
	counters counter.Sampler
	ports    ports.API
	blocked  fakeBlocklist
	flows    flow.Request       // the last one
	census   flow.CensusRequest // the last one
	events   flow.EventsRequest // the last one

	endpoints endpoint.API
}

func newFake() *fake {
	return &fake{instances: map[string]*datapath.Instance{}, devices: []string{"eth0", "lo", "veth-a", "veth-b"}, endpoints: fakeEndpoints{}}
}

// env returns an Env on the fake whose output goes to the buffers.
func (f *fake) env(stdout, stderr *bytes.Buffer) *Env {
	return &Env{
		Stdin:  strings.NewReader(""),
		Stdout: stdout,
		Stderr: stderr,
		Open: func(_ context.Context, options Options) (Backend, error) {
			f.options = options
			return f, nil
		},
		Interrupts: func(ctx context.Context) context.Context { return ctx },
		Resolve: func(netns string) (string, error) {
			if netns == "gone" {
				return "", fault.New(fault.ErrNotFound, "no network namespace %q", netns)
			}
			return "/run/netns/" + netns, nil
		},
		HoldNetNS: func(pid int, inode uint64) (string, error) { return fmt.Sprintf("%d in %d", pid, inode), nil },
		Now:       func() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) },
		Getenv:    func(string) string { return "" },
		ReadFile: func(path string) ([]byte, error) {
			return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
		},
		Terminal:   func() (int, int, bool) { return 0, 0, false },
		Keys:       func() (<-chan byte, func(), bool) { return nil, nil, false },
		BootTime:   func() (time.Time, error) { return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), nil },
		Executable: fakeExecutable,
		ReaderGone: func() bool { return false },
		Hostname:   func() (string, error) { return "node-1", nil },
		Nameservers: func() []netip.Addr {
			return []netip.Addr{netip.MustParseAddr("192.0.2.53"), netip.MustParseAddr("127.0.0.53")}
		},
		Listen: func(address string) (net.Listener, error) {
			if strings.HasSuffix(address, ":1") {
				return nil, &net.OpError{Op: "listen", Net: "tcp", Err: os.NewSyscallError("bind", syscall.EADDRINUSE)}
			}
			return net.Listen("tcp", address)
		},
		Interfaces: func() ([]string, error) { return f.devices, nil },
		State:      func(string) State { return fakeState{f} },
	}
}

type fakeState struct{ *fake }

func (s fakeState) Names() ([]string, error) { return s.names(), nil }

func (s fakeState) List(instance, kind string) ([]string, error) {
	var names []string
	if in, ok := s.instances[instance]; ok && kind == pinned.Maps {
		for _, m := range in.Maps {
			names = append(names, m.Name)
		}
	} else if ok && kind == pinned.Progs {
		for _, p := range in.Programs {
			names = append(names, p.Name)
		}
	}
	return names, nil
}

// rejection is what the datapath returns when the verifier refuses a program.
type rejection struct{ log []string }

func (r rejection) Error() string         { return "load bad: the verifier refused it: R2 !read_ok" }
func (r rejection) Unwrap() error         { return fault.ErrRejected }
func (r rejection) VerifierLog() []string { return r.log }

func (f *fake) Load(_ context.Context, r datapath.LoadRequest) (datapath.Loaded, error) {
	if strings.TrimSpace(string(r.Object)) == "bad" {
		return datapath.Loaded{}, rejection{[]string{"0: r0 = 0", "1: r1 = r2", "R2 !read_ok", "processed 2 insns"}}
	}
	loaded := datapath.Loaded{Name: r.Name, Source: r.Source, Builtin: r.Object == nil, Notes: []string{}}
	if in, ok := f.instances[r.Name]; ok && !r.Replace {
		loaded.Programs, loaded.Maps = in.Programs, in.Maps
		return loaded, nil
	}
	loaded.Changed = true
	loaded.Programs = []datapath.Program{{ID: 839, Name: strings.ReplaceAll(r.Name, "-", "_"), Section: "xdp", Type: "xdp",
		Tag: "a04f5eef06a7f555", MapIDs: []uint32{12}, Pinned: "/sys/fs/bpf/bpfnet/" + r.Name + "/progs/main", Set: r.Name}}
	loaded.Maps = []datapath.MapRef{{ID: 12, Name: "packets", Type: "percpu_array", MaxEntries: 1, Pinned: "/sys/fs/bpf/bpfnet/" + r.Name + "/maps/packets"}}
	if !r.DryRun {
		f.instances[r.Name] = &datapath.Instance{Name: r.Name, Source: r.Source, Builtin: loaded.Builtin, Parameters: r.Set,
			Programs: loaded.Programs, Maps: loaded.Maps, Attachments: []datapath.Attachment{}}
	}
	return loaded, nil
}

func (f *fake) instance(name string) (*datapath.Instance, error) {
	if in, ok := f.instances[name]; ok {
		return in, nil
	}
	return nil, fault.New(fault.ErrNotFound, "%q is not loaded", name).Hint("bpfnet load %s", name)
}

func (f *fake) Attach(ctx context.Context, requests ...datapath.AttachRequest) (datapath.Attached, error) {
	attached := datapath.Attached{Name: requests[0].Name}
	for _, r := range requests {
		if err := f.attach(ctx, r, &attached); err != nil {
			return datapath.Attached{}, err
		}
	}
	return attached, nil
}

func (f *fake) attach(ctx context.Context, r datapath.AttachRequest, attached *datapath.Attached) error {
	in, err := f.instance(r.Name)
	if err != nil {
		return err
	}
	if err := f.CheckTarget(r); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("attach %s: %w", r.Hook, err)
	}
	for _, hook := range hooks(r) {
		a := attachment(in, r, hook)
		a.Changed = !slices.ContainsFunc(in.Attachments, func(b datapath.Attachment) bool {
			return b.Hook == hook && same(a.DevName, b.DevName) && same(a.Cgroup, b.Cgroup)
		})
		attached.Changed = attached.Changed || a.Changed
		attached.Attachments = append(attached.Attachments, a)
		if a.Changed && !r.DryRun {
			in.Attachments = append(in.Attachments, a)
		}
	}
	return nil
}

func (f *fake) CheckTarget(r datapath.AttachRequest) error {
	if r.Device != "" && !slices.Contains(f.devices, r.Device) {
		return fault.New(fault.ErrNotFound, "attach %s to %q: no such interface", r.Hook, r.Device).Hint("ip link")
	}
	return nil
}

func same(a, b *string) bool { return a == b || a != nil && b != nil && *a == *b }

func hooks(r datapath.AttachRequest) []string {
	switch {
	case r.Hook == "tc" && r.Direction == datapath.Both:
		return []string{"tcx_egress", "tcx_ingress"}
	case r.Hook == "tc":
		return []string{"tcx_" + string(r.Direction)}
	}
	return []string{r.Hook}
}

func attachment(in *datapath.Instance, r datapath.AttachRequest, hook string) datapath.Attachment {
	link, pin := uint32(97), "/sys/fs/bpf/bpfnet/"+in.Name+"/links/"+hook
	a := datapath.Attachment{Name: in.Name, Program: in.Programs[0].Name, Hook: hook, Mechanism: "link", ProgID: 839, LinkID: &link, Pinned: &pin,
		RefusedWhy: []string{}, Notes: []string{}}
	if r.Device != "" {
		index, ns := uint32(4), uint64(4026532301)
		a.DevName, a.IfIndex, a.NetNS = &r.Device, &index, &ns
	}
	if r.Cgroup != "" {
		id := "4021"
		a.Cgroup, a.CgroupID = &r.Cgroup, &id
	}
	if r.Hook == "xdp" {
		mode := string(datapath.ModeNative)
		a.Mode = &mode
	}
	return a
}

func (f *fake) Detach(_ context.Context, requests ...datapath.DetachRequest) (datapath.Attached, error) {
	r := requests[0]
	detached := datapath.Attached{Name: r.Name}
	for _, name := range f.names() {
		in := f.instances[name]
		if r.Name != "" && r.Name != name {
			continue
		}
		kept := []datapath.Attachment{}
		for _, a := range in.Attachments {
			if !slices.ContainsFunc(requests, func(r datapath.DetachRequest) bool { return selected(r, a) }) {
				kept = append(kept, a)
				continue
			}
			a.Changed, detached.Changed = true, true
			detached.Attachments = append(detached.Attachments, a)
		}
		if !r.DryRun {
			in.Attachments = kept
		}
	}
	return detached, nil
}

func selected(r datapath.DetachRequest, a datapath.Attachment) bool {
	return (r.Hook == "" || strings.HasPrefix(a.Hook, r.Hook)) &&
		(r.Device == "" || a.DevName != nil && *a.DevName == r.Device) &&
		(r.Direction == "" || r.Direction == datapath.Both || strings.HasSuffix(a.Hook, string(r.Direction))) &&
		(r.Cgroup == "" || a.Cgroup != nil && *a.Cgroup == r.Cgroup) &&
		(!r.Defunct || a.Defunct)
}

func (f *fake) Unload(_ context.Context, r datapath.UnloadRequest) (datapath.Unloaded, error) {
	unloaded := datapath.Unloaded{Names: []string{}}
	for _, name := range f.names() {
		if !r.All && r.Name != name {
			continue
		}
		n := len(f.instances[name].Attachments)
		if n > 0 && !r.Detach {
			return unloaded, fault.New(fault.ErrConflict, "unload %q: %d attachments", name, n).Hint("bpfnet unload %s --detach", name)
		}
		unloaded.Changed, unloaded.Names, unloaded.Detached = true, append(unloaded.Names, name), unloaded.Detached+n
		if !r.DryRun {
			delete(f.instances, name)
		}
	}
	return unloaded, nil
}

func (f *fake) names() []string {
	names := []string{}
	for name := range f.instances {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Instances counts runs while statistics are on: each read sees 1000 more of
// 50 ns each.
func (f *fake) Instances(_ context.Context, name string) ([]datapath.Instance, error) {
	if f.stats {
		f.reads++
	}
	list := []datapath.Instance{}
	for _, n := range f.names() {
		if name != "" && n != name {
			continue
		}
		in := *f.instances[n]
		in.Programs = slices.Clone(in.Programs)
		for i := range in.Programs {
			runs, ns := 1000*f.reads, 50000*f.reads
			in.Programs[i].RunCount, in.Programs[i].RunTimeNS = &runs, &ns
		}
		list = append(list, in)
	}
	if name != "" && len(list) == 0 {
		_, err := f.instance(name)
		return nil, err
	}
	return list, nil
}

func (f *fake) Attachments(_ context.Context, name string) ([]datapath.Attachment, error) {
	in, err := f.instance(name)
	if err != nil {
		return nil, err
	}
	return in.Attachments, nil
}

func (f *fake) EnableStats() (func() error, error) {
	f.stats = true
	return func() error { f.stats = false; return nil }, nil
}

func (f *fake) OpenMap(instance, name string, _ bool) (*ebpf.Map, error) {
	return nil, fault.New(fault.ErrUnsupported, "open map %s/%s: the fake has no kernel", instance, name)
}

func (f *fake) Update(_ context.Context, fn func() error) error { return fn() }
func (f *fake) Bpftool() bpftool.API                            { return f.bpftool }

// Follow tells of a Pod that is there, one that comes and goes, and one that can't be
// attached to.
func (f *fake) Follow(_ context.Context, r datapath.AttachRequest, tell func(follow.Event) error) error {
	named, nameless := *fakePod().Pod, *fakePod().Pod
	nameless.Namespace, nameless.Name = nil, nil
	last := []traffic.Entry{{Address: netip.MustParseAddr("10.77.0.6"), Counters: traffic.Counters{TransmitBytes: 4200, TransmitPackets: 100, ReceiveBytes: 42, ReceivePackets: 1}}}
	for i, e := range []follow.Event{
		{Kind: follow.Adopted, DevName: "veth-a", IfIndex: 4, Pod: &nameless},
		{Kind: follow.Attached, DevName: "veth-b", IfIndex: 5, Took: 12345 * time.Microsecond},
		{Kind: follow.Identified, DevName: "veth-b", IfIndex: 5, Pod: &named},
		{Kind: follow.Failed, DevName: "veth-c", IfIndex: 6, Err: fault.New(fault.ErrConflict, "attach %s %q: busy", r.Hook, r.Name)},
		{Kind: follow.Gone, DevName: "veth-b", IfIndex: 5, Pod: &named, Traffic: last},
		{Kind: follow.Gone, IfIndex: 7, Traffic: []traffic.Entry{}},
	} {
		e.Time = time.Date(2026, 1, 2, 3, 4, 5+i, 0, time.UTC)
		if err := tell(e); err != nil {
			return err
		}
	}
	return nil
}

func (f *fake) Sockets() (sockets.API, error)              { return fakeSockets{}, nil }
func (f *fake) Endpoints() endpoint.API                    { return f.endpoints }
func (f *fake) Maps() maps.API                             { return f.maps }
func (f *fake) Probe(context.Context) probe.Report         { return f.report }
func (f *fake) SelfTest(context.Context) []probe.Step      { return f.steps }
func (f *fake) PodTraffic(string) (traffic.Sampler, error) { return f.traffic, nil }
func (f *fake) Peers(name string) (peers.Sampler, error)   { return &fakePeers{fake: f, name: name}, nil }
func (f *fake) Drops(name string) (drops.Sampler, error)   { return &fakeDrops{fake: f, name: name}, nil }
func (f *fake) Counters(string) (counter.Sampler, error)   { return f.counters, nil }
func (f *fake) Ports(string) (ports.API, error)            { return f.ports, nil }
func (f *fake) Blocklist() blocklist.API                   { return &f.blocked }
func (f *fake) Bypass(context.Context) bypass.Report       { return f.bypass }

func (f *fake) Answers(context.Context, string, time.Duration, bool) (AnswerSource, error) {
	return &fakeAnswers{}, nil
}

func (f *fake) Exchanges(_ context.Context, instance string, _, _ time.Duration, steal bool) (ExchangeSource, error) {
	return newFakeExchanges(instance, steal)
}

func (f *fake) InterfaceBytes() (datapath.InterfaceBytes, error) {
	return datapath.InterfaceBytes{}, nil
}

func (f *fake) InterfaceKinds([]uint32) (map[uint32]string, error) { return nil, nil }

func (f *fake) LostAnswers(string) (uint64, error) { return 2, nil }

func (f *fake) Close() error { return nil }
