package ports

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cilium/ebpf"

	"bpfnet/bpf"
	"bpfnet/internal/datapath"
	"bpfnet/internal/fault"
)

// loaded is port-filter in the kernel, without pins: what a Filter needs of
// the datapath.
type loaded struct {
	datapath.API
	*ebpf.Collection
	mutex sync.Mutex
}

func load(t *testing.T) *loaded {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("loading BPF programs needs root")
	}
	program, _ := bpf.Lookup("port-filter")
	spec, err := program.Spec()
	if err != nil {
		t.Fatal(err)
	}
	collection, err := ebpf.NewCollection(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(collection.Close)
	return &loaded{Collection: collection}
}

func (l *loaded) OpenMap(instance, name string, _ bool) (*ebpf.Map, error) {
	m, ok := l.Maps[name]
	if !ok {
		return nil, fault.New(fault.ErrNotFound, "open map %s/%s: no such map", instance, name)
	}
	return m.Clone()
}

func (l *loaded) Update(_ context.Context, fn func() error) error {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return fn()
}

// verdict runs the XDP program on a packet.
func (l *loaded) verdict(t *testing.T, packet []byte) uint32 {
	t.Helper()
	verdict, _, err := l.Programs["port_filter_xdp"].Test(packet)
	if err != nil {
		t.Fatal(err)
	}
	return verdict
}

const (
	xdpDrop = 1
	xdpPass = 2
)

// packet is an Ethernet frame with IPv4 and the start of a transport header.
func packet(protocol uint8, source, destination uint16) []byte {
	b := make([]byte, 64)
	binary.BigEndian.PutUint16(b[12:], 0x0800)
	ip := b[14:]
	ip[0], ip[8], ip[9] = 0x45, 64, protocol
	binary.BigEndian.PutUint16(ip[2:], 50)
	copy(ip[12:], []byte{10, 0, 0, 1, 10, 0, 0, 2})
	binary.BigEndian.PutUint16(ip[20:], source)
	binary.BigEndian.PutUint16(ip[22:], destination)
	ip[20+12], ip[20+13] = 0x50, 0x02 // TCP: header length, SYN
	return b
}

func ranges(t *testing.T, side Side, texts ...string) []Range {
	t.Helper()
	var all []Range
	for _, text := range texts {
		r, err := ParseRange(text, side)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
	return all
}

func TestFilter(t *testing.T) {
	ctx := context.Background()
	l := load(t)
	f := NewFilter(l, "port-filter")
	web := packet(6, 40000, 80)
	if got := l.verdict(t, web); got != xdpPass {
		t.Fatalf("the first policy says %d", got)
	}
	drop := true
	if r, err := f.Default(ctx, DefaultChange{Drop: &drop}, true); err != nil || !r.Changed {
		t.Fatal(r, err)
	}
	if got := l.verdict(t, web); got != xdpPass {
		t.Fatal("a dry run changes the verdict")
	}
	if r, err := f.Default(ctx, DefaultChange{Drop: &drop}, false); err != nil || !r.Changed {
		t.Fatal(r, err)
	}
	if got := l.verdict(t, web); got != xdpDrop {
		t.Errorf("default drop says %d", got)
	}
	if r, err := f.Allow(ctx, ranges(t, Destination, "80/tcp", "8000-8999/udp"), false); err != nil || !r.Changed {
		t.Fatal(r, err)
	}
	if got := l.verdict(t, web); got != xdpPass {
		t.Errorf("80/tcp is allowed and %d", got)
	}
	if r, err := f.Allow(ctx, ranges(t, Destination, "80/tcp"), false); err != nil || r.Changed {
		t.Errorf("the same again: %v, %v", r, err)
	}
	if r, err := f.Deny(ctx, ranges(t, Source, "40000/tcp"), false); err != nil || !r.Changed {
		t.Fatal(r, err)
	}
	if got := l.verdict(t, web); got != xdpDrop {
		t.Errorf("a drop by the source port doesn't win: %d", got)
	}
	if got := l.verdict(t, packet(17, 1, 8500)); got != xdpPass {
		t.Errorf("8500/udp is in an allowed range and %d", got)
	}
	list, err := f.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if len(list.Rules) != 3 || list.Rules[1] != (Counter{1, 64}) {
		t.Errorf("counters are %v, want 64 bytes for the range", list.Rules)
	}
	if list.Rows[1] != (Counter{1, 64}) {
		t.Errorf("default_drop is %v", list.Rows[1])
	}
}

func TestRemovedNumberStartsAtZero(t *testing.T) {
	ctx := context.Background()
	l := load(t)
	f := NewFilter(l, "port-filter")
	old, other := ranges(t, Destination, "80/tcp"), ranges(t, Destination, "81/tcp")
	if _, err := f.Allow(ctx, old, false); err != nil {
		t.Fatal(err)
	}
	l.verdict(t, packet(6, 1, 80))
	if _, err := f.Remove(ctx, old, false); err != nil {
		t.Fatal(err)
	}
	planned, err := f.Allow(ctx, other, true)
	if err != nil || planned.Rules[0] != (Counter{}) {
		t.Errorf("planned counters are %v, %v", planned.Rules, err)
	}
	result, err := f.Allow(ctx, other, false)
	if err != nil || result.Policy.Rules[0].Number != 1 || result.Rules[0] != (Counter{}) {
		t.Errorf("%+v, %v: want number 1 anew", result, err)
	}
}

// TestSwapIsAtomic changes the policy back and forth between two that both
// drop a packet, by a rule and by default, while packets come in: none may pass.
func TestSwapIsAtomic(t *testing.T) {
	ctx := context.Background()
	l := load(t)
	f := NewFilter(l, "port-filter")
	yes, no := true, false
	denied := ranges(t, Destination, "80/tcp")
	if _, err := f.Deny(ctx, denied, false); err != nil {
		t.Fatal(err)
	}
	web := packet(6, 40000, 80)
	var passed, seen atomic.Int64
	var done atomic.Bool
	var running sync.WaitGroup
	running.Go(func() {
		for !done.Load() {
			if verdict, _, err := l.Programs["port_filter_xdp"].Test(web); err != nil || verdict != xdpDrop {
				passed.Add(1)
			}
			seen.Add(1)
		}
	})
	for range 20 {
		steps := []func() (Result, error){
			func() (Result, error) { return f.Default(ctx, DefaultChange{Drop: &yes}, false) },
			func() (Result, error) { return f.Remove(ctx, denied, false) },
			func() (Result, error) { return f.Deny(ctx, denied, false) },
			func() (Result, error) { return f.Default(ctx, DefaultChange{Drop: &no}, false) },
		}
		for _, step := range steps {
			if r, err := step(); err != nil || !r.Changed {
				t.Fatal(r, err)
			}
		}
	}
	done.Store(true)
	running.Wait()
	if passed.Load() > 0 || seen.Load() == 0 {
		t.Errorf("%d of %d packets passed", passed.Load(), seen.Load())
	}
}

func TestWritersTogether(t *testing.T) {
	ctx := context.Background()
	l := load(t)
	f := NewFilter(l, "port-filter")
	var running sync.WaitGroup
	for port := range 10 {
		running.Go(func() {
			if _, err := f.Allow(ctx, []Range{{uint16(port), uint16(port), TCP, Destination}}, false); err != nil {
				t.Error(err)
			}
		})
	}
	running.Wait()
	if list, err := f.List(ctx); err != nil || len(list.Policy.Rules) != 10 {
		t.Errorf("%d rules, %v: want all 10", len(list.Policy.Rules), err)
	}
}

// TestListBesideWriters reads without the lock while the policy changes between
// two of a thousand rules each: a listing never has rules of both.
func TestListBesideWriters(t *testing.T) {
	ctx := context.Background()
	l := load(t)
	f := NewFilter(l, "port-filter")
	var all []Range
	for port := range 1000 {
		all = append(all, Range{uint16(port), uint16(port), TCP, Destination})
	}
	if _, err := f.Allow(ctx, all, false); err != nil {
		t.Fatal(err)
	}
	var done atomic.Bool
	var running sync.WaitGroup
	running.Go(func() {
		for !done.Load() {
			list, err := f.List(ctx)
			if err != nil || len(list.Policy.Rules) != len(all) {
				t.Errorf("%d rules, %v", len(list.Policy.Rules), err)
				return
			}
			for _, rule := range list.Policy.Rules {
				if rule.Drop != list.Policy.Rules[0].Drop {
					t.Error("a listing mixes two policies")
					return
				}
			}
		}
	})
	for range 20 {
		if _, err := f.Deny(ctx, all, false); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Allow(ctx, all, false); err != nil {
			t.Fatal(err)
		}
	}
	done.Store(true)
	running.Wait()
}

// TestLeftUnfinished is a writer that was killed while it laid a policy out.
func TestLeftUnfinished(t *testing.T) {
	ctx := context.Background()
	l := load(t)
	f := NewFilter(l, "port-filter")
	junk := compile(Policy{DefaultDrop: true, Rules: []Rule{{9, Range{80, 80, TCP, Source}, true}}})
	if err := junk.write(l.Maps["second_policy"]); err != nil {
		t.Fatal(err)
	}
	if list, err := f.List(ctx); err != nil || list.Policy.DefaultDrop || len(list.Policy.Rules) != 0 {
		t.Errorf("listing is %+v, %v", list.Policy, err)
	}
	r, err := f.Allow(ctx, ranges(t, Destination, "443/tcp"), false)
	if err != nil || len(r.Policy.Rules) != 1 || r.Policy.Rules[0].Number != 1 {
		t.Errorf("policy is %+v, %v", r.Policy, err)
	}
	if got := l.verdict(t, packet(6, 80, 1)); got != xdpPass {
		t.Errorf("what was left in the place is in force: %d", got)
	}
}

func TestNoSuchMap(t *testing.T) {
	l := &loaded{Collection: &ebpf.Collection{}}
	if _, err := NewFilter(l, "other").List(context.Background()); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("an instance without a policy: %v", err)
	}
}
