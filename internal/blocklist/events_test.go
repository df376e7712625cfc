package blocklist

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	. "bpfnet/bpf/packettest"
	"bpfnet/internal/datapath"
	"bpfnet/internal/fault"
	"bpfnet/internal/netns"
	"bpfnet/internal/testkit"
)

// openEvents opens the events of a store for a test.
func openEvents(t testing.TB, s *Store) EventSource {
	t.Helper()
	source, err := s.Events(context.Background(), EventsRequest{LockTimeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { source.Close() })
	return source
}

// pending reads what is there.
func pending(t testing.TB, source EventSource) (all []Event) {
	t.Helper()
	err := source.Read(context.Background(), EventsReading{
		Emit:    func(events []Event) error { all = append(all, events...); return nil },
		Most:    func() int { return 100 },
		Pending: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// only is pending for one event.
func only(t testing.TB, source EventSource) Event {
	t.Helper()
	all := pending(t, source)
	if len(all) != 1 {
		t.Fatalf("%d events: %+v", len(all), all)
	}
	return all[0]
}

// TestHooks sends packets through a veth, of listed IPv4 and IPv6 addresses, by
// each hook, where they are reported and dropped or go on.
func TestHooks(t *testing.T) {
	nsA, nsB := testkit.Pair(t)
	cgroup := testkit.Cgroup(t)
	engines := map[string]*datapath.Engine{}
	root := testkit.Root(t)
	for _, ns := range []string{nsA, nsB} {
		engine, err := datapath.Open(datapath.Options{Root: root, NetNS: ns})
		if err != nil {
			t.Fatal(err)
		}
		engines[ns] = engine
	}
	s, ctx := New(engines[nsA]), context.Background()
	if _, err := engines[nsA].Load(ctx, datapath.LoadRequest{Source: "blocklist"}); err != nil {
		t.Fatal(err)
	}
	know(t, nsA, nsB)
	source, last := openEvents(t, s), 10
	for _, hook := range []struct {
		attach    datapath.AttachRequest
		direction string
	}{
		{datapath.AttachRequest{Hook: "tc", Device: "a", Direction: datapath.Ingress}, "ingress"},
		{datapath.AttachRequest{Hook: "xdp", Device: "a", Mode: datapath.ModeGeneric}, "ingress"},
		{datapath.AttachRequest{Hook: "cgroup", Cgroup: cgroup}, "egress"},
	} {
		hook.attach.Name = "blocklist"
		if _, err := engines[nsA].Attach(ctx, hook.attach); err != nil {
			t.Fatal(err)
		}
		for _, action := range []Action{Alert, AlertAndDrop} {
			for _, family := range []struct{ prefix, far string }{{"10.77.0.", "10.77.0.1"}, {"fd77::", "fd77::1"}} {
				last++
				address := netip.MustParseAddr(fmt.Sprint(family.prefix, last))
				list := strings.ReplaceAll(string(action), "+", "-")
				listed := netip.PrefixFrom(address, address.BitLen())
				mustAdd(t, s, list, listed.String())
				if _, err := s.Set(ctx, SetRequest{List: list, Action: action}); err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				sendFrom(t, nsB, cgroup, address, netip.MustParseAddr(family.far))
				e := only(t, source)
				if e.Hook != hook.attach.Hook || e.Direction != hook.direction || e.Dropped != (action == AlertAndDrop) || e.Entry.Action != action ||
					e.Entry.List != list || e.Entry.Prefix != listed || e.Matched != Source || e.FarEnd().String() != family.far ||
					e.Source.Addr() != address || e.Source.Port() != 7 || e.Destination.Port() != 9 || e.Protocol != 17 || e.IfIndex == 0 ||
					e.Time.Before(began.Add(-time.Millisecond)) || e.Time.After(time.Now().Add(time.Millisecond)) {
					t.Errorf("%s, %s, %s: %+v", hook.attach.Hook, action, address, e)
				}
				if hook.attach.Hook == "cgroup" && e.CgroupID != inode(t, cgroup) {
					t.Errorf("%s: cgroup %d", address, e.CgroupID)
				}
			}
		}
		if _, err := engines[nsA].Detach(ctx, datapath.DetachRequest{Hook: hook.attach.Hook, Name: "blocklist"}); err != nil {
			t.Fatal(err)
		}
	}
}

// know has a namespace's device b know the other one's address, so that nothing
// but what the test sends has a listed address.
func know(t testing.TB, nsA, nsB string) {
	t.Helper()
	var hardware net.HardwareAddr
	err := netns.Do(nsA, func() error {
		a, err := netlink.LinkByName("a")
		if err == nil {
			hardware = a.Attrs().HardwareAddr
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	err = netns.Do(nsB, func() error {
		b, err := netlink.LinkByName("b")
		for _, far := range []string{"10.77.0.1", "fd77::1"} {
			if err == nil {
				err = netlink.NeighSet(&netlink.Neigh{LinkIndex: b.Attrs().Index, State: netlink.NUD_PERMANENT, IP: net.ParseIP(far), HardwareAddr: hardware})
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func inode(t testing.TB, path string) uint64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Ino
}

// sendVariable has the ends of the datagram that a test's own program sends.
const sendVariable = "BPFNET_TEST_SEND"

// sendFrom sends a datagram from a process in a cgroup and a namespace, whose
// device b gets the address.
func sendFrom(t testing.TB, ns, cgroup string, from, to netip.Addr) {
	t.Helper()
	dir, err := os.Open(cgroup)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	err = netns.Do(ns, func() error {
		b, err := netlink.LinkByName("b")
		if err != nil {
			return err
		}
		bits := from.BitLen()
		address := &netlink.Addr{IPNet: &net.IPNet{IP: from.AsSlice(), Mask: net.CIDRMask(bits, bits)}, Flags: syscall.IFA_F_NODAD}
		if err := netlink.AddrAdd(b, address); err != nil {
			return err
		}
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), sendVariable+"="+netip.AddrPortFrom(from, 7).String()+" "+netip.AddrPortFrom(to, 9).String())
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// send is the program that sendFrom starts. What a cgroup drops is an error that
// the sender gets.
func send(ends string) int {
	from, to, _ := strings.Cut(ends, " ")
	local, remote := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(from)), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to))
	conn, err := net.DialUDP("udp", local, remote)
	if err == nil {
		_, err = conn.Write([]byte("x"))
	}
	if err != nil && !errors.Is(err, syscall.EPERM) {
		fmt.Println(err)
		return 1
	}
	time.Sleep(20 * time.Millisecond) // the packet is on its way
	return 0
}

// TestFollowLists changes lists while their hits are read.
func TestFollowLists(t *testing.T) {
	ctx := context.Background()
	p := loadPrograms(t)
	program := p.program(t, "blocklist_xdp")
	source := openEvents(t, p.Store) // before there is a list
	hit := func(from string) Event {
		t.Helper()
		run(t, program, Build(Ethernet(), v4(from, "10.0.0.1"), TCP(7, 443, SYN), Payload(6)))
		return only(t, source)
	}
	_, err := p.Add(ctx, AddRequest{List: "feed", Prefixes: prefixes("203.0.113.0/24"), Reason: "first", Lifetime: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if e := hit("203.0.113.1"); e.Entry.List != "feed" || e.Entry.Reason != "first" || time.Until(e.Entry.Expires) > time.Hour+2*time.Second || e.Entry.Expires.IsZero() {
		t.Errorf("added: %+v", e)
	}
	mustAdd(t, p.Store, "another", "198.51.100.0/24")
	if _, err := p.Import(ctx, ImportRequest{List: "feed", Read: items("192.0.2.0/24", "203.0.113.0/25"), Replace: true}); err != nil {
		t.Fatal(err)
	}
	if e := hit("192.0.2.1"); e.Entry.List != "feed" || e.Entry.Prefix.String() != "192.0.2.0/24" || e.Entry.Reason != "" || !e.Entry.Expires.IsZero() {
		t.Errorf("replaced: %+v", e)
	}
	if e := hit("198.51.100.1"); e.Entry.List != "another" {
		t.Errorf("made meanwhile: %+v", e)
	}
	// Hits that are read after their entry, and their list, have gone.
	run(t, program, Build(Ethernet(), v4("203.0.113.2", "10.0.0.1"), UDP(7, 443), Payload(6)))
	if _, err := p.Remove(ctx, RemoveRequest{List: "feed", Prefixes: prefixes("203.0.113.0/25")}); err != nil {
		t.Fatal(err)
	}
	if e := only(t, source); e.Entry.List != "feed" || e.Entry.Action != AlertAndDrop || e.Entry.Prefix.String() != "203.0.113.0/25" {
		t.Errorf("removed: %+v", e)
	}
	run(t, program, Build(Ethernet(), v4("192.0.2.2", "10.0.0.2"), UDP(7, 443), Payload(6)))
	if _, err := p.Clear(ctx, "feed", false); err != nil {
		t.Fatal(err)
	}
	if e := only(t, source); e.Entry.List != "" || e.Entry.Action != "" || e.Entry.Prefix.String() != "192.0.2.0/24" {
		t.Errorf("cleared: %+v", e)
	}
}

// TestSuppressed counts the hits within an episode.
func TestSuppressed(t *testing.T) {
	p := loadPrograms(t)
	mustAdd(t, p.Store, DefaultList, "203.0.113.0/24")
	program, source := p.program(t, "blocklist_xdp"), openEvents(t, p.Store)
	packet := Build(Ethernet(), v4("203.0.113.7", "10.0.0.1"), TCP(7, 443, SYN), Payload(6))
	for range 5 {
		run(t, program, packet)
	}
	if e := only(t, source); e.Suppressed != 0 {
		t.Errorf("first: %+v", e)
	}
	endEpisodes(t, p)
	run(t, program, packet)
	if e := only(t, source); e.Suppressed != 4 {
		t.Errorf("second: %+v", e)
	}
	if loss, err := source.Loss(); err != nil || loss != (Loss{Suppressed: 4}) {
		t.Errorf("%+v, %v", loss, err)
	}
}

// endEpisodes makes all episodes begin a minute earlier.
func endEpisodes(t testing.TB, p programs) {
	t.Helper()
	episodes := p.openMap(t, "episodes")
	var index uint32
	var value struct {
		Tag, Seconds uint32
		Suppressed   uint64
	}
	for entries := episodes.Iterate(); entries.Next(&index, &value); {
		if value.Tag == 0 {
			continue
		}
		value.Seconds -= 60
		if err := episodes.Put(index, value); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLost fills the ring buffer: what finds no room is counted, what did comes in
// order.
func TestLost(t *testing.T) {
	p := loadPrograms(t)
	mustAdd(t, p.Store, DefaultList, "203.0.0.0/16")
	program, source := p.program(t, "blocklist_xdp"), openEvents(t, p.Store)
	flood := func(third byte) {
		for i := range 3000 {
			from := netip.AddrFrom4([4]byte{203, 0, third + byte(i>>8), byte(i)}).String()
			to := netip.AddrFrom4([4]byte{10, third, byte(i >> 8), byte(i)}).String()
			run(t, program, Build(Ethernet(), v4(from, to), UDP(7, 443), Payload(6)))
		}
	}
	flood(0)
	loss, err := source.Loss()
	if err != nil || loss.Events == 0 || loss.Before != 0 {
		t.Errorf("%+v, %v", loss, err)
	}
	events := pending(t, source)
	if got := uint64(len(events)) + loss.Events + loss.Suppressed; got != 3000 {
		t.Errorf("%d events and %+v of 3000 hits", len(events), loss)
	}
	if !slices.IsSortedFunc(events, func(a, b Event) int { return a.Time.Compare(b.Time) }) {
		t.Error("events out of order")
	}
	flood(100)
	source.Close()
	source = openEvents(t, p.Store)
	if loss, err = source.Loss(); err != nil || loss.Events != 0 || loss.Before == 0 {
		t.Errorf("a full buffer: %+v, %v", loss, err)
	}
	pending(t, source)
	source.Close()
	source = openEvents(t, p.Store)
	if loss, err = source.Loss(); err != nil || loss != (Loss{}) {
		t.Errorf("an empty buffer: %+v, %v", loss, err)
	}
}

// TestMost takes no more out than was asked for, and nothing that wasn't shown.
func TestMost(t *testing.T) {
	p := loadPrograms(t)
	mustAdd(t, p.Store, DefaultList, "203.0.113.0/24")
	program, source := p.program(t, "blocklist_xdp"), openEvents(t, p.Store)
	for i := range 5 {
		run(t, program, Build(Ethernet(), v4("203.0.113.7", fmt.Sprint("10.0.0.", i)), UDP(7, 443), Payload(6)))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	left := 2
	err := source.Read(ctx, EventsReading{
		Emit: func(events []Event) error { left -= len(events); return nil },
		Most: func() int { return left },
	})
	if err != nil || left != 0 {
		t.Errorf("%d left, %v", left, err)
	}
	refused := errors.New("refused")
	err = source.Read(ctx, EventsReading{Emit: func([]Event) error { return refused }, Most: func() int { return 9 }})
	if !errors.Is(err, refused) {
		t.Error(err)
	}
	if got := pending(t, source); len(got) != 3 || got[0].FarEnd().String() != "10.0.0.2" {
		t.Errorf("%+v", got)
	}
}

// TestEventsEnd ends readings: by their context, because the maps are removed,
// and before they begin, because there are none or another process reads.
func TestEventsEnd(t *testing.T) {
	root := testkit.Root(t)
	s, engine := newStoreIn(t, root)
	if _, err := s.Events(context.Background(), EventsRequest{LockTimeout: time.Minute}); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("no maps: %v", err)
	}
	mustAdd(t, s, DefaultList, "203.0.113.0/24")
	m, err := ebpf.LoadPinnedMap(filepath.Join(root, "@shared:blocklist", "block_events"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	pid, end := testkit.Hold(t, m.FD())
	_, err = s.Events(context.Background(), EventsRequest{LockTimeout: time.Minute})
	if !errors.Is(err, fault.ErrConflict) || !strings.Contains(err.Error(), fmt.Sprintf("process %d (sleep)", pid)) || len(fault.Hints(err)) == 0 {
		t.Errorf("held: %v", err)
	}
	stolen, err := s.Events(context.Background(), EventsRequest{Steal: true, LockTimeout: time.Minute})
	if err != nil || len(stolen.Notes()) != 1 {
		t.Fatalf("stolen: %v", err)
	}
	stolen.Close()
	end()
	source := openEvents(t, s)
	read := func(ctx context.Context) error {
		return source.Read(ctx, EventsReading{Emit: func([]Event) error { return nil }, Most: func() int { return 1 }})
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	if err := read(ctx); err != nil {
		t.Errorf("the context ended: %v", err)
	}
	if _, err := s.Clear(context.Background(), "", false); err != nil {
		t.Fatal(err)
	}
	if err := engine.Update(context.Background(), func() error { return nil }); err != nil { // takes what is unused away
		t.Fatal(err)
	}
	ctx, cancel = context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := read(ctx); !errors.Is(err, fault.ErrNotFound) || !strings.Contains(err.Error(), "were removed") {
		t.Errorf("the maps were removed: %v", err)
	}
	mustAdd(t, s, DefaultList, "203.0.113.0/24")
	if err := read(ctx); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("others were made: %v", err)
	}
}

// Who reads or writes lists doesn't keep the ring buffer open: it would be taken
// for its reader.
func TestRecordsClosed(t *testing.T) {
	s, engine := newStoreIn(t, testkit.Root(t))
	mustAdd(t, s, DefaultList, "203.0.113.0/24")
	look := func(shared *datapath.Shared) error {
		if shared.Map("block_events") != nil || shared.Map("block_rows") == nil {
			t.Error("the ring buffer is open, or the rows aren't")
		}
		return nil
	}
	if err := fault.Join(engine.ReadShared(context.Background(), group, look), engine.WithShared(context.Background(), group, look)); err != nil {
		t.Error(err)
	}
	o, err := s.Overview(context.Background())
	if err != nil || o.MemoryBytes < 256<<10 {
		t.Errorf("%+v, %v", o, err)
	}
}
