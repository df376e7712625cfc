package maps

import (
	"context"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"bpfnet/internal/fault"
	"bpfnet/internal/testkit"
)

func (w *world) push(ref, value string) (Change, error) {
	return w.Push(context.Background(), PushRequest{Map: ref, Value: value})
}

func TestQueueAndStack(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	for name, order := range map[string][]string{"queue": {"1", "2"}, "stack": {"2", "1"}} {
		kind := map[string]ebpf.MapType{"queue": ebpf.Queue, "stack": ebpf.Stack}[name]
		m := w.make(t, &ebpf.MapSpec{Name: name, Type: kind, ValueSize: 4, MaxEntries: 2})
		useRaw(t, m, rawMap{name: name, valueSize: 4, value: u32})
		ref := "mine/" + name
		_, err := w.Peek(ctx, ref, "")
		fails(t, err, fault.ErrNotFound, "it is empty")
		_, err = w.Pop(ctx, PopRequest{Map: ref})
		fails(t, err, fault.ErrNotFound, "it is empty")
		if c, err := w.Push(ctx, PushRequest{Map: ref, Value: "1", DryRun: true}); err != nil || !c.Changed {
			t.Errorf("%s: dry push %+v, %v", name, c, err)
		}
		for _, value := range []string{"1", "2"} {
			if c, err := w.push(ref, value); err != nil || !c.Changed || string(c.Value) != value || c.Key != nil {
				t.Errorf("%s: push %+v, %v", name, c, err)
			}
		}
		_, err = w.push(ref, "3")
		fails(t, err, fault.ErrConflict, "it is full: 2 elements")
		_, err = w.push(ref, "x")
		fails(t, err, fault.ErrUsage, "a value of "+ref+" is written 0..4294967295")
		_, err = w.Peek(ctx, ref, "1")
		fails(t, err, fault.ErrUsage, "can't be asked")
		for _, value := range order {
			if e, err := w.Peek(ctx, ref, ""); err != nil || string(e.Value) != value || e.Key != nil {
				t.Errorf("%s: peek %+v, %v", name, e, err)
			}
			if c, err := w.Pop(ctx, PopRequest{Map: ref, DryRun: true}); err != nil || string(c.Value) != value {
				t.Errorf("%s: dry pop %+v, %v", name, c, err)
			}
			if c, err := w.Pop(ctx, PopRequest{Map: ref}); err != nil || !c.Changed || string(c.Value) != value {
				t.Errorf("%s: pop %+v, %v", name, c, err)
			}
		}
	}
}

func TestBloomFilter(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	testkit.NeedsMap(t, ebpf.BloomFilter)
	w.make(t, &ebpf.MapSpec{Name: "seen", Type: ebpf.BloomFilter, ValueSize: 4, MaxEntries: 2, Key: &btf.Void{}, Value: u32})
	_, err := w.Peek(ctx, "mine/seen", "7")
	fails(t, err, fault.ErrNotFound, "find value 7 in map mine/seen")
	if c, err := w.push("mine/seen", "7"); err != nil || !c.Changed {
		t.Errorf("push: %+v, %v", c, err)
	}
	if c, err := w.push("mine/seen", "7"); err != nil || c.Changed {
		t.Errorf("push again: %+v, %v", c, err)
	}
	if e, err := w.Peek(ctx, "mine/seen", "7"); err != nil || string(e.Value) != "7" {
		t.Errorf("peek: %+v, %v", e, err)
	}
	_, err = w.Peek(ctx, "mine/seen", "")
	fails(t, err, fault.ErrUsage, "bpfnet map peek mine/seen VALUE")
	_, err = w.Pop(ctx, PopRequest{Map: "mine/seen"})
	fails(t, err, fault.ErrUnsupported, "nothing can be taken out")
	w.make(t, &ebpf.MapSpec{Name: "hash", Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	_, err = w.Pop(ctx, PopRequest{Map: "mine/hash"})
	fails(t, err, fault.ErrUnsupported, "bpfnet map get")
}
