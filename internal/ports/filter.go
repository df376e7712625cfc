package ports

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"

	"bpfnet/bpf"
	"bpfnet/internal/datapath"
	"bpfnet/internal/fault"
	"bpfnet/internal/maps"
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
func (f *Filter) List(ctx context.Context) (Listing, error) {
	unchanged := func(p Policy) (Policy, bool, error) { return p, false, nil }
	result, err := f.apply(ctx, unchanged, true)
	return result.Listing, err
}

func (f *Filter) change(ctx context.Context, dryRun bool, edit edit) (result Result, err error) {
	if dryRun {
		return f.apply(ctx, edit, dryRun)
	}
	err = f.api.Update(ctx, func() error {
		result, err = f.apply(ctx, edit, dryRun)
		return err
	})
	return result, err
}

// apply edits the policy; only with dryRun it does without the lock.
func (f *Filter) apply(ctx context.Context, edit edit, dryRun bool) (Result, error) {
	m, err := f.open(dryRun)
	if err != nil {
		return Result{}, err
	}
	defer m.close()
	current, err := m.read()
	if err != nil {
		return Result{}, fmt.Errorf("read policy of %s: %w", f.instance, err)
	}
	next, changed, err := edit(current)
	if err != nil {
		return Result{}, err
	}
	if changed && !dryRun {
		if err := m.replace(current, next); err != nil {
			return Result{}, fmt.Errorf("replace policy of %s: %w", f.instance, err)
		}
	}
	listing, err := count(ctx, m.counters, current, next)
	if err != nil {
		return Result{}, fmt.Errorf("read counters of %s: %w", f.instance, err)
	}
	return Result{Changed: changed, Listing: listing}, nil
}

// filterMaps are the maps of a loaded instance.
type filterMaps struct {
	policy   *ebpf.Map // holds inForce
	inForce  *ebpf.Map // the policy that packets meet
	spare    *ebpf.Map // where the next one is laid out
	counters *ebpf.Map

	generation uint32 // of the policy in force
}

func (m *filterMaps) close() {
	for _, each := range []*ebpf.Map{m.policy, m.inForce, m.spare, m.counters} {
		each.Close() // does nothing for nil
	}
}

func (f *Filter) open(readOnly bool) (m *filterMaps, err error) {
	m = &filterMaps{}
	defer func() {
		if err != nil {
			m.close()
		}
	}()
	for _, each := range []struct {
		name string
		to   **ebpf.Map
	}{
		{"policy", &m.policy}, {"first_policy", &m.inForce}, {"second_policy", &m.spare}, {"counters", &m.counters},
	} {
		if *each.to, err = f.api.OpenMap(f.instance, each.name, readOnly); err != nil {
			return m, err
		}
	}
	return m, nil
}

// order finds out which of the two places for a policy is in force.
func (m *filterMaps) order() error {
	var id uint32
	if err := m.policy.Lookup(uint32(0), &id); err != nil {
		return err
	}
	for range 2 {
		info, err := m.inForce.Info()
		if err != nil {
			return err
		}
		if held, ok := info.ID(); ok && uint32(held) == id {
			return nil
		}
		m.inForce, m.spare = m.spare, m.inForce
	}
	return fmt.Errorf("map %d in force is neither first_policy nor second_policy", id)
}

// readTries is how often a policy is read before it counts as changing all the
// time.
const readTries = 100

// read returns the policy in force. Without the lock two writers may come
// between and write to the place that is being read: then it reads again.
func (m *filterMaps) read() (Policy, error) {
	for range readTries {
		if err := m.order(); err != nil {
			return Policy{}, err
		}
		var before, after bpf.PolicyHeader
		if err := m.inForce.Lookup(headerPage, &before); err != nil {
			return Policy{}, err
		}
		rules, err := m.rulePages()
		if err != nil {
			return Policy{}, err
		}
		policy, failed := decode(before, rules)
		if err := m.inForce.Lookup(headerPage, &after); err != nil {
			return Policy{}, err
		}
		if before == after && before.Version != layoutUnfinished {
			m.generation = before.Generation
			return policy, failed
		}
	}
	return Policy{}, fault.New(fault.ErrLocked, "other commands change it all the time")
}

const headerPage = uint32(bpf.PolicyHeaderPage)

// rulePages reads the place that is in force, all of it in one call: batches of an
// array are older than anything else that the programs need. Pages of every kind
// have the same size.
func (m *filterMaps) rulePages() ([]rulePage, error) {
	indices, pages := make([]uint32, policyPages), make([]rulePage, policyPages)
	n, err := m.inForce.BatchLookup(new(ebpf.MapBatchCursor), indices, pages, nil)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, err
	}
	if n != policyPages {
		return nil, fmt.Errorf("%d of %d pages", n, policyPages)
	}
	return pages[bpf.PolicyRulesPage:], nil
}

// replace lays the policy out in the spare place and puts that in force with one
// update, so that each packet meets either all of the old or all of the new. The
// kernel returns from the update when no program runs any more that has looked
// up the old one, so the old place is free to be written to from then on.
func (m *filterMaps) replace(current, next Policy) error {
	l := compile(next)
	l.header.Generation = m.generation + 1
	if err := l.write(m.spare); err != nil {
		return err
	}
	if err := zeroCounters(m.counters, current, next); err != nil {
		return err
	}
	return m.policy.Put(uint32(0), m.spare)
}

// write fills every page of a place that may hold an older policy. The header
// says that it is unfinished until all of it is there.
func (l layout) write(place *ebpf.Map) error {
	if err := place.Put(headerPage, &bpf.PolicyHeader{Version: layoutUnfinished}); err != nil {
		return err
	}
	if err := putPages(place, 0, l.tablePages()); err != nil {
		return err
	}
	if err := putPages(place, bpf.PolicyRulesPage, l.rulePages()); err != nil {
		return err
	}
	return place.Put(headerPage, &l.header)
}

// putPages writes pages from an index on, in one call.
func putPages[Page bpf.PolicyPage | rulePage](place *ebpf.Map, first uint32, pages []Page) error {
	indices := make([]uint32, len(pages))
	for i := range indices {
		indices[i] = first + uint32(i)
	}
	_, err := place.BatchUpdate(indices, pages, nil)
	return err
}

// zeroCounters clears the counters of the rules that are new in next: their
// numbers may have belonged to rules that were removed before.
func zeroCounters(counters *ebpf.Map, current, next Policy) error {
	var added []uint32
	kept := numbers(current.Rules)
	for _, rule := range next.Rules {
		if !kept[rule.Number] {
			added = append(added, ruleCounter(rule))
		}
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil || len(added) == 0 {
		return err
	}
	zeros := make([]bpf.Counter, len(added)*cpus)
	_, err = counters.BatchUpdate(added, zeros, nil)
	if !errors.Is(err, ebpf.ErrNotSupported) {
		return err
	}
	for _, index := range added { // before Linux 5.13
		if err := counters.Put(index, zeros[:cpus]); err != nil {
			return err
		}
	}
	return nil
}

// count reads what next has counted. Rules that current doesn't have start at
// 0, whatever their counters hold.
func count(ctx context.Context, counters *ebpf.Map, current, next Policy) (Listing, error) {
	counted, err := read(ctx, counters, highest(next.Rules))
	if err != nil {
		return Listing{}, err
	}
	listing := listing(next)
	for i, row := range Rows() {
		listing.Rows[i] = counted[row.index]
	}
	kept := numbers(current.Rules)
	for i, rule := range next.Rules {
		if kept[rule.Number] {
			listing.Rules[i] = counted[ruleCounter(rule)]
		}
	}
	return listing, nil
}

// highest is the highest index of a counter that rules and rows use.
func highest(rules []Rule) uint32 {
	index := uint32(bpf.PortRows) - 1
	for _, rule := range rules {
		index = max(index, ruleCounter(rule))
	}
	return index
}

// errLast ends reading.
var errLast = errors.New("that was the last one")

// read returns the counters up to an index, summed over all CPUs.
func read(ctx context.Context, counters *ebpf.Map, last uint32) ([]Counter, error) {
	sums := make([]Counter, last+1)
	err := maps.Walk(ctx, counters, func(key, value []byte) error {
		index := binary.NativeEndian.Uint32(key)
		sums[index] = sum(value)
		if index == last {
			return errLast
		}
		return nil
	})
	if errors.Is(err, errLast) {
		err = nil
	}
	return sums, err
}

// ruleCounter is where a rule's packets are counted.
func ruleCounter(rule Rule) uint32 { return uint32(bpf.PortRows) + uint32(rule.Number) }

// counterSize is the size of a bpf.Counter.
const counterSize = 16

// sum adds up the bpf.Counter of all CPUs.
func sum(perCPU []byte) Counter {
	var total Counter
	for c := range slices.Chunk(perCPU, counterSize) {
		total.Packets += binary.NativeEndian.Uint64(c)
		total.Bytes += binary.NativeEndian.Uint64(c[8:])
	}
	return total
}
