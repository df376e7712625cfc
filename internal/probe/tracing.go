package probe

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// What probes attach to for an instant: things that happen seldom, so that
// nothing is slowed down.
const (
	quietTracepoint = "inet_sock_set_state"
	quietFunction   = "tcp_set_state"
	quietLSMHook    = "socket_listen"
)

func probeTpBTF(string) error {
	return attachesTyped(ebpf.ProgramSpec{Type: ebpf.Tracing, AttachType: ebpf.AttachTraceRawTp, AttachTo: quietTracepoint})
}

// probeSockLength tries the tracepoint that tells how many bytes a send call
// took.
func probeSockLength(string) error {
	return attachesTyped(ebpf.ProgramSpec{Type: ebpf.Tracing, AttachType: ebpf.AttachTraceRawTp, AttachTo: "sock_send_length"})
}

func probeFentry(string) error {
	return attachesTyped(ebpf.ProgramSpec{Type: ebpf.Tracing, AttachType: ebpf.AttachTraceFEntry, AttachTo: quietFunction})
}

// probeLSM also wants "bpf" among the active security modules: without it some
// kernels attach the program and never run it.
func probeLSM(string) error {
	err := attachesTyped(ebpf.ProgramSpec{Type: ebpf.LSM, AttachType: ebpf.AttachLSMMac, AttachTo: quietLSMHook})
	if active := activeLSMs(); err == nil && active != nil && !slices.Contains(active, "bpf") {
		return fmt.Errorf(`"bpf" isn't among the active security modules (lsm=%s): %w`, strings.Join(active, ","), ErrNotSupported)
	}
	return err
}

// attachesTyped loads and attaches a program whose target is fixed at load time.
func attachesTyped(spec ebpf.ProgramSpec) error {
	program, err := load(spec, 0)
	if err != nil {
		return err
	}
	defer program.Close()
	return closeAfter(openTracepoint(program, ""))
}

func probeRawTP(string) error {
	program, err := load(ebpf.ProgramSpec{Type: ebpf.RawTracepoint}, 0)
	if err != nil {
		return err
	}
	defer program.Close()
	return closeAfter(openTracepoint(program, quietTracepoint))
}

func probeIterators(string) error {
	program, err := load(ebpf.ProgramSpec{Type: ebpf.Tracing, AttachType: ebpf.AttachTraceIter, AttachTo: "task"}, 0)
	if err != nil {
		return err
	}
	defer program.Close()
	link, err := createLink(program, 0, ebpf.AttachTraceIter, 0)
	if err != nil {
		return err
	}
	defer unix.Close(link)
	return closeAfter(createIterator(link))
}

func probeTracepoint(string) error {
	id, err := tracepointID()
	if err != nil {
		return err
	}
	return attachesPerf(ebpf.TracePoint, &unix.PerfEventAttr{Type: unix.PERF_TYPE_TRACEPOINT, Config: id})
}

func tracepointID() (uint64, error) {
	text, err := readFilesystem("tracefs", "/sys/kernel/tracing", "events/sock/"+quietTracepoint+"/id")
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return 0, fmt.Errorf("%w: %w", ErrNotSupported, err)
	}
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(text), 10, 64)
}

func probeKprobe(string) error {
	kind, err := perfUnit("kprobe")
	if err != nil {
		return err
	}
	return attachesAt(kind, quietFunction, 0)
}

// probeUprobe puts the probe into a file that exists in memory only and that
// nobody runs.
func probeUprobe(string) error {
	kind, err := perfUnit("uprobe")
	if err != nil {
		return err
	}
	fd, err := unix.MemfdCreate("bpfnet-probe", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("create file in memory: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, 4096); err != nil {
		return fmt.Errorf("size file in memory: %w", err)
	}
	return attachesAt(kind, fmt.Sprintf("/proc/self/fd/%d", fd), 0)
}

// perfUnit returns the type number of a kind of perf event.
func perfUnit(name string) (uint32, error) {
	text, err := os.ReadFile("/sys/bus/event_source/devices/" + name + "/type")
	if errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("no %s events: %w", name, ErrNotSupported)
	}
	if err != nil {
		return 0, fmt.Errorf("find %s events: %w", name, err)
	}
	kind, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32)
	return uint32(kind), err
}

// attachesAt attaches to an offset in a function of the kernel or in a file.
func attachesAt(kind uint32, where string, offset uint64) error {
	name := append([]byte(where), 0)
	var pinner runtime.Pinner
	defer pinner.Unpin()
	pinner.Pin(&name[0])
	return attachesPerf(ebpf.Kprobe, &unix.PerfEventAttr{
		Type: kind,
		Ext1: uint64(uintptr(unsafe.Pointer(&name[0]))),
		Ext2: offset,
	})
}

func attachesPerf(kind ebpf.ProgramType, event *unix.PerfEventAttr) error {
	program, err := load(ebpf.ProgramSpec{Type: kind}, 0)
	if err != nil {
		return err
	}
	defer program.Close()
	fd, err := openPerfEvent(event)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.IoctlSetInt(fd, unix.PERF_EVENT_IOC_SET_BPF, program.FD()); err != nil {
		return fmt.Errorf("attach to perf event: %w", err)
	}
	return nil
}

// openPerfEvent opens an event of all processes on the first processor.
func openPerfEvent(event *unix.PerfEventAttr) (int, error) {
	event.Size = uint32(unsafe.Sizeof(*event))
	fd, err := unix.PerfEventOpen(event, -1, 0, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		return -1, unknownToKernel(fmt.Errorf("open perf event: %w", err))
	}
	return fd, nil
}

// probeKprobeMulti attaches one program to a list of one function.
func probeKprobeMulti(string) error {
	program, err := load(ebpf.ProgramSpec{Type: ebpf.Kprobe, AttachType: ebpf.AttachTraceKprobeMulti}, 0)
	if err != nil {
		return err
	}
	defer program.Close()
	name := bytes.Clone([]byte(quietFunction + "\x00"))
	list := []uintptr{uintptr(unsafe.Pointer(&name[0]))}
	var pinner runtime.Pinner
	defer pinner.Unpin()
	pinner.Pin(&name[0])
	pinner.Pin(&list[0])

	var a attributes
	a.put32(0, uint32(program.FD()))
	a.put32(8, uint32(ebpf.AttachTraceKprobeMulti))
	a.put32(20, uint32(len(list)))
	a.put64(24, uint64(uintptr(unsafe.Pointer(&list[0]))))
	fd, err := call(cmdLinkCreate, &a, 48)
	if err != nil {
		return unknownToKernel(fmt.Errorf("create link: %w", err))
	}
	return unix.Close(fd)
}
