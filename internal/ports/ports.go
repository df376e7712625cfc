// Package ports is the policy of port-filter: which ports may pass, how the
// policy is laid out for the program, and how a running program gets a new one
// without ever seeing half of it.
package ports

import "context"

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
	Policy  Policy
}

// Counter is packets and bytes.
type Counter struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Listing is a policy with what its rules have counted.
type Listing struct {
	Policy Policy
	Rules  []Counter // one for each rule of Policy
	Rows   []Row     // packets that no rule decided, in the program's order
}

// Row counts packets that no rule decided, by why.
type Row struct {
	Name string `json:"row"`
	Counter
}
