package dns

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	wire "github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"bpfnet/bpf"
	"bpfnet/internal/datapath"
	"bpfnet/internal/netns"
	"bpfnet/internal/testkit"
)

// watch is program dns on a hook, and what reads it.
type watch struct {
	*Reader
	rows     *ebpf.Map
	attached datapath.Attachment
}

// observe loads program dns, attaches it in a namespace, and reads answers.
func observe(t testing.TB, namespace string, request datapath.AttachRequest) watch {
	t.Helper()
	engine, attached := attach(t, namespace, request)
	rows, err := engine.OpenMap("dns", "dns_rows", true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = rows.Close() })
	r, err := Open(context.Background(), engine, "dns", time.Minute, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return watch{r, rows, attached[0]}
}

// attach loads program dns and attaches it in a namespace.
func attach(t testing.TB, namespace string, requests ...datapath.AttachRequest) (*datapath.Engine, []datapath.Attachment) {
	t.Helper()
	engine, err := datapath.Open(datapath.Options{Root: testkit.Root(t), NetNS: namespace})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := engine.Load(context.Background(), datapath.LoadRequest{Source: "dns"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // a filter stays as long as its device
		if _, err := engine.Detach(context.Background(), datapath.DetachRequest{Name: "dns"}); err != nil {
			t.Error(err)
		}
	})
	var all []datapath.Attachment
	for _, request := range requests {
		request.Name = "dns"
		attached, err := engine.Attach(context.Background(), request)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, attached.Attachments...)
	}
	return engine, all
}

// read reads answers until a condition holds of all of them.
func (w watch) read(t testing.TB, enough func(all []Answer) bool) (all []Answer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := w.Read(ctx, func(some []Answer) error {
		if all = append(all, some...); enough(all) {
			cancel()
		}
		return nil
	})
	if err != nil || !enough(all) {
		t.Fatalf("%v in %d answers: %v", err, len(all), all)
	}
	return all
}

// count is how often the program couldn't tell something.
func (w watch) count(t testing.TB) (packets uint64) {
	t.Helper()
	for row := range bpf.DNSRows {
		var each []bpf.Counter
		if err := w.rows.Lookup(row, &each); err != nil {
			t.Fatal(err)
		}
		for _, one := range each {
			packets += one.Packets
		}
	}
	return packets
}

// boottime is the programs' clock.
func boottime() time.Duration {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &now)
	return time.Duration(now.Nano())
}

// TestAnswers has a process ask a real server, and the program see the answers on
// each hook: short ones by UDP, one of several segments by TCP.
func TestAnswers(t *testing.T) {
	nsA, nsB := testkit.Pair(t)
	records := []string{"a.example. 60 CNAME b.example.", "b.example. 30 A 192.0.2.1", "b.example. 40 AAAA 2001:db8::1"}
	for i := range 600 {
		records = append(records, fmt.Sprintf("big.example. 60 A 198.51.%d.%d", i/256, i%256))
	}
	answer := zone(t, records...)
	cut := func(w wire.ResponseWriter, q, reply *wire.Msg) {
		if !isTCP(w) && q.Question[0].Name == "big.example." {
			reply.Truncated = true
			_ = w.WriteMsg(reply)
			return
		}
		answer(w, q, reply)
	}
	cgroup := testkit.Cgroup(t)
	for _, server := range []string{"10.77.0.2", "fd77::2"} {
		serve(t, nsB, net.JoinHostPort(server, "53"), cut)
	}
	for _, hook := range []datapath.AttachRequest{
		{Hook: "tc", Device: "a", Direction: datapath.Ingress},
		{Hook: "cgroup", Cgroup: cgroup, Direction: datapath.Ingress},
	} {
		t.Run(hook.Hook, func(t *testing.T) {
			for _, server := range []string{"10.77.0.2", "fd77::2"} {
				w := observe(t, nsA, hook)
				before := boottime()
				askIn(t, nsA, cgroup, server, "A.example", "big.example")
				all := w.read(t, func(all []Answer) bool { return len(all) >= 6 })
				checkAnswers(t, w, server, all, before)
			}
		})
	}
}

// checkAnswers checks what was asked by askIn: two names for two types, the
// second one's again by TCP.
func checkAnswers(t *testing.T, w watch, server string, all []Answer, before time.Duration) {
	t.Helper()
	var lines []string
	for _, a := range all {
		count := fmt.Sprint(a.Addresses)
		if len(a.Addresses) > 1 {
			count = fmt.Sprint(len(a.Addresses))
		}
		lines = append(lines, fmt.Sprintf("%s %s %d %d %s %s", a.Transport, a.Name, a.Type, a.Rcode, count, strings.Join(a.Chain, ",")))
		if a.Time < before || a.Time > boottime() || a.Server != netip.AddrPortFrom(netip.MustParseAddr(server), 53) ||
			a.Client.Addr().Is4() != a.Server.Addr().Is4() || a.Client.Port() == 0 {
			t.Errorf("%+v", a)
		}
		if w.attached.IfIndex != nil && a.IfIndex != *w.attached.IfIndex {
			t.Errorf("ifindex %d, want %d", a.IfIndex, *w.attached.IfIndex)
		}
		if w.attached.CgroupID != nil && fmt.Sprint(a.CgroupID) != *w.attached.CgroupID {
			t.Errorf("cgroup %d, want %s", a.CgroupID, *w.attached.CgroupID)
		}
	}
	slices.Sort(lines)
	want(t, strings.Join(lines, "\n"), `tcp big.example 1 0 600 big.example
tcp big.example 28 0 [] big.example
udp a.example 1 0 [{192.0.2.1 30s}] a.example,b.example
udp a.example 28 0 [{2001:db8::1 40s}] a.example,b.example
udp big.example 1 0 [] big.example
udp big.example 28 0 [] big.example`)
	if got := w.Counters(); got != (Counters{}) || w.count(t) != 0 {
		t.Errorf("%+v, %d that the program couldn't tell", got, w.count(t))
	}
}

// askIn runs a process in a namespace and a cgroup that resolves names.
func askIn(t *testing.T, namespace, cgroup, server string, names ...string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(path, []byte("nameserver "+server+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(cgroup)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	err = netns.Do(namespace, func() error {
		command := exec.Command(os.Args[0])
		command.Env = append(os.Environ(), asks+"="+path+" "+strings.Join(names, " "))
		command.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
		if text, err := command.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, text)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// sender sends UDP from port 53 of "b" to a port of "a", where somebody listens.
func sender(t testing.TB, nsA, nsB string) net.Conn {
	t.Helper()
	var to net.PacketConn
	var from net.Conn
	err := netns.Do(nsA, func() (err error) {
		to, err = net.ListenPacket("udp", "10.77.0.1:0")
		return err
	})
	if err == nil {
		t.Cleanup(func() { _ = to.Close() })
		err = netns.Do(nsB, func() (err error) {
			from, err = net.DialUDP("udp", &net.UDPAddr{IP: net.IPv4(10, 77, 0, 2), Port: 53}, to.LocalAddr().(*net.UDPAddr))
			return err
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = from.Close() })
	return from
}

// TestReadGarbage: what is no answer is counted, and the next one is read. A
// datagram of several fragments tells what its first one has.
func TestReadGarbage(t *testing.T) {
	nsA, nsB := testkit.Pair(t)
	w := observe(t, nsA, datapath.AttachRequest{Hook: "tc", Device: "a", Direction: datapath.Ingress})
	from := sender(t, nsA, nsB)
	records := make([]string, 200)
	for i := range records {
		records[i] = fmt.Sprintf("long.example. 60 A 192.0.2.%d", i)
	}
	last := reply(t, "last.example.", "last.example. 60 A 192.0.2.1")
	for _, message := range [][]byte{
		append([]byte{1, 2, 0x80, 0, 0, 1}, bytes.Repeat([]byte{0xff}, 40)...), // malformed
		reply(t, "."), // ignored
		reply(t, "long.example.", records...),
		last,
	} {
		if _, err := from.Write(message); err != nil {
			t.Fatal(err)
		}
	}
	all := w.read(t, func(all []Answer) bool { return len(all) >= 2 })
	if all[0].Name != "long.example" || len(all[0].Addresses) < 80 || len(all[0].Addresses) >= 200 || all[1].Name != "last.example" {
		t.Errorf("%d addresses in %+v", len(all[0].Addresses), all)
	}
	if got := w.Counters(); got != (Counters{Malformed: 1, Incomplete: 1, Ignored: 1}) || w.count(t) == 0 {
		t.Errorf("%+v, %d that the program couldn't tell", got, w.count(t))
	}
}

// TestReadMany: of what comes faster than it is read nothing is lost uncounted.
func TestReadMany(t *testing.T) {
	nsA, nsB := testkit.Pair(t)
	w := observe(t, nsA, datapath.AttachRequest{Hook: "tc", Device: "a", Direction: datapath.Ingress})
	from := sender(t, nsA, nsB)
	const sent = 20_000
	message := reply(t, "a.example.", "a.example. 60 A 192.0.2.1")
	send := func(n int) {
		for range n {
			if _, err := from.Write(message); err != nil {
				t.Error(err)
			}
		}
	}
	send(sent / 2) // nobody reads: more than fits
	unread := w.count(t)
	if unread == 0 || unread >= sent/2 {
		t.Errorf("%d of %d found no room", unread, sent/2)
	}
	var sending sync.WaitGroup
	sending.Go(func() { send(sent / 2) })
	all := w.read(t, func(all []Answer) bool { return uint64(len(all))+w.count(t) >= sent })
	sending.Wait()
	if lost, err := w.Lost(); err != nil || lost != w.count(t) {
		t.Errorf("%d lost, %v", lost, err)
	}
	if uint64(len(all))+w.count(t) != sent || w.Counters() != (Counters{}) {
		t.Errorf("%d answers, %d lost, of %d", len(all), w.count(t), sent)
	}
	if !slices.IsSortedFunc(all, func(a, b Answer) int { return cmp.Compare(a.Time, b.Time) }) {
		t.Error("not in their order")
	}
}

// TestReadEnds: Read returns when its context ends, and goes on with another one;
// an error of emit ends it, too, and what it got is read again.
func TestReadEnds(t *testing.T) {
	nsA, nsB := testkit.Pair(t)
	w := observe(t, nsA, datapath.AttachRequest{Hook: "tc", Device: "a", Direction: datapath.Ingress})
	from := sender(t, nsA, nsB)
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		if err := w.Read(ctx, func(all []Answer) error { return fmt.Errorf("read %v", all) }); err != nil {
			t.Error(err)
		}
		cancel()
		for range 3 {
			if _, err := from.Write(reply(t, "a.")); err != nil {
				t.Fatal(err)
			}
		}
		enough := errors.New("enough")
		if err := w.Read(t.Context(), func([]Answer) error { return enough }); err != enough {
			t.Error(err)
		}
		w.read(t, func(all []Answer) bool { return len(all) == 3 })
	}
}

// TestTake: records that contradict themselves are counted.
func TestTake(t *testing.T) {
	r := newReader()
	var sample []byte
	event := bpf.DNSEvent{Protocol: unix.IPPROTO_UDP, Length: 20, Captured: 20}
	sample, err := binary.Append(sample, binary.NativeEndian, event)
	if err != nil {
		t.Fatal(err)
	}
	r.record(sample)
	r.record(sample[:len(sample)-1])
	r.record(nil)
	if got := r.Counters(); got != (Counters{Malformed: 3}) {
		t.Errorf("%+v", got)
	}
}

// FuzzTake: whatever a record is, it is answers or counted.
func FuzzTake(f *testing.F) {
	message := reply(f, "a.example.", "a.example. 60 A 192.0.2.1")
	for _, protocol := range []uint8{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		payload := message
		if protocol == unix.IPPROTO_TCP {
			payload = framed(message, message)
		}
		event := bpf.DNSEvent{Protocol: protocol, Length: uint32(len(payload)), Captured: uint32(len(payload))}
		sample, err := binary.Append(nil, binary.NativeEndian, event)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(append(sample, payload...))
	}
	f.Fuzz(func(t *testing.T, sample []byte) {
		r := newReader()
		r.record(sample)
		r.record(sample)
		for _, a := range r.answers {
			if hostName(a.Name) != a.Name || a.Transport != "udp" && a.Transport != "tcp" {
				t.Errorf("%+v", a)
			}
		}
		w := newWatcher(time.Second)
		w.record(sample)
		w.record(sample)
		begun, told := w.exchanges.take()
		w.exchanges.sweep(1<<63 - 1)
		if _, last := w.exchanges.take(); len(told)+len(last) > len(begun) || w.exchanges.count+w.exchanges.settling > len(begun) {
			t.Errorf("%d begun, %d and %d told", len(begun), len(told), len(last))
		}
	})
}

// BenchmarkLatency is the time from when the program sees an answer to when Read
// returns it, to a reader that waits.
func BenchmarkLatency(b *testing.B) {
	nsA, nsB := testkit.Pair(b)
	w := observe(b, nsA, datapath.AttachRequest{Hook: "tc", Device: "a", Direction: datapath.Ingress})
	from := sender(b, nsA, nsB)
	message := reply(b, "a.example.", "a.example. 60 A 192.0.2.1")
	var took []time.Duration
	for b.Loop() {
		time.AfterFunc(time.Millisecond, func() { _, _ = from.Write(message) })
		all := w.read(b, func(all []Answer) bool { return len(all) > 0 })
		took = append(took, boottime()-all[0].Time)
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1e3, "µs-median")
	b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1e3, "µs-p99")
}

// BenchmarkTake is what a record costs the reader.
func BenchmarkTake(b *testing.B) {
	message := reply(b, "a.example.", "a.example. 60 CNAME b.example.", "b.example. 60 A 192.0.2.1")
	sample, err := binary.Append(nil, binary.NativeEndian, bpf.DNSEvent{Protocol: unix.IPPROTO_UDP, Length: uint32(len(message)), Captured: uint32(len(message))})
	if err != nil {
		b.Fatal(err)
	}
	sample = append(sample, message...)
	r := newReader()
	for b.Loop() {
		r.answers = r.answers[:0]
		r.record(sample)
	}
}
