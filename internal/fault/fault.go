// Package fault holds the states that a command can end in and that callers
// tell apart: one sentinel for each exit code of the command line, and hints
// that travel with an error. It is a leaf: every other package may import it.
package fault

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// The sentinels. Wrap them with %w or build errors with New; package commands
// is the only one that knows which exit code and code word each has.
var (
	ErrUsage       = errors.New("usage")       // command line or input file is wrong
	ErrNotFound    = errors.New("not found")   // no such program, map, key, link, interface, cgroup
	ErrConflict    = errors.New("conflict")    // exists, busy, held by someone else
	ErrPermission  = errors.New("permission")  // a capability is missing
	ErrUnsupported = errors.New("unsupported") // this kernel can't
	ErrRejected    = errors.New("rejected")    // the verifier refused the program
	ErrPartial     = errors.New("partial")     // some entries of a bulk input were refused
	ErrLocked      = errors.New("locked")      // another process held the lock too long
	ErrDiffers     = errors.New("differs")     // a check found something to report
	ErrLossy       = errors.New("lossy")       // data was lost, and that is asked for as an error
)

// Error is an error of one of the kinds above, with the next steps that are
// known. Its text is the message alone: the kind and the hints are shown
// separately.
type Error struct {
	Kind    error    // one of the sentinels
	Message string   // "no such interface"; lower-case, no "failed to"
	Hints   []string // one known next step each
	Cause   error    // may be nil; reachable with errors.Is/As, not printed
}

func (e *Error) Error() string { return e.Message }

// Unwrap makes both the kind and the cause visible to errors.Is and errors.As.
func (e *Error) Unwrap() []error {
	if e.Cause == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Cause}
}

// New returns an error of the given kind with a formatted message. A %w verb in
// the format keeps its operand as the cause.
func New(kind error, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Kind: kind, Message: err.Error(), Cause: errors.Unwrap(err)}
}

// Hint returns e with one more hint.
func (e *Error) Hint(format string, args ...any) *Error {
	e.Hints = append(e.Hints, fmt.Sprintf(format, args...))
	return e
}

// Join returns an error that is each of errs that aren't nil, in one line; nil if
// there are none.
func Join(errs ...error) error {
	all := slices.DeleteFunc(slices.Clone(errs), func(err error) bool { return err == nil })
	switch len(all) {
	case 0:
		return nil
	case 1:
		return all[0]
	default:
		return joined(all)
	}
}

type joined []error

func (j joined) Error() string {
	texts := make([]string, len(j))
	for i, err := range j {
		texts[i] = err.Error()
	}
	return strings.Join(texts, "; ")
}

func (j joined) Unwrap() []error { return j }

// Hints collects the hints of every Error in err's tree, outermost first.
func Hints(err error) []string {
	var hints []string
	walk(err, func(e *Error) { hints = append(hints, e.Hints...) })
	return hints
}

func walk(err error, visit func(*Error)) {
	if err == nil {
		return
	}
	if e, ok := err.(*Error); ok {
		visit(e)
	}
	switch u := err.(type) {
	case interface{ Unwrap() error }:
		walk(u.Unwrap(), visit)
	case interface{ Unwrap() []error }:
		for _, inner := range u.Unwrap() {
			walk(inner, visit)
		}
	}
}
