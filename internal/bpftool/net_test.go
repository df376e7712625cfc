package bpftool

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
	"bpfnet/internal/netns"
	"bpfnet/internal/testkit"
	"bpfnet/pinned"
)

// inNamespace runs a command in a network namespace.
func inNamespace(t testing.TB, ns string, command ...string) []byte {
	t.Helper()
	var out []byte
	if err := netns.Do(ns, func() (err error) {
		out, err = exec.Command(command[0], command[1:]...).CombinedOutput()
		return err
	}); err != nil {
		t.Fatalf("%q: %v: %s", command, err, out)
	}
	return out
}

// pin pins a program for tc(8), which loads none itself here.
func pin(t testing.TB, root string, p *ebpf.Program, name string) string {
	t.Helper()
	if err := os.MkdirAll(root, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(root, name)
	if err := p.Pin(path); err != nil {
		t.Fatal(err)
	}
	return path
}

// sameNetwork compares what is attached in a namespace with what bpftool shows.
// 7.1 knows no TCX and no netkit, and has no key for netfilter.
func sameNetwork(t *testing.T, ns, device string) Network {
	t.Helper()
	words := []string{"net", "show"}
	if device != "" {
		words = append(words, "dev", device)
	}
	var theirs []byte
	if err := netns.Do(ns, func() (err error) {
		theirs, err = oracle(t, words...)
		return err
	}); err != nil {
		t.Fatalf("bpftool %q: %v: %s", words, err, theirs)
	}
	n, err := New("", ns).Network(ctx, device)
	if err != nil {
		t.Fatal(err)
	}
	classic := n
	classic.TC = slices.DeleteFunc(slices.Clone(n.TC), TC.mprog)
	docs := classic.Bpftool()
	var list []json.RawMessage
	if err := json.Unmarshal(theirs, &list); err != nil || len(list) != 1 {
		t.Fatalf("%v: %s", err, theirs)
	}
	sameBut(t, "net show "+device, one(t, docs, nil), list[0], "netfilter")
	return n
}

// TestNetwork compares XDP in each mode and in two, and filters wherever tc
// takes them.
func TestNetwork(t *testing.T) {
	ns, other := testkit.Pair(t)
	root := testkit.Root(t)
	xdp := mustProgram(t, ebpf.ProgramSpec{Name: "x", Type: ebpf.XDP})
	cls := pin(t, root, mustProgram(t, ebpf.ProgramSpec{Name: "cls", Type: ebpf.SchedCLS}), "cls")
	sameNetwork(t, ns, "")

	inNamespace(t, ns, "ip", "link", "add", "d0", "type", "veth", "peer", "name", "p0")
	inNamespace(t, ns, "ip", "link", "add", "d1", "type", "veth", "peer", "name", "p1")
	xdpPin := pin(t, root, xdp, "xdp")
	inNamespace(t, ns, "ip", "link", "set", "dev", "d0", "xdpgeneric", "pinned", xdpPin)
	inNamespace(t, other, "ip", "link", "set", "dev", "b", "xdpdrv", "pinned", xdpPin)

	for _, line := range []string{
		"qdisc add dev a clsact",
		"filter add dev a ingress bpf da pinned " + cls,
		"filter add dev a ingress prio 2 bpf da pinned " + cls,
		"filter add dev a egress bpf pinned " + cls + " classid 1:1 action mirred egress mirror dev d0",
		"filter add dev a egress prio 6 protocol ip u32 match ip protocol 6 0xff",
		"qdisc add dev d0 root handle 1: htb",
		"class add dev d0 parent 1: classid 1:1 htb rate 1mbit",
		"filter add dev d0 parent 1: bpf da pinned " + cls,
		"qdisc add dev d1 ingress",
		"filter add dev d1 ingress bpf da pinned " + cls,
	} {
		inNamespace(t, ns, append([]string{"tc"}, strings.Fields(line)...)...)
	}
	classic := []string{"tc", "filter", "add", "dev", "a", "egress", "prio", "5", "bpf", "bytecode", "1,6 0 0 4294967295"}
	inNamespace(t, ns, classic...)
	for _, device := range []string{"", "a", "d0", "d1", "lo"} {
		n := sameNetwork(t, ns, device)
		t.Logf("%q: %s", device, written(t, n.Rows(true)))
	}
	if n := sameNetwork(t, other, ""); n.Rows(false)[0].Mode == nil || *n.Rows(false)[0].Mode != "native" {
		t.Errorf("driver mode is %s", written(t, n.Rows(false)))
	}
	if _, err := New("", ns).Network(ctx, "none"); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("no such device: %v", err)
	}
}

// TestNetworkRows checks that each filter is listed once, in our words.
func TestNetworkRows(t *testing.T) {
	ns := testkit.NetNS(t)
	root := testkit.Root(t)
	p := mustProgram(t, ebpf.ProgramSpec{Name: "cls", Type: ebpf.SchedCLS})
	cls := pin(t, root, p, "cls")
	for _, line := range []string{
		"ip link add d0 type veth peer name d1", "tc qdisc add dev d0 ingress", "tc qdisc add dev d1 clsact",
		"tc filter add dev d0 ingress bpf da pinned " + cls, "tc filter add dev d1 egress bpf da pinned " + cls,
	} {
		inNamespace(t, ns, strings.Fields(line)...)
	}
	n, err := New("", ns).Network(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	inode, err := netns.Inode(ns)
	if err != nil {
		t.Fatal(err)
	}
	id := programID(t, p)
	row := `{"hook":%q,"mechanism":"netlink","mode":null,"devname":%q,"ifindex":%d,"netns":%d,"target":%s,"prog_id":%d,"prog_name":"cls","link_id":null,"pinned":null}`
	want := "[" + fmt.Sprintf(row, "clsact_egress", "d1", deviceIn(t, ns, "d1"), inode, "null", id) + "," +
		fmt.Sprintf(row, "tc", "d0", deviceIn(t, ns, "d0"), inode, `"ingress"`, id) + "]"
	if got := string(written(t, n.Rows(false))); got != want {
		t.Errorf("rows are\n%s, want\n%s", got, want)
	}
}

// TestNetworkHandles checks that a filter is listed once where bpftool lists it
// once for each device that has a qdisc of that handle.
func TestNetworkHandles(t *testing.T) {
	ns := testkit.NetNS(t)
	cls := pin(t, testkit.Root(t), mustProgram(t, ebpf.ProgramSpec{Name: "cls", Type: ebpf.SchedCLS}), "cls")
	for _, line := range []string{
		"ip link add d0 type veth peer name d1", "tc qdisc add dev d0 root handle 1: htb", "tc qdisc add dev d1 root handle 1: htb",
		"tc filter add dev d0 parent 1: bpf da pinned " + cls,
	} {
		inNamespace(t, ns, strings.Fields(line)...)
	}
	n, err := New("", ns).Network(ctx, "")
	if err != nil || len(n.TC) != 1 {
		t.Errorf("filters are %+v, %v", n.TC, err)
	}
	if theirs := inNamespace(t, ns, "/usr/sbin/bpftool", "-j", "net", "show"); strings.Count(string(theirs), `"htb"`) != 2 {
		t.Errorf("bpftool lists it once: %s", theirs)
	}
}

// TestNetworkLinks checks what newer bpftools print: TCX by link and without,
// netfilter, and that a flow dissector is in valid JSON.
func TestNetworkLinks(t *testing.T) {
	ns, _ := testkit.Pair(t)
	root := testkit.Root(t)
	links := filepath.Join(root, "mine", pinned.Links)
	if err := os.MkdirAll(links, 0o700); err != nil {
		t.Fatal(err)
	}
	index := deviceIn(t, ns, "a")
	cls := mustProgram(t, ebpf.ProgramSpec{Name: "cls", Type: ebpf.SchedCLS})
	bare := mustProgram(t, ebpf.ProgramSpec{Name: "bare", Type: ebpf.SchedCLS})
	xdp := mustProgram(t, ebpf.ProgramSpec{Name: "x", Type: ebpf.XDP})
	var byTCX, byXDP link.Link
	if err := netns.Do(ns, func() (err error) {
		if byTCX, err = link.AttachTCX(link.TCXOptions{Program: cls, Interface: int(index), Attach: ebpf.AttachTCXIngress}); err != nil {
			return err
		}
		if err := link.RawAttachProgram(link.RawAttachProgramOptions{Target: int(index), Program: bare, Attach: ebpf.AttachTCXIngress, Anchor: link.Tail()}); err != nil {
			return err
		}
		byXDP, err = link.AttachXDP(link.XDPOptions{Program: xdp, Interface: int(index), Flags: link.XDPGenericMode})
		return err
	}); err != nil {
		testkit.Needs(t, "TCX", err)
	}
	pinnedAt := filepath.Join(links, "tcx")
	if err := byTCX.Pin(pinnedAt); err != nil {
		t.Fatal(err)
	}
	dissector := mustProgram(t, ebpf.ProgramSpec{Name: "fd", Type: ebpf.FlowDissector, AttachType: ebpf.AttachFlowDissector})
	attachNetNS(t, ns, dissector, ebpf.AttachFlowDissector)
	filter := mustProgram(t, ebpf.ProgramSpec{Name: "f", Type: ebpf.Netfilter, AttachType: ebpf.AttachNetfilter})
	filterLink := linkID(t, attachNetfilter(t, ns, filter))

	n, err := New(root, ns).Network(ctx, "")
	if err != nil || len(n.Notes) > 0 {
		t.Fatal(err, n.Notes)
	}
	n.Netfilter = slices.DeleteFunc(n.Netfilter, func(f Netfilter) bool { return *f.LinkID != filterLink }) // other tests' are listed, too
	linked, xdpLink := linkID(t, byTCX), linkID(t, byXDP)
	want := fmt.Sprintf(`[{"xdp":[{"devname":"a","ifindex":%d,"mode":"generic","id":%d}],`+
		`"tc":[{"devname":"a","ifindex":%d,"kind":"tcx/ingress","name":"cls","prog_id":%d,"prog_flags":[],"link_id":%d,"link_flags":[]},`+
		`{"devname":"a","ifindex":%d,"kind":"tcx/ingress","name":"bare","prog_id":%d,"prog_flags":[],"link_id":0,"link_flags":[]}],`+
		`"flow_dissector":[{"id":%d}],"netfilter":[{"pf":2,"hook":1,"prio":-128,"flags":0,"id":%d}]}]`,
		index, programID(t, xdp), index, programID(t, cls), linked, index, programID(t, bare), programID(t, dissector), programID(t, filter))
	if got := string(written(t, n.Bpftool())); got != want {
		t.Errorf("got\n%s, want\n%s", got, want)
	}
	if theirs := inNamespace(t, ns, "/usr/sbin/bpftool", "-j", "net", "show"); json.Valid(theirs) {
		t.Errorf("bpftool writes a flow dissector as JSON: %s", theirs)
	}
	hooks := []string{}
	for _, row := range n.Rows(true) {
		hooks = append(hooks, fmt.Sprint(row.Hook, " ", value(row.Mechanism), " ", value(row.LinkID), " ", value(row.Pinned), " ", value(row.Target)))
	}
	wantHooks := []string{
		fmt.Sprintf("xdp link %d  ", xdpLink), fmt.Sprintf("tcx_ingress link %d %s ", linked, pinnedAt), "tcx_ingress attach   ",
		fmt.Sprintf("flow_dissector link %v  ", value(n.Stack[0].LinkID)), fmt.Sprintf("netfilter link %d  ip input priority -128", filterLink),
	}
	if !slices.Equal(hooks, wantHooks) || n.Stack[0].LinkID == nil {
		t.Errorf("rows are %q, want %q", hooks, wantHooks)
	}
}

func value[T any](p *T) any {
	if p == nil {
		return ""
	}
	return *p
}

// TestNetworkOfModes compares a device with XDP programs in two modes.
func TestNetworkOfModes(t *testing.T) {
	n := Network{XDP: []XDP{{Device{"a", 2}, []XDPProgram{{"generic", Running{ProgID: 5}}, {"driver", Running{ProgID: 6}}}}}}
	want := `[{"xdp":[{"devname":"a","ifindex":2,"multi_attachments":[{"mode":"generic","id":5},{"mode":"driver","id":6}]}],"tc":[],"flow_dissector":[],"netfilter":[]}]`
	if got := string(written(t, n.Bpftool())); got != want {
		t.Errorf("got %s", got)
	}
	attribute := func(id uint32) []byte { return []byte{byte(id), 0, 0, 0} }
	programs := xdpPrograms(map[uint16][]byte{iflaXDPAttached: {xdpAttachedMulti}, iflaXDPSkbID: attribute(5), iflaXDPDrvID: attribute(6)})
	if len(programs) != 2 || programs[0].ProgID != 5 || programs[1].Mode != "driver" || len(n.Rows(false)) != 2 || n.Rows(false)[0].Mechanism != nil { // links were not read
		t.Errorf("%+v", programs)
	}
}

// TestActions reads programs that are actions of a filter, as the kernel lists
// them among others.
func TestActions(t *testing.T) {
	nested := func(kind int, inner ...*nl.RtAttr) *nl.RtAttr {
		a := nl.NewRtAttr(kind, nil)
		for _, i := range inner {
			a.AddChild(i)
		}
		return a
	}
	action := func(kind string, options ...*nl.RtAttr) *nl.RtAttr {
		return nested(1, nl.NewRtAttr(tcaActKind, nl.ZeroTerminated(kind)), nested(tcaActOptions, options...))
	}
	parms, id := nl.NewRtAttr(tcaActBPFParms, make([]byte, 20)), nl.NewRtAttr(tcaActBPFID, nl.Uint32Attr(77))
	list := slices.Concat(action("mirred").Serialize(), action("bpf", parms, id, nl.NewRtAttr(tcaActBPFName, nl.ZeroTerminated("act"))).Serialize())
	if got := readActions(list); !slices.Equal(got, []Action{{"act", 77}}) {
		t.Errorf("actions are %v", got)
	}
	tc := TC{Device: Device{"a", 2}, Kind: "htb", Filter: "f", Running: Running{ProgID: 5}, Actions: readActions(list)}
	want := `{"devname":"a","ifindex":2,"kind":"htb","name":"f","id":5,"act":[{"name":"act","id":77}]}`
	if got := string(written(t, tc.fields())); got != want {
		t.Errorf("filter is %s", got)
	}
}

// TestMprogsUnread tells a query that fails from one that finds nothing.
func TestMprogsUnread(t *testing.T) {
	for answer, unread := range map[unix.Errno]bool{
		unix.EINVAL: false, unix.ENXIO: false, unix.EACCES: false, unix.ENOENT: false, unix.ENODEV: false,
		unix.EPERM: true, unix.ENOMEM: true,
	} {
		programs, err := readMprogs(Device{"dev0", 7}, func(target, attachType, _ uint32) ([]attached, error) {
			if attachType == attachTCXEgress && target == 7 {
				return []attached{{progID: 5, linkID: 6}}, nil
			}
			return nil, answer
		})
		if len(programs) != 1 || programs[0].Kind != "tcx/egress" || *programs[0].LinkID != 6 {
			t.Errorf("%v: %+v", answer, programs)
		}
		if (err != nil) != unread || unread && !errors.Is(err, answer) {
			t.Errorf("%v: %v", answer, err)
		}
	}
}
