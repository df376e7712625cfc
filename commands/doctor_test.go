package commands

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"bpfnet/internal/bypass"
	"bpfnet/internal/probe"
)

// fakeReport is an older, hardened kernel.
func fakeReport() probe.Report {
	some := func(s string) *string { return &s }
	level := 2
	return probe.Report{
		Environment: probe.Environment{
			Kernel: "6.1.0", Machine: "x86_64", BPFFS: some("/sys/fs/bpf"), Cgroup2: some("/sys/fs/cgroup"),
			Lockdown: some("integrity"), LSMs: []string{"lockdown", "bpf"}, UnprivilegedBPFDisabled: &level,
			Capabilities: []probe.Capability{probe.CapBPF, probe.CapNetAdmin},
		},
		Features: []probe.Result{
			{Feature: "bpffs", Group: "basics", Status: probe.Available, Mechanism: "statfs", Since: "4.4", NeededBy: []string{}},
			{Feature: "xdp", Group: "xdp", Status: probe.Available, Mechanism: "load", Since: "4.8", NeededBy: []string{"xdp-counter"}},
			{Feature: "tc", Group: "tc", Status: probe.Available, Mechanism: "load", Since: "4.1", NeededBy: []string{}},
			{
				Feature: "tcx", Group: "tc", Status: probe.Unsupported, Mechanism: "bpf_link", Since: "6.6",
				Detail: some("create link: invalid argument"), NeededBy: []string{"pod-traffic"},
			},
			{
				Feature: "fentry", Group: "tracing", Status: probe.Forbidden, Mechanism: "attach", Since: "5.5",
				Detail: some("the kernel forbids it"), NeededBy: []string{},
			},
		},
		Choices: []probe.Choice{
			{
				Purpose: "tc", Mechanism: some("clsact filter"),
				Refused: []probe.Refusal{{Mechanism: "tcx link", Status: probe.Unsupported, Reason: "create link: invalid argument"}},
			},
			{Purpose: "accounting", Refused: []probe.Refusal{{Mechanism: "fentry", Status: probe.Forbidden, Reason: "the kernel forbids it"}}},
		},
	}
}

// fakeBypass is a node with a plug-in whose program on eth0 puts packets into Pods.
func fakeBypass() bypass.Report {
	yes, name := true, "into_pods"
	return bypass.Report{Bypassed: &yes, NetNS: 4026532301, Programs: []bypass.Program{{
		DevName: "eth0", IfIndex: 2, Hook: "tcx_ingress", ProgID: 77, ProgName: &name,
		Calls: []string{"bpf_redirect_peer"}, Misses: []bypass.Part{bypass.Receive},
	}}}
}

func fakeSteps() []probe.Step {
	seen, why := "10 of 10 packets counted", "create link: invalid argument"
	return []probe.Step{
		{Name: "xdp native", OK: true, Mechanism: "bpf_link", Detail: &seen, DurationMS: 12.5},
		{Name: "tc ingress", Skipped: true, Mechanism: "tcx link", Detail: &why, DurationMS: 0.25},
	}
}

// TestDoctorVerdict: the report is printed whatever the verdict is.
func TestDoctorVerdict(t *testing.T) {
	why := "why not"
	status := func(feature string, s probe.Status) func(*fake) {
		return func(f *fake) {
			for i := range f.report.Features {
				if r := &f.report.Features[i]; r.Feature == feature {
					r.Status, r.Detail = s, &why
				}
			}
		}
	}
	tests := []struct {
		name   string
		change func(*fake)
		exit   int
		stderr string
	}{
		{"usable", func(*fake) {}, 0, ""},
		{"no bpffs", status("bpffs", probe.Unsupported), 6, "hint: mount -t bpf bpf /sys/fs/bpf"},
		{"no xdp", status("xdp", probe.Unsupported), 6, "check xdp: why not; kernels have it since 4.8; used by xdp-counter"},
		{"no permission", status("tc", probe.NoPermission), 5, "hint: run as root, or give the process CAP_BPF"},
		{"other feature", status("fentry", probe.NoPermission), 0, ""},
		{"self test fails", func(f *fake) { f.steps[0].OK = false }, 1, "test xdp native by bpf_link: 10 of 10"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := newFake()
			f.report, f.steps = fakeReport(), fakeSteps()
			test.change(f)
			var stdout, stderr bytes.Buffer
			exit := Run(context.Background(), f.env(&stdout, &stderr), []string{"doctor", "--selftest"})
			if exit != test.exit || !strings.Contains(stderr.String(), test.stderr) {
				t.Errorf("exit %d, want %d; stderr %q", exit, test.exit, stderr.String())
			}
			if !strings.Contains(stdout.String(), "6.1.0") {
				t.Errorf("no report: %q", stdout.String())
			}
		})
	}
}
