package datapath

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
)

// rejection is the verifier's refusal of a program.
type rejection struct {
	program string // "" if unknown
	cause   error
	log     []string
}

// lastLines is how many lines of the verifier's log a message keeps.
const lastLines = 5

func (r *rejection) Error() string {
	lines := make([]string, 0, len(r.log))
	for _, line := range r.log {
		if line = strings.Join(strings.Fields(line), " "); line != "" && !strings.HasPrefix(line, "processed ") {
			lines = append(lines, line)
		}
	}
	refused := "the verifier refused it: "
	if r.program != "" {
		refused = fmt.Sprintf("the verifier refused program %s: ", r.program)
	}
	if len(lines) == 0 {
		return refused + rootCause(r.cause).Error()
	}
	return refused + strings.Join(lines[max(0, len(lines)-lastLines):], "; ")
}

// VerifierLog returns the whole log, a line each.
func (r *rejection) VerifierLog() []string { return r.log }

func (r *rejection) Unwrap() []error { return []error{fault.ErrRejected, r.cause} }

func isPermission(err error) bool { return errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) }

// rootCause returns the innermost error: for messages in which cilium/ebpf's
// own words would repeat ours.
func rootCause(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}
