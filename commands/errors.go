package commands

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"syscall"

	"bpfnet/internal/fault"
	"bpfnet/output"
)

// verifierError is an error that carries the verifier's whole log; its message
// has the last lines.
type verifierError interface {
	error
	VerifierLog() []string
}

// problem is the error document.
type problem struct {
	Code        string   `json:"code"`
	Message     string   `json:"message"`
	Hints       []string `json:"hints"`
	VerifierLog []string `json:"verifier_log"` // null: the verifier wasn't the reason
}

// report writes err to w, as lines or as a document, and returns the exit code.
// A reader that closed the pipe has seen what it wanted: that is success.
func report(w io.Writer, err error, format output.Format, debug bool) int {
	if err == nil || errors.Is(err, syscall.EPIPE) {
		return 0
	}
	exit, p := describe(err)
	if format == output.FormatTable {
		p.write(w, debug)
		return exit
	}
	if format == output.FormatJSON {
		format = output.FormatNDJSON // an error is one line
	}
	// Errors of writing an error have no reader.
	_ = output.New(w, format).Object(struct {
		Error problem `json:"error"`
	}{p}, nil)
	return exit
}

func describe(err error) (int, problem) {
	exit, word := outcome(err)
	p := problem{Code: word, Message: err.Error(), Hints: unique(fault.Hints(err))}
	if exit == exitInterrupted {
		p.Message = "interrupted"
	}
	for _, step := range nextSteps {
		if errors.Is(err, step.errno) {
			p.Hints = unique(append(p.Hints, step.hint))
		}
	}
	var rejected verifierError
	if errors.As(err, &rejected) {
		p.VerifierLog = rejected.VerifierLog()
	}
	return exit, p
}

// unique drops hints that an inner error repeats; the result is never nil.
func unique(hints []string) []string {
	list := []string{}
	for _, h := range hints {
		if !slices.Contains(list, h) {
			list = append(list, h)
		}
	}
	return list
}

// write prints the problem for people.
func (p problem) write(w io.Writer, debug bool) {
	var b strings.Builder
	fmt.Fprintf(&b, "bpfnet: %s\n", output.Escape(p.Message))
	if debug {
		for _, line := range p.VerifierLog {
			fmt.Fprintf(&b, "  %s\n", output.Escape(line))
		}
	}
	for _, hint := range p.Hints {
		fmt.Fprintf(&b, "hint: %s\n", output.Escape(hint))
	}
	if !debug && len(p.VerifierLog) > 0 {
		fmt.Fprintf(&b, "hint: --debug shows the %d lines of the verifier's log\n", len(p.VerifierLog))
	}
	_, _ = io.WriteString(w, b.String())
}
