package probe

import (
	"errors"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
)

// Op is a kind of operation that the kernel can refuse with EPERM or EACCES.
// Its text is what error messages call it.
type Op string

// The operations, grouped by what they need.
const (
	OpCreateMap      Op = "create a map"
	OpOpenPin        Op = "open a pinned object"
	OpPin            Op = "pin into bpffs"
	OpLoadTC         Op = "load a tc program"
	OpLoadCgroup     Op = "load a cgroup program"
	OpLoadXDP        Op = "load an XDP program"
	OpLoadTracing    Op = "load a tracing program"
	OpLoadTrampoline Op = "load an fentry or LSM program"
	OpAttachXDP      Op = "attach an XDP program"
	OpAttachTCX      Op = "attach a tc program by TCX link"
	OpAttachClsact   Op = "attach a tc program as a clsact filter"
	OpAttachCgroup   Op = "attach a cgroup program"
	OpAttachTracing  Op = "attach a tracing program"
	OpAttachPerf     Op = "attach a kprobe or tracepoint program"
	OpAttachUprobe   Op = "attach a uprobe program"
	OpPerfBuffer     Op = "open a perf buffer"
	OpUpdateLink     Op = "replace the program of a link"
	OpQueryHook      Op = "query the programs of a hook"
	OpTestRun        Op = "run a program on a test packet"
	OpListByID       Op = "look kernel objects up by id"
	OpEnableStats    Op = "enable program statistics"
	OpEnterNetNS     Op = "enter a network namespace"
	OpCreateNetNS    Op = "create a network namespace"
	OpMount          Op = "mount bpffs"
	OpPacketSocket   Op = "open a packet socket"
)

// opNeeds says which capabilities the kernel asks for; measured, not read.
func opNeeds(op Op) []Capability {
	return map[Op][]Capability{
		OpCreateMap:      {CapBPF},
		OpOpenPin:        {CapBPF},
		OpPin:            {CapBPF},
		OpLoadTC:         {CapBPF, CapNetAdmin},
		OpLoadCgroup:     {CapBPF, CapNetAdmin},
		OpLoadXDP:        {CapBPF, CapNetAdmin},
		OpLoadTracing:    {CapBPF, CapPerfmon},
		OpLoadTrampoline: {CapBPF, CapPerfmon},
		OpAttachXDP:      {CapBPF, CapNetAdmin},
		OpAttachTCX:      {CapBPF, CapNetAdmin},
		OpAttachClsact:   {CapNetAdmin},
		OpAttachCgroup:   {CapBPF, CapNetAdmin},
		OpAttachTracing:  {CapBPF, CapPerfmon},
		OpAttachPerf:     {CapBPF, CapPerfmon},
		OpAttachUprobe:   {CapBPF, CapSysAdmin},
		OpPerfBuffer:     {CapBPF, CapPerfmon},
		OpUpdateLink:     {CapBPF},
		OpQueryHook:      {CapBPF, CapNetAdmin},
		OpTestRun:        {CapBPF, CapNetAdmin},
		OpListByID:       {CapSysAdmin},
		OpEnableStats:    {CapSysAdmin},
		OpEnterNetNS:     {CapSysAdmin},
		OpCreateNetNS:    {CapSysAdmin},
		OpMount:          {CapSysAdmin},
		OpPacketSocket:   {CapNetRaw},
	}[op]
}

// Needs returns the capabilities that op needs on this machine.
func Needs(op Op) []Capability {
	if (op == OpAttachPerf || op == OpPerfBuffer) && perfRestricted() {
		return []Capability{CapBPF, CapSysAdmin}
	}
	return opNeeds(op)
}

// Explain turns a refusal of op by the kernel into an error that says why:
// ErrPermission naming the missing capability, ErrConflict when another program
// owns the cgroup hook, ErrUnsupported when no capability is missing, so that
// the kernel itself forbids it or doesn't have it. Other errors come back as they are, a program
// that the verifier rejected among them. It must be called on the thread that
// was refused, or one with the same capabilities.
func Explain(op Op, err error) error {
	if errors.Is(err, ebpf.ErrNotSupported) {
		return explainMissing(op, err)
	}
	if err == nil || !isDenied(err) {
		return err
	}
	var rejected *ebpf.VerifierError
	if errors.As(err, &rejected) && len(rejected.Log) > 0 {
		return explainVerifier(op, rejected, err)
	}
	if lacking := missing(Needs(op)); len(lacking) > 0 {
		return lacks(op, lacking, err)
	}
	return explainForbidden(op, err)
}

// explainMissing is for what the kernel doesn't have. Programs on typed
// tracepoints and functions need the kernel's BTF, which no version promises.
func explainMissing(op Op, err error) error {
	e := fault.New(fault.ErrUnsupported, "%s: %w", op, err)
	if _, statErr := os.Stat(kernelBTF); os.IsNotExist(statErr) && (op == OpLoadTracing || op == OpLoadTrampoline) {
		return e.Hint("there is no %s: the kernel was built without CONFIG_DEBUG_INFO_BTF", kernelBTF)
	}
	return e
}

// explainVerifier handles programs that only privileged users may load: without
// CAP_PERFMON the verifier refuses arithmetic on and comparison of pointers.
func explainVerifier(op Op, rejected *ebpf.VerifierError, err error) error {
	if len(missing([]Capability{CapPerfmon})) == 0 {
		return err
	}
	for _, line := range rejected.Log {
		if strings.Contains(line, "prohibited") || strings.Contains(line, "not allowed for !root") || strings.Contains(line, "leaks addr") {
			return lacks(op, []Capability{CapPerfmon}, err)
		}
	}
	return err
}

func lacks(op Op, lacking []Capability, err error) error {
	e := fault.New(fault.ErrPermission, "%s: %w (%s)", op, rootCause(err), areMissing(lacking))
	e.Cause = err
	return e.Hint("run as root, or give the process %s", joinCapabilities(lacking))
}

// explainForbidden is for refusals although every capability is there.
func explainForbidden(op Op, err error) error {
	var e *fault.Error
	switch {
	case inUserNamespace():
		e = fault.New(fault.ErrPermission, "%s: %w (capabilities of a user namespace don't count)", op, rootCause(err)).
			Hint("run in the host's user namespace")
	case op == OpAttachCgroup && errors.Is(err, unix.EPERM):
		e = fault.New(fault.ErrConflict, "%s: %w (another program was attached there without leave to share the hook)", op, rootCause(err)).
			Hint("bpftool cgroup tree   lists who is attached; on this cgroup or one above")
	case errors.Is(err, unix.EACCES) && (op == OpPin || op == OpOpenPin || op == OpAttachCgroup):
		e = fault.New(fault.ErrPermission, "%s: %w (file permissions)", op, rootCause(err))
	case lowMemlock(op):
		e = fault.New(fault.ErrPermission, "%s: %w (RLIMIT_MEMLOCK is %s)", op, rootCause(err), memlockText()).
			Hint("ulimit -l unlimited   (or LimitMEMLOCK=infinity in a systemd service): kernels before memory cgroup accounting of BPF charge maps to it")
	default:
		e = fault.New(fault.ErrUnsupported, "%s: %w although no capability is missing: the kernel forbids it", op, rootCause(err)).
			Hint("hardened and locked-down kernels do this")
	}
	e.Cause = err
	if underSeccomp() {
		e = e.Hint("a system call filter (seccomp) is in force; a container may need --security-opt seccomp=unconfined")
	}
	return e
}

// rootCause returns the bare errno: libraries add guesses to it that are
// mostly wrong.
func rootCause(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}
