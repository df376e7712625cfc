// Package probe finds out what the running kernel can do. A probe tries the
// thing: it loads a tiny real program, creates the map, attaches to a target
// that is made for the purpose and thrown away. Kernel versions are never
// compared, because distributions backport.
package probe

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
	"bpfnet/pinned"
)

// ErrNotSupported is in the tree of a probe's error when the kernel answered
// that it lacks the feature.
var ErrNotSupported = ebpf.ErrNotSupported

// ErrForbidden is in the tree of a probe's error when the kernel has the
// feature and refuses it although no capability is missing, as hardened and
// locked-down kernels do.
var ErrForbidden = errors.New("the kernel forbids it (hardened or locked-down kernel)")

// Status is the outcome of a probe.
type Status string

// The outcomes.
const (
	Available    Status = "available"
	Unsupported  Status = "unsupported"   // the kernel lacks it
	Forbidden    Status = "forbidden"     // the kernel has it and refuses it to everybody
	NoPermission Status = "no_permission" // a capability of this process is missing
	Unknown      Status = "unknown"       // the probe couldn't be carried out
)

// Report is what this machine can do, in an order that doesn't change.
type Report struct {
	Environment Environment `json:"environment"`
	Features    []Result    `json:"features"`
	Choices     []Choice    `json:"choices"`
}

// Result is the outcome of the probe of one feature.
type Result struct {
	Feature   string   `json:"feature"`
	Group     string   `json:"group"`
	Status    Status   `json:"status"`
	Mechanism string   `json:"mechanism"` // what the probe did
	Detail    *string  `json:"detail"`    // why it isn't available, or where it is
	Since     string   `json:"since"`     // kernel release that introduced it, for messages only; "" for mounts
	NeededBy  []string `json:"needed_by"` // built-in programs
}

// Choice is the rung of a ladder that would be taken on this machine.
type Choice struct {
	Purpose   string    `json:"purpose"`
	Mechanism *string   `json:"mechanism"` // null when no rung works
	Refused   []Refusal `json:"refused"`   // the better rungs, best first
}

// Refusal is a rung that can't be taken.
type Refusal struct {
	Mechanism string `json:"mechanism"`
	Status    Status `json:"status"`
	Reason    string `json:"reason"`
}

// Result returns the result of the named feature.
func (r Report) Result(feature string) (Result, bool) {
	i := slices.IndexFunc(r.Features, func(f Result) bool { return f.Feature == feature })
	if i < 0 {
		return Result{}, false
	}
	return r.Features[i], true
}

// Run probes everything. dir is bpfnet's directory in bpffs; it needn't exist.
// When ctx ends, the features not yet probed are Unknown.
func Run(ctx context.Context, dir string) Report {
	report := Report{Environment: environment(dir), Features: make([]Result, 0, len(features))}
	needed := neededBy()
	for _, f := range features {
		report.Features = append(report.Features, f.result(ctx, dir, needed[f.name]))
	}
	report.Choices = choices(report)
	return report
}

// Feature probes one feature by its name and returns nil if the kernel has it,
// an error that is ErrNotSupported or ErrForbidden if it can't be had, or
// another error if that couldn't be found out. What can't change is remembered
// for the life of the process.
func Feature(name string) error {
	f, ok := lookup(name)
	if !ok {
		return fault.New(fault.ErrNotFound, "probe kernel feature %q: no such feature", name)
	}
	return f.cached(pinned.DefaultRoot)
}

var cache sync.Map // feature name -> outcome

type outcome struct{ err error }

// cached runs the probe unless its answer is known.
func (f feature) cached(dir string) error {
	if known, ok := cache.Load(f.name); ok {
		return known.(outcome).err
	}
	err := f.judge(f.probe(dir))
	if !f.mount && conclusive(err) {
		cache.Store(f.name, outcome{err})
	}
	return err
}

func conclusive(err error) bool {
	return err == nil || errors.Is(err, ErrNotSupported) || errors.Is(err, ErrForbidden)
}

// judge tells a refusal by the kernel from a missing capability.
func (f feature) judge(err error) error {
	if !f.guarded || !isDenied(err) || len(missing(Needs(f.op))) > 0 || inUserNamespace() {
		return err
	}
	return fmt.Errorf("%w: %w", ErrForbidden, err)
}

func isDenied(err error) bool {
	return errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES)
}
