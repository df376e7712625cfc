package commands

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"

	"bpfnet/internal/fault"
	"bpfnet/output"
)

func TestExitCodes(t *testing.T) {
	for _, test := range []struct {
		err  error
		exit int
		code string
	}{
		{errors.New("anything"), 1, "failed"},
		{fault.New(fault.ErrUsage, "x"), 2, "usage"},
		{fault.New(fault.ErrNotFound, "x"), 3, "not_found"},
		{fault.New(fault.ErrConflict, "x"), 4, "conflict"},
		{fault.New(fault.ErrPermission, "x"), 5, "permission"},
		{fault.New(fault.ErrUnsupported, "x"), 6, "unsupported"},
		{fault.New(fault.ErrRejected, "x"), 7, "rejected"},
		{fault.New(fault.ErrPartial, "x"), 8, "partial"},
		{fault.New(fault.ErrLocked, "x"), 9, "locked"},
		{fmt.Errorf("wait for lock: %w", context.Canceled), 130, "interrupted"},
		{fault.New(fault.ErrLocked, "wait: %w", context.Canceled), 130, "interrupted"},
		{fmt.Errorf("deep: %w", fault.New(fault.ErrNotFound, "x")), 3, "not_found"},
	} {
		if exit, code := outcome(test.err); exit != test.exit || code != test.code {
			t.Errorf("outcome(%v) = %d %s, want %d %s", test.err, exit, code, test.exit, test.code)
		}
	}
}

func TestReport(t *testing.T) {
	inner := fault.New(fault.ErrNotFound, "no such interface").Hint("ip link")
	outer := fault.New(fault.ErrNotFound, "attach xdp to %q: %w", "eth9\x1b[2J", inner).Hint("outer").Hint("ip link")
	for _, test := range []struct {
		name   string
		err    error
		format output.Format
		exit   int
		want   string
	}{
		{"success", nil, output.FormatTable, 0, ""},
		{"closed pipe", fmt.Errorf("write: %w", syscall.EPIPE), output.FormatTable, 0, ""},
		{"lines", outer, output.FormatTable, 3, "bpfnet: attach xdp to \"eth9\\x1b[2J\": no such interface\nhint: outer\nhint: ip link\n"},
		{"document", inner, output.FormatJSON, 3, `{"error":{"code":"not_found","message":"no such interface","hints":["ip link"],"verifier_log":null}}` + "\n"},
		{"ndjson", inner, output.FormatNDJSON, 3, `{"error":{"code":"not_found","message":"no such interface","hints":["ip link"],"verifier_log":null}}` + "\n"},
		{"yaml", errors.New("x"), output.FormatYAML, 1, "error:\n  code: failed\n  message: x\n  hints: []\n  verifier_log: null\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var b bytes.Buffer
			if exit := report(&b, test.err, test.format, false); exit != test.exit || b.String() != test.want {
				t.Errorf("exit %d, %q; want %d, %q", exit, b.String(), test.exit, test.want)
			}
		})
	}
}

// brokenPipe is a standard output whose reader has gone.
type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, syscall.EPIPE }

func TestClosedPipeIsSuccess(t *testing.T) {
	for _, argv := range [][]string{{"version"}, {"prog", "list", "-o", "json"}, {"status", "--interval", "10ms"}, {"completion", "bash"}} {
		var stdout, stderr bytes.Buffer
		env := newFake().env(&stdout, &stderr)
		env.Stdout = brokenPipe{}
		if exit := Run(context.Background(), env, argv); exit != 0 || stderr.Len() > 0 {
			t.Errorf("%q: exit %d, stderr %q", argv, exit, stderr.String())
		}
	}
}

func TestInterrupt(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	var stdout, stderr bytes.Buffer
	f := newFake()
	env := f.env(&stdout, &stderr)
	if exit := Run(context.Background(), env, []string{"load", "pod-traffic", "-q"}); exit != 0 {
		t.Fatalf("load: exit %d: %s", exit, stderr.String())
	}
	if exit := Run(ctx, env, []string{"attach", "xdp", "pod-traffic", "--dev", "eth0"}); exit != 130 || stderr.String() != "bpfnet: interrupted\n" {
		t.Errorf("attach: exit %d, stderr %q", exit, stderr.String())
	}
	if exit := Run(ctx, env, []string{"status", "--interval", "10ms"}); exit != 0 {
		t.Errorf("a stream that is interrupted: exit %d", exit)
	}
	if f.stats {
		t.Error("statistics are still on")
	}
}
