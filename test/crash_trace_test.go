package test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"bpfnet/internal/bpfsys"
)

// call is a system call that changed something.
type call struct {
	name    string
	lasting bool // what it made doesn't die with the process
}

// trail is what a command did while it was watched.
type trail struct {
	calls   []call   // in order, those that succeeded
	objects []object // made by it
	killed  bool
	code    int
	output  string // stdout and stderr
}

// moment says whether a command is to be killed right after the last of the
// calls that changed something, over all its threads.
type moment func(calls []call) bool

func never([]call) bool { return false }

// after is the moment after some number of calls.
func after(count int) moment { return func(calls []call) bool { return len(calls) == count } }

// afterAny is the moment after the first call whose name begins so.
func afterAny(name string) moment {
	return func(calls []call) bool { return strings.HasPrefix(calls[len(calls)-1].name, name) }
}

// trace runs a command and kills it at a moment.
func trace(t *testing.T, cmd *exec.Cmd, kill moment) trail {
	t.Helper()
	out, err := os.CreateTemp(t.TempDir(), "output")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	tr := tracer{kill: kill, entered: map[int]syscallInfo{}}
	done := make(chan error)
	go func() { // only the thread that starts a process may trace it
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		done <- tr.run(cmd)
	}()
	if err := <-done; err != nil {
		t.Fatalf("trace %q: %v", cmd.Args, err)
	}
	text, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	tr.output = string(text)
	return tr.trail
}

type tracer struct {
	trail
	pid     int
	kill    moment
	entered map[int]syscallInfo // by thread
}

// syscallInfo is the kernel's struct ptrace_syscall_info. On entry data is the
// number and the arguments, on exit the result and, in the lowest byte of the
// second word, whether that is an error.
type syscallInfo struct {
	op     uint8
	_      [3]uint8
	arch   uint32
	ip, sp uint64
	data   [8]uint64
}

const (
	onEntry = 1
	onExit  = 2

	syscallStop = unix.SIGTRAP | 0x80 // of PTRACE_O_TRACESYSGOOD
)

func (tr *tracer) run(cmd *exec.Cmd) error {
	if err := cmd.Start(); err != nil {
		return err
	}
	tr.pid = cmd.Process.Pid
	defer func() { _ = cmd.Process.Release() }() // next reaps it
	var status unix.WaitStatus
	if _, err := unix.Wait4(tr.pid, &status, unix.WALL, nil); err != nil {
		return err
	}
	if err := unix.PtraceSetOptions(tr.pid, unix.PTRACE_O_TRACESYSGOOD|unix.PTRACE_O_TRACECLONE|unix.PTRACE_O_EXITKILL); err != nil {
		return err
	}
	for tid, signal := tr.pid, 0; ; {
		if err := unix.PtraceSyscall(tid, signal); err != nil && err != unix.ESRCH { // a thread may be dead
			return err
		}
		var err error
		if tid, signal, err = tr.next(); err != nil || tid == 0 {
			return err
		}
	}
}

// next waits until a thread stops and says which, and the signal that it is to
// get when it goes on; thread 0 says that the process has ended.
func (tr *tracer) next() (tid, signal int, err error) {
	for {
		var status unix.WaitStatus
		tid, err = unix.Wait4(-1, &status, unix.WALL|unix.WNOTHREAD, nil)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, 0, err
		case !status.Stopped():
			if tid == tr.pid {
				tr.code = status.ExitStatus()
				return 0, 0, nil
			}
			continue
		case status.StopSignal() == syscallStop:
			return tid, 0, tr.syscall(tid)
		case status.StopSignal() == unix.SIGTRAP, status.StopSignal() == unix.SIGSTOP: // a new thread
			return tid, 0, nil
		default:
			return tid, int(status.StopSignal()), nil
		}
	}
}

func (tr *tracer) syscall(tid int) error {
	var info syscallInfo
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO, uintptr(tid), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0)
	if errno == unix.ESRCH {
		return nil // killed
	} else if errno != 0 {
		return fmt.Errorf("read system call: %w", errno)
	}
	switch {
	case info.op == onEntry:
		tr.entered[tid] = info
	case info.op == onExit && info.data[1]&0xff == 0 && !tr.killed:
		return tr.succeeded(tr.entered[tid].data, info.data[0])
	}
	return nil
}

// succeeded notes a system call that did what it was to do.
func (tr *tracer) succeeded(entry [8]uint64, result uint64) error {
	c, ok := tr.change(int(entry[0]), entry[1:])
	if !ok {
		return nil
	}
	tr.calls = append(tr.calls, c)
	if o, ok := madeObject(c, tr.pid, int(result)); ok {
		tr.objects = append(tr.objects, o)
	}
	if tr.kill(tr.calls) {
		tr.killed = true
		return unix.Kill(tr.pid, unix.SIGKILL)
	}
	return nil
}

// changing are the system calls that change something whatever their arguments.
var changing = map[int]string{
	unix.SYS_MKDIRAT: "mkdirat", unix.SYS_RENAMEAT: "renameat", unix.SYS_RENAMEAT2: "renameat2", unix.SYS_SYMLINKAT: "symlinkat",
	unix.SYS_LINKAT: "linkat", unix.SYS_UNLINKAT: "unlinkat", unix.SYS_MOUNT: "mount", unix.SYS_FCHMODAT: "fchmodat",
	unix.SYS_SENDMSG: "sendmsg", unix.SYS_SETSOCKOPT: "setsockopt",
}

// changingBPF are the commands of bpf(2) that change something.
var changingBPF = map[int]call{
	unix.BPF_MAP_CREATE: {"BPF_MAP_CREATE", false}, unix.BPF_PROG_LOAD: {"BPF_PROG_LOAD", false}, unix.BPF_BTF_LOAD: {"BPF_BTF_LOAD", false},
	unix.BPF_LINK_CREATE: {"BPF_LINK_CREATE", false}, unix.BPF_RAW_TRACEPOINT_OPEN: {"BPF_RAW_TRACEPOINT_OPEN", false},
	unix.BPF_OBJ_PIN: {"BPF_OBJ_PIN", true}, unix.BPF_MAP_UPDATE_ELEM: {"BPF_MAP_UPDATE_ELEM", true}, unix.BPF_MAP_DELETE_ELEM: {"BPF_MAP_DELETE_ELEM", true},
	unix.BPF_MAP_LOOKUP_AND_DELETE_ELEM: {"BPF_MAP_LOOKUP_AND_DELETE_ELEM", true}, unix.BPF_MAP_LOOKUP_AND_DELETE_BATCH: {"BPF_MAP_LOOKUP_AND_DELETE_BATCH", true},
	unix.BPF_MAP_UPDATE_BATCH: {"BPF_MAP_UPDATE_BATCH", true}, unix.BPF_MAP_DELETE_BATCH: {"BPF_MAP_DELETE_BATCH", true}, unix.BPF_MAP_FREEZE: {"BPF_MAP_FREEZE", true},
	unix.BPF_PROG_ATTACH: {"BPF_PROG_ATTACH", true}, unix.BPF_PROG_DETACH: {"BPF_PROG_DETACH", true},
	unix.BPF_LINK_UPDATE: {"BPF_LINK_UPDATE", true}, unix.BPF_LINK_DETACH: {"BPF_LINK_DETACH", true},
}

// changingPerf are the commands of ioctl(2) that attach to a perf event.
var changingPerf = map[uint64]string{
	unix.PERF_EVENT_IOC_SET_BPF: "PERF_EVENT_IOC_SET_BPF", unix.PERF_EVENT_IOC_ENABLE: "PERF_EVENT_IOC_ENABLE",
}

// change says whether a system call is one that changes something.
func (tr *tracer) change(number int, args []uint64) (call, bool) {
	switch number {
	case unix.SYS_BPF:
		c, ok := changingBPF[int(args[0])]
		return c, ok
	case unix.SYS_PERF_EVENT_OPEN:
		return call{"perf_event_open", false}, true
	case unix.SYS_IOCTL:
		name, ok := changingPerf[args[1]]
		return call{name, false}, ok
	case unix.SYS_SENDTO:
		kind := tr.netlinkType(args[1])
		return call{netlinkCall(kind), true}, kind >= unix.RTM_BASE && kind%4 != 2 // RTM_GET…
	default:
		name, ok := changing[number]
		return call{name, true}, ok
	}
}

// netlinkCall names a call that sends a netlink message of a type.
func netlinkCall(kind uint16) string { return fmt.Sprintf("netlink %d", kind) }

// netlinkType reads the type of the netlink message at an address.
func (tr *tracer) netlinkType(address uint64) uint16 {
	var header unix.NlMsghdr
	local := []unix.Iovec{{Base: (*byte)(unsafe.Pointer(&header)), Len: unix.SizeofNlMsghdr}}
	remote := []unix.RemoteIovec{{Base: uintptr(address), Len: unix.SizeofNlMsghdr}}
	if _, err := unix.ProcessVMReadv(tr.pid, local, remote, 0); err != nil {
		return 0
	}
	return header.Type
}

// object is a map, program or link in the kernel.
type object struct {
	kind string // as in /proc/PID/fdinfo
	id   uint32
}

var objectKinds = map[string]bpfsys.Kind{"map_id": bpfsys.Maps, "prog_id": bpfsys.Programs, "link_id": bpfsys.Links}

// exists says whether the kernel has the object still.
func (o object) exists() bool {
	fd, err := objectKinds[o.kind].Open(o.id)
	if err == nil {
		unix.Close(fd)
	}
	return !errors.Is(err, unix.ENOENT)
}

// madeObject finds out which object a process has just made.
func madeObject(c call, pid, fd int) (object, bool) {
	kinds := map[string]string{
		"BPF_MAP_CREATE": "map_id", "BPF_PROG_LOAD": "prog_id", "BPF_LINK_CREATE": "link_id", "BPF_RAW_TRACEPOINT_OPEN": "link_id",
	}
	kind := kinds[c.name]
	info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", pid, fd))
	if kind == "" || err != nil {
		return object{}, false
	}
	for line := range bytes.Lines(info) {
		if number, ok := strings.CutPrefix(string(line), kind+":"); ok {
			id, err := strconv.ParseUint(strings.TrimSpace(number), 10, 32)
			return object{kind, uint32(id)}, err == nil
		}
	}
	return object{}, false
}

// TestTrace checks the harness itself: it sees what loading does, in order, and
// kills where it is told to.
func TestTrace(t *testing.T) {
	n := newNode(t)
	whole := trace(t, n.bpfnet("load", "xdp-counter"), never)
	if whole.killed || whole.code != 0 || len(whole.objects) == 0 {
		t.Fatalf("%+v", whole)
	}
	last := whole.calls[len(whole.calls)-1].name
	if !slices.Contains(whole.calls, call{"BPF_OBJ_PIN", true}) || !strings.HasPrefix(last, "renameat") {
		t.Errorf("calls %v", whole.calls)
	}
	n.must(t, "unload", "xdp-counter")
	almost := trace(t, n.bpfnet("load", "xdp-counter"), after(len(whole.calls)-1))
	if !almost.killed || !slices.Equal(almost.calls, whole.calls[:len(whole.calls)-1]) {
		t.Errorf("killed: %+v", almost)
	}
}
