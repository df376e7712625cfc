package commands

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"bpfnet/internal/bypass"
)

// TestWatchBypass says what tc doesn't see, where that is shown, and shows cgroups
// where both count.
func TestWatchBypass(t *testing.T) {
	const watch, tc, cgroup = "watch pods --once -o json", "attach tc pod-traffic --dev veth-a --direction both", "attach cgroup pod-traffic --cgroup /a"
	const past = "note: into_pods on eth0 (tcx_ingress) calls bpf_redirect_peer: what is redirected doesn't pass tc"
	why := "read program 9 on eth0: CAP_SYS_ADMIN is missing"
	affected, plain := fakeBypass(), fakeBypass()
	affected.HostSides = []uint32{4}
	several := affected
	several.Programs = append(several.Programs, several.Programs...)
	for _, test := range []struct {
		name   string
		lines  []string
		report bypass.Report
		point  string
		stderr string
	}{
		{"not a host side", []string{tc, watch}, plain, "tc", ""},
		{"tc", []string{tc, watch}, affected, "tc", past + "; bpfnet attach cgroup pod-traffic --all-pods counts it\n"},
		{"several programs", []string{tc, watch}, several, "tc", strings.Replace(past, ": what", ", and 1 more do the like: what", 1) + "; bpfnet attach cgroup pod-traffic --all-pods counts it\n"},
		{"cgroup", []string{cgroup, watch}, affected, "cgroup", ""},
		{"both", []string{tc, cgroup, watch}, affected, "cgroup", past + "\nnote: pod-traffic counts at tc and at cgroups; this is cgroup, --observe tc shows the other\n"},
		{"both, tc asked for", []string{tc, cgroup, watch + " --observe tc"}, affected, "tc", past + "\n"},
		{"both, cgroup asked for", []string{tc, cgroup, watch + " --observe cgroup"}, affected, "cgroup", ""},
		{"unknown", []string{tc, watch}, bypass.Report{Detail: &why}, "tc", "note: whether packets pass by tc is not known: " + why + "\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := scriptFake()
			f.bypass = test.report
			var stdout, stderr bytes.Buffer
			for _, line := range append([]string{"load pod-traffic"}, test.lines...) {
				stdout.Reset()
				stderr.Reset()
				if exit := Run(context.Background(), f.env(&stdout, &stderr), strings.Fields(line)); exit != 0 {
					t.Fatalf("%s: exit %d: %s", line, exit, stderr.String())
				}
			}
			notes := strings.TrimPrefix(stderr.String(), "note: 1 of 3 endpoints can't be looked into\n")
			if notes != test.stderr || !strings.Contains(stdout.String(), `"observed_at":"`+test.point+`"`) {
				t.Errorf("%s%s", notes, stdout.String())
			}
		})
	}
}

// TestDoctorHostSide has the answers that the scripts don't.
func TestDoctorHostSide(t *testing.T) {
	no, why := false, "not root"
	for want, r := range map[string]bypass.Report{
		"host side bypassed no ":            {Bypassed: &no},
		"host side bypassed unknown " + why: {Detail: &why},
	} {
		if got := strings.Join(hostSideRow(r)[1:], " "); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
