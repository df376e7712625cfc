package probe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
	"bpfnet/pinned"
)

// The test binary runs itself again with other capabilities: first it gives
// them up, then it replaces itself, so that every thread has lost them.
const (
	keepVariable = "BPFNET_TEST_KEEP" // bits to keep, as a JSON list
	taskVariable = "BPFNET_TEST_TASK"
)

// DoTask ends the process if it is one that was started for a task.
func DoTask() {
	if keep, ok := os.LookupEnv(keepVariable); ok {
		fmt.Fprintln(os.Stderr, dropAndRestart(keep))
		os.Exit(1)
	}
	if task, ok := os.LookupEnv(taskVariable); ok {
		_ = json.NewEncoder(os.Stdout).Encode(tasks[task]())
		os.Exit(0)
	}
}

func dropAndRestart(keep string) error {
	runtime.LockOSThread()
	var bits []int
	if err := json.Unmarshal([]byte(keep), &bits); err != nil {
		return err
	}
	for bit := 0; bit <= unix.CAP_LAST_CAP; bit++ {
		if slices.Contains(bits, bit) {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(bit), 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return err
		}
	}
	if err := os.Unsetenv(keepVariable); err != nil {
		return err
	}
	return unix.Exec("/proc/self/exe", os.Args[:1], os.Environ())
}

// with runs a task in a process that has only these capabilities.
func with[T any](t *testing.T, task string, keep ...int) T {
	t.Helper()
	needRoot(t)
	bits, err := json.Marshal(append([]int{}, keep...))
	if err != nil {
		t.Fatal(err)
	}
	command := exec.Command("/proc/self/exe")
	command.Env = append(os.Environ(), keepVariable+"="+string(bits), taskVariable+"="+task)
	command.Stderr = os.Stderr
	out, err := command.Output()
	if err != nil {
		t.Fatal(err)
	}
	var result T
	if err := json.Unmarshal(out, &result); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return result
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 || len(missing([]Capability{CapSysAdmin, CapNetAdmin})) > 0 {
		t.Skip("needs root")
	}
}

// explained is what a refused operation came to.
type explained struct{ Kind, Text string }

func explainedAs(op Op, err error) explained {
	err = Explain(op, err)
	switch {
	case err == nil:
		return explained{"none", ""}
	case errors.Is(err, fault.ErrPermission):
		return explained{"permission", err.Error()}
	case errors.Is(err, fault.ErrUnsupported):
		return explained{"unsupported", err.Error()}
	case errors.Is(err, fault.ErrConflict):
		return explained{"conflict", err.Error()}
	}
	return explained{"other", err.Error()}
}

var tasks = map[string]func() any{
	"capabilities": func() any { return Capabilities() },
	"report":       func() any { return Run(context.Background(), pinned.DefaultRoot) },
	"selftest":     func() any { return SelfTest(context.Background()) },
	"explain":      func() any { return refusals() },
}

// refusals carries operations out and explains what the kernel says.
func refusals() map[Op]explained {
	result := map[Op]explained{}
	try := func(op Op, err error) { result[op] = explainedAs(op, err) }
	try(OpCreateMap, createsMap(words(ebpf.PerCPUHash))(""))
	try(OpLoadTC, probeTC(""))
	try(OpLoadXDP, loadsComparison())
	try(OpLoadTracing, probeTpBTF(""))
	try(OpLoadTrampoline, probeFentry(""))
	try(OpEnableStats, probeStats(""))
	_, err := ebpf.ProgramGetNextID(0)
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	try(OpListByID, err)
	try(OpCreateNetNS, withLoopback(func(int) error { return nil }))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	try(OpPacketSocket, closeAfter(fd, err))
	return result
}

// loadsComparison loads an XDP program that subtracts packet pointers, with the
// verifier's log.
func loadsComparison() error {
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, License: "Dual BSD/GPL", Instructions: body(xdpLength(frameSize), asm.Instructions{asm.Mov.Imm(asm.R1, 0)}, xdpPass),
	})
	if err != nil {
		return err
	}
	return program.Close()
}

func TestCapabilities(t *testing.T) {
	got := with[[]Capability](t, "capabilities", unix.CAP_PERFMON, unix.CAP_BPF, unix.CAP_SYSLOG)
	if want := []Capability{CapBPF, CapPerfmon}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestExplainNamesTheMissingCapability(t *testing.T) {
	all := []int{unix.CAP_BPF, unix.CAP_NET_ADMIN, unix.CAP_PERFMON, unix.CAP_SYS_ADMIN, unix.CAP_NET_RAW}
	without := func(bits ...int) []int {
		return slices.DeleteFunc(slices.Clone(all), func(bit int) bool { return slices.Contains(bits, bit) })
	}
	tests := []struct {
		name string
		keep []int
		want map[Op]string // what is named; "" means that it works
	}{
		{"without CAP_SYS_ADMIN", without(unix.CAP_SYS_ADMIN), map[Op]string{
			OpCreateMap: "", OpLoadTC: "", OpLoadXDP: "", OpLoadTracing: "", OpPacketSocket: "",
			OpEnableStats: "CAP_SYS_ADMIN", OpListByID: "CAP_SYS_ADMIN", OpCreateNetNS: "CAP_SYS_ADMIN",
		}},
		{"without CAP_PERFMON", without(unix.CAP_SYS_ADMIN, unix.CAP_PERFMON), map[Op]string{
			OpCreateMap: "", OpLoadTC: "", OpLoadXDP: "CAP_PERFMON", OpLoadTracing: "CAP_PERFMON", OpLoadTrampoline: "CAP_PERFMON",
		}},
		{"without CAP_NET_ADMIN", without(unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN), map[Op]string{
			OpCreateMap: "", OpLoadTC: "CAP_NET_ADMIN", OpLoadXDP: "CAP_NET_ADMIN", OpLoadTracing: "",
		}},
		{"without CAP_NET_RAW", without(unix.CAP_NET_RAW), map[Op]string{OpPacketSocket: "CAP_NET_RAW", OpLoadTC: ""}},
		{"without any", nil, map[Op]string{
			OpCreateMap: "CAP_BPF", OpLoadTC: "CAP_BPF and CAP_NET_ADMIN", OpLoadTracing: "CAP_BPF and CAP_PERFMON",
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := with[map[Op]explained](t, "explain", test.keep...)
			for op, named := range test.want {
				checkExplained(t, op, got[op], named)
			}
		})
	}
}

func checkExplained(t *testing.T, op Op, got explained, named string) {
	t.Helper()
	switch {
	case named == "" && got.Kind != "none":
		t.Errorf("%s: got %s error %q, want none", op, got.Kind, got.Text)
	case named != "" && (got.Kind != "permission" || !strings.Contains(got.Text, "("+named+" ")):
		t.Errorf("%s: got %s error %q, want one that names %s", op, got.Kind, got.Text, named)
	}
}

// TestReportWithoutSysAdmin: what can't be found out is said to be so, and what
// works with fewer capabilities is found.
func TestReportWithoutSysAdmin(t *testing.T) {
	report := with[Report](t, "report", unix.CAP_BPF, unix.CAP_NET_ADMIN, unix.CAP_PERFMON)
	for name, want := range map[string]Status{
		"xdp": Available, "tc": Available, "cgroup_skb": Available, "tp_btf": Available, "map_percpu_hash": Available,
		"stats": NoPermission, "xdp_generic": NoPermission,
	} {
		if got, _ := report.Result(name); got.Status != want {
			t.Errorf("%s: got %s, want %s: %s", name, got.Status, want, text(got.Detail))
		}
	}
}

func TestSelfTestNamesTheMissingCapability(t *testing.T) {
	steps := with[[]Step](t, "selftest", unix.CAP_BPF, unix.CAP_NET_ADMIN, unix.CAP_PERFMON)
	if len(steps) != 1 || steps[0].OK || !strings.Contains(text(steps[0].Detail), "CAP_SYS_ADMIN is missing") {
		t.Errorf("got %+v", steps)
	}
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
