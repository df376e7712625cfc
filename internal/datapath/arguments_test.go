package datapath

import (
	"context"
	"errors"
	"testing"

	"bpfnet/bpf"
	"bpfnet/internal/fault"
	"bpfnet/internal/testkit"
)

// What a program is told is what this kernel has.
func TestArguments(t *testing.T) {
	testkit.NeedsKernel(t)
	n, err := tracepointArguments("sched_switch")
	if err != nil || n < 3 {
		t.Errorf("sched_switch has %d, %v", n, err)
	}
	if n, err := tracepointArguments("nothing_of_that_name"); !errors.Is(err, fault.ErrUnsupported) {
		t.Errorf("no such tracepoint has %d, %v", n, err)
	}
	program, _ := bpf.Lookup("drops")
	spec, err := program.Spec()
	if err != nil {
		t.Fatal(err)
	}
	if err := setArguments(spec, program.Arguments); err != nil {
		t.Fatal(err)
	}
	reasons := testkit.HasEnumerator("skb_drop_reason", "SKB_DROP_REASON_NO_SOCKET")
	if err := spec.Variables["kfree_skb_args"].Get(&n); err != nil || reasons != (n > 2) || n < 2 {
		t.Errorf("kfree_skb has %d, %v; reasons %v", n, err, reasons)
	}
	engine, err := Open(Options{Root: testkit.Root(t)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := engine.Load(context.Background(), LoadRequest{Source: "drops", Set: map[string]string{"kfree_skb_args": "4"}}); !errors.Is(err, fault.ErrUsage) {
		t.Errorf("set by hand: %v", err)
	}
}
