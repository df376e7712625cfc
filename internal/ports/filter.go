package ports

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/cilium/ebpf"

	"bpfnet/bpf"
	"bpfnet/internal/datapath"
	"bpfnet/internal/fault"
)

// Filter is the API of a loaded instance.
type Filter struct {
	api      datapath.API
	instance string
}

// NewFilter returns the API of a loaded instance of port-filter. It doesn't
// touch the kernel before the first call.
func NewFilter(api datapath.API, instance string) *Filter {
	return &Filter{api: api, instance: instance}
}

// Allow implements API.
func (f *Filter) Allow(ctx context.Context, ranges []Range, dryRun bool) (Result, error) {
	return f.change(ctx, dryRun, addition(ranges, false))
}

// Deny implements API.
func (f *Filter) Deny(ctx context.Context, ranges []Range, dryRun bool) (Result, error) {
	return f.change(ctx, dryRun, addition(ranges, true))
}

// Remove implements API.
func (f *Filter) Remove(ctx context.Context, ranges []Range, dryRun bool) (Result, error) {
	return f.change(ctx, dryRun, removal(ranges))
}

// Default implements API.
func (f *Filter) Default(ctx context.Context, change DefaultChange, dryRun bool) (Result, error) {
	return f.change(ctx, dryRun, defaults(change))
}

// List implements API.
func (f *Filter) List(context.Context) (Listing, error) {
	unchanged := func(p Policy) (Policy, bool, error) { return p, false, nil }
	result, err := f.apply(unchanged, true)
	return result.Listing, err
}

func (f *Filter) change(ctx context.Context, dryRun bool, edit edit) (result Result, err error) {
	if dryRun {
		return f.apply(edit, dryRun)
	}
	err = f.api.Update(ctx, func() error {
		result, err = f.apply(edit, dryRun)
		return err
	})
	return result, err
}

// apply edits the policy; only with dryRun it does without the lock.
func (f *Filter) apply(edit edit, dryRun bool) (Result, error) {
	policies, err := f.api.OpenMap(f.instance, "policy", dryRun)
	if err != nil {
		return Result{}, err
	}
	defer policies.Close()
	counters, err := f.api.OpenMap(f.instance, "counters", dryRun)
	if err != nil {
		return Result{}, err
	}
	defer counters.Close()
	current, err := f.policy(policies)
	if err != nil {
		return Result{}, err
	}
	next, changed, err := edit(current)
	if err != nil {
		return Result{}, err
	}
	if changed && !dryRun {
		if err := f.replace(policies, counters, current, next); err != nil {
			return Result{}, err
		}
	}
	listing, err := count(counters, current, next)
	if err != nil {
		return Result{}, fmt.Errorf("read counters of %s: %w", f.instance, err)
	}
	return Result{Changed: changed, Listing: listing}, nil
}

// policy reads the policy that packets meet now.
func (f *Filter) policy(policies *ebpf.Map) (Policy, error) {
	var inner *ebpf.Map
	if err := policies.Lookup(uint32(0), &inner); err != nil {
		return Policy{}, readError(f.instance, err)
	}
	defer inner.Close()
	policy, err := readLayout(inner)
	if err != nil {
		return Policy{}, readError(f.instance, err)
	}
	return policy, nil
}

func readLayout(inner *ebpf.Map) (Policy, error) {
	var header bpf.PolicyHeader
	if err := inner.Lookup(uint32(bpf.PolicyHeaderPage), &header); err != nil {
		return Policy{}, err
	}
	return decode(header, func(position int) (rulePage, error) {
		var page rulePage
		err := inner.Lookup(uint32(bpf.PolicyRulesPage+position), &page)
		return page, err
	})
}

func readError(instance string, err error) error {
	if errors.Is(err, syscall.EPERM) {
		return fault.New(fault.ErrPermission, "read policy of %s: %w", instance, err).
			Hint("the kernel opens a map in a map by its id, which needs CAP_SYS_ADMIN")
	}
	return fmt.Errorf("read policy of %s: %w", instance, err)
}

// replace lays the policy out beside the running one and swaps it in with one
// update, so that each packet meets either all of the old or all of the new.
func (f *Filter) replace(policies, counters *ebpf.Map, current, next Policy) error {
	inner, err := newInner(next)
	if err != nil {
		return fmt.Errorf("lay out policy of %s: %w", f.instance, err)
	}
	defer inner.Close()
	if err := zeroCounters(counters, current, next); err != nil {
		return fmt.Errorf("clear counters of %s: %w", f.instance, err)
	}
	if err := policies.Put(uint32(0), inner); err != nil {
		return fmt.Errorf("replace policy of %s: %w", f.instance, err)
	}
	return nil
}

// newInner returns a new map with the policy.
func newInner(policy Policy) (*ebpf.Map, error) {
	spec, err := innerSpec()
	if err != nil {
		return nil, err
	}
	inner, err := ebpf.NewMap(spec)
	if err != nil {
		return nil, err
	}
	if err := compile(policy).write(inner); err != nil {
		inner.Close()
		return nil, err
	}
	return inner, nil
}

// write fills a map that is all zero.
func (l layout) write(inner *ebpf.Map) error {
	for number, page := range l.table {
		if err := inner.Put(number, page); err != nil {
			return err
		}
	}
	for position := range l.rules {
		if err := inner.Put(uint32(bpf.PolicyRulesPage+position), &l.rules[position]); err != nil {
			return err
		}
	}
	return inner.Put(uint32(bpf.PolicyHeaderPage), &l.header)
}

func innerSpec() (*ebpf.MapSpec, error) {
	program, ok := bpf.Lookup("port-filter")
	if !ok {
		return nil, errors.New("no program port-filter")
	}
	spec, err := program.Spec()
	if err != nil {
		return nil, err
	}
	policies := spec.Maps["policy"]
	if policies == nil || policies.InnerMap == nil {
		return nil, errors.New("port-filter has no map of policies")
	}
	return policies.InnerMap, nil
}

// zeroCounters clears the counters of the rules that are new in next: their
// numbers may have belonged to rules that were removed before.
func zeroCounters(counters *ebpf.Map, current, next Policy) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return err
	}
	kept := numbers(current.Rules)
	for _, rule := range next.Rules {
		if kept[rule.Number] {
			continue
		}
		if err := counters.Put(ruleCounter(rule), make([]bpf.Counter, cpus)); err != nil {
			return err
		}
	}
	return nil
}

// count reads what next has counted. Rules that current doesn't have start at
// 0, whatever their counters hold.
func count(counters *ebpf.Map, current, next Policy) (Listing, error) {
	listing := listing(next)
	for i, row := range Rows() {
		if err := sum(counters, uint32(row.index), &listing.Rows[i]); err != nil {
			return Listing{}, err
		}
	}
	kept := numbers(current.Rules)
	for i, rule := range next.Rules {
		if !kept[rule.Number] {
			continue
		}
		if err := sum(counters, ruleCounter(rule), &listing.Rules[i]); err != nil {
			return Listing{}, err
		}
	}
	return listing, nil
}

// ruleCounter is where a rule's packets are counted.
func ruleCounter(rule Rule) uint32 { return uint32(bpf.PortRows) + uint32(rule.Number) }

// sum adds a counter up over all CPUs.
func sum(counters *ebpf.Map, index uint32, total *Counter) error {
	var perCPU []bpf.Counter
	if err := counters.Lookup(index, &perCPU); err != nil {
		return err
	}
	for _, cpu := range perCPU {
		total.Packets += cpu.Packets
		total.Bytes += cpu.Bytes
	}
	return nil
}
