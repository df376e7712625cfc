package probe

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
)

// arrival is how long packets may take from one end to the other.
const arrival = 2 * time.Second

func (l *lab) tryXDPNative() (string, error)  { return l.tryXDP(xdpNative) }
func (l *lab) tryXDPGeneric() (string, error) { return l.tryXDP(xdpGeneric) }

func (l *lab) tryXDP(flags uint32) (string, error) {
	spec := ebpf.ProgramSpec{Type: ebpf.XDP, AttachType: ebpf.AttachXDP}
	return withCounter(spec, xdpLength(frameSize), xdpPass, func(c *counting) (string, error) {
		return c.over(ebpf.AttachXDP, l.index, flags, l.send)
	})
}

func (l *lab) tryTCX() (string, error) {
	spec := ebpf.ProgramSpec{Type: ebpf.SchedCLS, AttachType: ebpf.AttachTCXIngress}
	return withCounter(spec, skbLength(frameSize), tcUnspecified, func(c *counting) (string, error) {
		return c.over(ebpf.AttachTCXIngress, l.index, 0, l.send)
	})
}

func (l *lab) tryClsact() (string, error) {
	return withCounter(ebpf.ProgramSpec{Type: ebpf.SchedCLS}, skbLength(frameSize), tcUnspecified, func(c *counting) (string, error) {
		if err := addFilter(l.index, c.program, netlink.HANDLE_MIN_INGRESS); err != nil {
			return "", err
		}
		return c.count(l.send)
	})
}

// tryCgroup moves this process into a cgroup for as long as it takes to open a
// socket, which then belongs to that cgroup.
func (l *lab) tryCgroup() (seen string, err error) {
	spec := ebpf.ProgramSpec{Type: ebpf.CGroupSKB, AttachType: ebpf.AttachCGroupInetEgress}
	return withCounter(spec, skbLength(packetSize), cgroupAllow, func(c *counting) (string, error) {
		err := withCgroup(func(dir *os.File) error {
			seen, err = c.over(ebpf.AttachCGroupInetEgress, int(dir.Fd()), 0, func() error { return l.sendFrom(dir.Name()) })
			return err
		})
		return seen, err
	})
}

func (l *lab) sendFrom(cgroup string) error {
	return l.inSender(func() error {
		fd, err := socketIn(cgroup)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return sendPackets(fd)
	})
}

// socketIn opens a socket that belongs to a cgroup.
func socketIn(cgroup string) (fd int, err error) {
	home, err := ownCgroup()
	if err != nil {
		return -1, err
	}
	if err := enterCgroup(cgroup); err != nil {
		return -1, err
	}
	defer func() { err = fault.Join(err, enterCgroup(home)) }()
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open socket: %w", err)
	}
	return fd, nil
}

func enterCgroup(dir string) error {
	err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
	if err != nil {
		return fmt.Errorf("enter cgroup: %w", err)
	}
	return nil
}

// ownCgroup returns the cgroup2 directory that this process is in.
func ownCgroup() (string, error) {
	mount, err := Cgroup2Mount()
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", fmt.Errorf("find own cgroup: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			return filepath.Join(mount, path), nil
		}
	}
	return "", errors.New("find own cgroup: not in a cgroup2 hierarchy")
}

// tryRingBuffer has an XDP program report each packet's length.
func (l *lab) tryRingBuffer() (string, error) {
	events, err := newMap(ringBuf)
	if err != nil {
		return "", err
	}
	defer events.Close()
	reader, err := ringbuf.NewReader(events)
	if err != nil {
		return "", fmt.Errorf("open ring buffer: %w", err)
	}
	defer reader.Close()

	spec := ebpf.ProgramSpec{Type: ebpf.XDP, AttachType: ebpf.AttachXDP}
	spec.Instructions = body(xdpLength(frameSize), emit(events), xdpPass)
	program, err := loadProgram(&spec)
	if err != nil {
		return "", err
	}
	defer program.Close()
	link, err := createLink(program, l.index, ebpf.AttachXDP, xdpGeneric)
	if err != nil {
		return "", err
	}
	defer unix.Close(link)
	if err := l.send(); err != nil {
		return "", err
	}
	return readEvents(reader)
}

func readEvents(reader *ringbuf.Reader) (string, error) {
	reader.SetDeadline(time.Now().Add(arrival))
	for n := range packets {
		if _, err := reader.Read(); err != nil {
			return "", fmt.Errorf("%d of %d events arrived: %w", n, packets, err)
		}
	}
	return fmt.Sprintf("%d of %d events read", packets, packets), nil
}

// counting is a loaded program that counts the packets of the self test.
type counting struct {
	program *ebpf.Program
	counter *ebpf.Map
}

// withCounter loads a program that counts packets of a certain length and lets
// everything through.
func withCounter(spec ebpf.ProgramSpec, match asm.Instructions, verdict int32, fn func(*counting) (string, error)) (string, error) {
	counter, err := newMap(words(ebpf.Array))
	if err != nil {
		return "", err
	}
	defer counter.Close()
	spec.Instructions = body(match, increment(counter), verdict)
	program, err := loadProgram(&spec)
	if err != nil {
		return "", err
	}
	defer program.Close()
	return fn(&counting{program, counter})
}

// over counts what send sends while the program is attached by link.
func (c *counting) over(attach ebpf.AttachType, target int, flags uint32, send func() error) (string, error) {
	link, err := createLink(c.program, target, attach, flags)
	if err != nil {
		return "", err
	}
	defer unix.Close(link)
	return c.count(send)
}

// count sends and waits until the program has seen everything.
func (c *counting) count(send func() error) (string, error) {
	if err := send(); err != nil {
		return "", err
	}
	var seen uint64
	for deadline := time.Now().Add(arrival); ; time.Sleep(time.Millisecond) {
		if err := c.counter.Lookup(uint32(0), &seen); err != nil {
			return "", fmt.Errorf("read counter: %w", err)
		}
		if seen == packets {
			return fmt.Sprintf("%d of %d packets counted", seen, packets), nil
		}
		if time.Now().After(deadline) {
			return "", fmt.Errorf("%d of %d packets counted", seen, packets)
		}
	}
}

const end = "end"

// body is a program: unless match jumps to the end, action is done; the verdict
// is the same either way.
func body(match, action asm.Instructions, verdict int32) asm.Instructions {
	program := append(asm.Instructions{}, match...)
	program = append(program, action...)
	return append(program, asm.Mov.Imm(asm.R0, verdict).WithSymbol(end), asm.Return())
}

// xdpLength matches frames of that length; R1 is struct xdp_md.
func xdpLength(length int32) asm.Instructions {
	return asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, 4, asm.Word), // data_end
		asm.LoadMem(asm.R3, asm.R1, 0, asm.Word), // data
		asm.Sub.Reg(asm.R2, asm.R3),
		asm.JNE.Imm(asm.R2, length, end),
	}
}

// skbLength matches packets of that length; R1 is struct __sk_buff.
func skbLength(length int32) asm.Instructions {
	return asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, 0, asm.Word), // len
		asm.JNE.Imm(asm.R2, length, end),
	}
}

// increment adds one to the first entry of an array.
func increment(array *ebpf.Map) asm.Instructions {
	return asm.Instructions{
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.LoadMapPtr(asm.R1, array.FD()),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, end),
		asm.Mov.Imm(asm.R1, 1),
		asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
	}
}

// emit puts 8 bytes into a ring buffer.
func emit(events *ebpf.Map) asm.Instructions {
	return asm.Instructions{
		asm.Mov.Imm(asm.R2, 1),
		asm.StoreMem(asm.RFP, -8, asm.R2, asm.DWord),
		asm.LoadMapPtr(asm.R1, events.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -8),
		asm.Mov.Imm(asm.R3, 8),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnRingbufOutput.Call(),
	}
}
