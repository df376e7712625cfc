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

// edit returns a changed policy and whether it differs.
type edit func(Policy) (Policy, bool, error)

// Allow implements API.
func (f *Filter) Allow(ctx context.Context, ranges []Range, dryRun bool) (Result, error) {
	return f.change(ctx, dryRun, func(p Policy) (Policy, bool, error) { return p.With(ranges, false) })
}

// Deny implements API.
func (f *Filter) Deny(ctx context.Context, ranges []Range, dryRun bool) (Result, error) {
	return f.change(ctx, dryRun, func(p Policy) (Policy, bool, error) { return p.With(ranges, true) })
}

// Remove implements API.
func (f *Filter) Remove(ctx context.Context, ranges []Range, dryRun bool) (Result, error) {
	return f.change(ctx, dryRun, func(p Policy) (Policy, bool, error) {
		next, changed := p.Without(ranges)
		return next, changed, nil
	})
}

// Default implements API.
func (f *Filter) Default(ctx context.Context, change DefaultChange, dryRun bool) (Result, error) {
	return f.change(ctx, dryRun, func(p Policy) (Policy, bool, error) {
		next, changed := p.WithDefault(change)
		return next, changed, nil
	})
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

func (f *Filter) apply(edit edit, dryRun bool) (Result, error) {
	policies, err := f.api.OpenMap(f.instance, "policy", dryRun)
	if err != nil {
		return Result{}, err
	}
	defer policies.Close()
	current, err := f.policy(policies)
	if err != nil {
		return Result{}, err
	}
	next, changed, err := edit(current)
	if err != nil {
		return Result{}, err
	}
	if changed && !dryRun {
		err = f.replace(policies, current, next)
	}
	return Result{Changed: changed, Policy: next}, err
}

// policy reads the policy that packets meet now.
func (f *Filter) policy(policies *ebpf.Map) (Policy, error) {
	var inner *ebpf.Map
	if err := policies.Lookup(uint32(0), &inner); err != nil {
		return Policy{}, readError(f.instance, err)
	}
	defer inner.Close()
	policy, err := decode(func(number int) (*page, error) {
		p := new(page)
		return p, inner.Lookup(uint32(number), p)
	})
	if err != nil {
		return Policy{}, readError(f.instance, err)
	}
	return policy, nil
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
func (f *Filter) replace(policies *ebpf.Map, current, next Policy) error {
	inner, err := fill(next)
	if err != nil {
		return fmt.Errorf("lay out policy of %s: %w", f.instance, err)
	}
	defer inner.Close()
	if err := f.zeroCounters(current, next); err != nil {
		return err
	}
	if err := policies.Put(uint32(0), inner); err != nil {
		return fmt.Errorf("replace policy of %s: %w", f.instance, err)
	}
	return nil
}

// fill returns a new map with the policy.
func fill(policy Policy) (*ebpf.Map, error) {
	spec, err := innerSpec()
	if err != nil {
		return nil, err
	}
	inner, err := ebpf.NewMap(spec)
	if err != nil {
		return nil, err
	}
	for number, page := range compile(policy) {
		if err := inner.Put(uint32(number), page); err != nil {
			inner.Close()
			return nil, err
		}
	}
	return inner, nil
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
func (f *Filter) zeroCounters(current, next Policy) error {
	counters, err := f.api.OpenMap(f.instance, "counters", false)
	if err != nil {
		return err
	}
	defer counters.Close()
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return err
	}
	zero := make([]Counter, cpus)
	kept := numbers(current.Rules)
	for _, rule := range next.Rules {
		if kept[rule.Number] {
			continue
		}
		if err := counters.Put(firstRuleCounter+uint32(rule.Number), zero); err != nil {
			return fmt.Errorf("clear counter %d of %s: %w", rule.Number, f.instance, err)
		}
	}
	return nil
}

// rows is the BPF side's enum port_row, in its order.
var rows = []string{
	"default_pass", "default_drop", "established", "untouched",
	"fragment_pass", "fragment_drop", "truncated", "non_ip",
}

// firstRuleCounter is where the rules' counters start: that of rule n is n
// further on.
const firstRuleCounter = 16

// List implements API.
func (f *Filter) List(ctx context.Context) (Listing, error) {
	policies, err := f.api.OpenMap(f.instance, "policy", true)
	if err != nil {
		return Listing{}, err
	}
	defer policies.Close()
	policy, err := f.policy(policies)
	if err != nil {
		return Listing{}, err
	}
	counters, err := f.api.OpenMap(f.instance, "counters", true)
	if err != nil {
		return Listing{}, err
	}
	defer counters.Close()
	listing, err := count(policy, counters)
	if err != nil {
		return Listing{}, fmt.Errorf("read counters of %s: %w", f.instance, err)
	}
	return listing, ctx.Err()
}

func count(policy Policy, counters *ebpf.Map) (Listing, error) {
	listing := Listing{Policy: policy, Rules: make([]Counter, len(policy.Rules)), Rows: make([]Row, len(rows))}
	for i, name := range rows {
		counter, err := sum(counters, uint32(i))
		if err != nil {
			return Listing{}, err
		}
		listing.Rows[i] = Row{name, counter}
	}
	for i, rule := range policy.Rules {
		counter, err := sum(counters, firstRuleCounter+uint32(rule.Number))
		if err != nil {
			return Listing{}, err
		}
		listing.Rules[i] = counter
	}
	return listing, nil
}

// sum adds a counter up over all CPUs.
func sum(counters *ebpf.Map, index uint32) (Counter, error) {
	var perCPU []Counter
	var total Counter
	err := counters.Lookup(index, &perCPU)
	for _, cpu := range perCPU {
		total.Packets += cpu.Packets
		total.Bytes += cpu.Bytes
	}
	return total, err
}
