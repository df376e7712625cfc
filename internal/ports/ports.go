// Package ports is the policy of port-filter: which ports may pass, how the
// policy is laid out for the program, and how a running program gets a new one
// without ever seeing half of it.
package ports

import (
	"context"

	"bpfnet/bpf"
)

// API changes and reads the policy of one loaded instance. Writers are
// idempotent and swap the whole policy at once; with dryRun they only say what
// would be. fault.ErrNotFound if the instance isn't loaded.
type API interface {
	// Allow makes the ranges pass, Deny makes them drop. A rule for exactly
	// the same range with the other verdict is replaced.
	Allow(ctx context.Context, ranges []Range, dryRun bool) (Result, error)
	Deny(ctx context.Context, ranges []Range, dryRun bool) (Result, error)
	// Remove takes the rules for exactly these ranges away; a range without a
	// rule is no error.
	Remove(ctx context.Context, ranges []Range, dryRun bool) (Result, error)
	// Default changes what happens to what no rule matches.
	Default(ctx context.Context, change DefaultChange, dryRun bool) (Result, error)
	// List returns the policy and what it has counted.
	List(ctx context.Context) (Listing, error)
}

// Result is the policy after a change.
type Result struct {
	Changed bool
	Listing
}

// Listing is a policy with what it has counted since it was loaded, a rule since
// it was added.
type Listing struct {
	Policy Policy
	Rules  []Counter // one for each rule of Policy
	Rows   []Counter // packets that no rule decided, one for each of Rows
}

// Counter is packets and bytes.
type Counter struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Row is one reason for a verdict that no rule decided.
type Row struct {
	Name  string
	Drop  bool
	index bpf.PortRow
}

// Rows returns the rows in the order in which documents show them.
func Rows() []Row {
	return []Row{
		{"default_pass", false, bpf.DefaultPass},
		{"default_drop", true, bpf.DefaultDrop},
		{"established", false, bpf.Established},
		{"untouched", false, bpf.Untouched},
		{"fragment_pass", false, bpf.FragmentPass},
		{"fragment_drop", true, bpf.FragmentDrop},
		{"truncated", true, bpf.Truncated},
		{"too_deep", true, bpf.TooDeep},
		{"non_ip", false, bpf.NonIP},
	}
}

// edit returns a changed policy and whether it differs.
type edit func(Policy) (Policy, bool, error)

func addition(ranges []Range, drop bool) edit {
	return func(p Policy) (Policy, bool, error) { return p.With(ranges, drop) }
}

func removal(ranges []Range) edit {
	return func(p Policy) (Policy, bool, error) {
		next, changed := p.Without(ranges)
		return next, changed, nil
	}
}

func defaults(change DefaultChange) edit {
	return func(p Policy) (Policy, bool, error) {
		next, changed := p.WithDefault(change)
		return next, changed, nil
	}
}

// Unloaded returns the API of an instance that isn't loaded yet: it has the
// policy that the program starts with, and changes to it are only planned.
func Unloaded() API { return unloaded{} }

type unloaded struct{}

func (unloaded) Allow(_ context.Context, ranges []Range, _ bool) (Result, error) {
	return plan(addition(ranges, false))
}

func (unloaded) Deny(_ context.Context, ranges []Range, _ bool) (Result, error) {
	return plan(addition(ranges, true))
}

func (unloaded) Remove(_ context.Context, ranges []Range, _ bool) (Result, error) {
	return plan(removal(ranges))
}

func (unloaded) Default(_ context.Context, change DefaultChange, _ bool) (Result, error) {
	return plan(defaults(change))
}

func (unloaded) List(context.Context) (Listing, error) { return listing(Policy{}), nil }

func plan(edit edit) (Result, error) {
	policy, changed, err := edit(Policy{})
	return Result{Changed: changed, Listing: listing(policy)}, err
}

// listing returns a policy that hasn't counted anything.
func listing(policy Policy) Listing {
	return Listing{Policy: policy, Rules: make([]Counter, len(policy.Rules)), Rows: make([]Counter, len(Rows()))}
}
