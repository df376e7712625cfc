package sink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"bpfnet/internal/alert"
	"bpfnet/internal/fault"
)

const (
	// execTime is how long a command may run unless timeout= says otherwise.
	execTime = 30 * time.Second
	// execTempFail is the exit code of a command that wants to be run again, EX_TEMPFAIL
	// of sysexits.h.
	execTempFail = 75
	// mostStderr is how much of what it says is kept, in bytes.
	mostStderr = 4096
)

// command runs a command for each alert, one after the other.
type command struct {
	path    string
	args    []string
	time    time.Duration
	secrets []string // variables that it doesn't get
}

func openExec(s Spec, _ Options) (driver, error) {
	path, err := exec.LookPath(s.target)
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return nil, fault.New(fault.ErrNotFound, "find command %q: it isn't in PATH", s.target)
	case err != nil:
		return nil, asFault(fmt.Errorf("find command %q: %w", s.target, cause(err)))
	}
	timeout, err := s.timeout()
	return &command{path: path, args: s.values["arg"], time: timeout}, err
}

func (d *command) most() int { return 1 }

func (d *command) close() {}

func (d *command) longest() time.Duration { return d.time }

func (d *command) deliver(ctx context.Context, events []Event) result {
	e, said := events[0], &beginning{}
	c := exec.CommandContext(ctx, d.path, d.args...)
	c.Stdin, c.Stderr = bytes.NewReader(append(slices.Clone(e.Document), '\n')), said
	c.Env = append(d.environment(), fieldsOf(e.Alert)...)
	// What it starts ends with it, and Ctrl-C is for bpfnet alone.
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	c.WaitDelay = endTime / 2
	err := c.Run()
	var exit *exec.ExitError
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay), ended(c, 0): // it may leave something running, or not read
		return result{}
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return result{refused: 1, err: fmt.Errorf("it was killed after %s%s", d.time, said)}
	case ctx.Err() != nil:
		return result{rest: events, err: ctx.Err()}
	case ended(c, execTempFail):
		return result{rest: events, err: fmt.Errorf("exit %d: it asks for another run%s", execTempFail, said)}
	case errors.As(err, &exit):
		return result{refused: 1, err: fmt.Errorf("it ended with %s%s", exit, said)}
	}
	return result{rest: events, err: fmt.Errorf("run: %w", cause(err))}
}

func ended(c *exec.Cmd, code int) bool {
	return c.ProcessState != nil && c.ProcessState.ExitCode() == code
}

func (d *command) environment() []string {
	return slices.DeleteFunc(os.Environ(), func(entry string) bool {
		name, _, _ := strings.Cut(entry, "=")
		return slices.Contains(d.secrets, name)
	})
}

// fieldsOf are the variables that tell a command what the alert is about.
func fieldsOf(a alert.Alert) []string {
	state, end := "began", ""
	if a.EndedAt != nil {
		state, end = "ended", a.EndedAt.Format(time.RFC3339Nano)
	}
	fields := []string{
		"RULE=" + a.Rule, "RULE_NAME=" + text(a.RuleName), "SEVERITY=" + string(a.Severity), "FINGERPRINT=" + a.Fingerprint, "STATE=" + state,
		"STARTED_AT=" + a.StartedAt.Format(time.RFC3339Nano), "ENDED_AT=" + end,
		"NAMESPACE=" + text(a.K8s.Namespace), "POD=" + text(a.K8s.Pod), "SUMMARY=" + a.Summary(),
	}
	for i, f := range fields {
		fields[i] = "BPFNET_ALERT_" + strings.ReplaceAll(f, "\x00", "")
	}
	return fields
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// beginning keeps the beginning of what a command says.
type beginning struct{ bytes.Buffer }

func (t *beginning) Write(p []byte) (int, error) {
	_, _ = t.Buffer.Write(p[:min(len(p), mostStderr-t.Len())]) // a buffer has no errors
	return len(p), nil
}

// String is its first line, behind a colon.
func (t *beginning) String() string { return excerpt(t.Bytes()) }
