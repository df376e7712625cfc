package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
)

// Step is one step of the self test.
type Step struct {
	Name       string  `json:"name"`
	OK         bool    `json:"ok"`
	Skipped    bool    `json:"skipped"` // not ok because this kernel can't
	Mechanism  string  `json:"mechanism"`
	Detail     *string `json:"detail"`   // why it isn't ok, or what was seen
	Expected   *Moved  `json:"expected"` // by sockets; null: the step isn't about them, or had no answer
	Got        *Moved  `json:"got"`
	DurationMS float64 `json:"duration_ms"`
}

// Moved is what sockets sent and received, in calls of processes.
type Moved struct {
	TransmitBytes uint64 `json:"transmit_bytes"`
	ReceiveBytes  uint64 `json:"receive_bytes"`
}

// trial is one thing that the self test tries; run returns what was seen.
type trial struct {
	name      string
	mechanism string
	run       func(l *lab) (string, error)
}

var trials = []trial{
	{"xdp native", "bpf_link", (*lab).tryXDPNative},
	{"xdp generic", "bpf_link", (*lab).tryXDPGeneric},
	{"tc ingress", "tcx link", (*lab).tryTCX},
	{"tc ingress", "clsact filter", (*lab).tryClsact},
	{"cgroup_skb egress", "bpf_link", (*lab).tryCgroup},
	{"ring buffer", "ring buffer", (*lab).tryRingBuffer},
}

// SelfTest sends real packets through real programs and reads the counters
// back, each way of attaching for itself. It works in two network namespaces
// without names and in a cgroup of its own; nothing of it outlives the call.
// When ctx ends, the steps that are left aren't tried.
func SelfTest(ctx context.Context) []Step {
	steps := []Step{}
	started := time.Now()
	err := withLab(func(l *lab) error {
		steps = append(steps, newStep("namespaces", "veth", "two network namespaces joined by a veth pair", nil, started))
		for _, t := range trials {
			if ctx.Err() != nil {
				break
			}
			began := time.Now()
			seen, err := t.run(l)
			steps = append(steps, newStep(t.name, t.mechanism, seen, err, began))
		}
		return nil
	})
	if err != nil {
		steps = append(steps, newStep("namespaces", "veth", "", Explain(OpCreateNetNS, err), started))
	}
	return steps
}

func newStep(name, mechanism, seen string, err error, began time.Time) Step {
	if err != nil {
		seen = err.Error()
	}
	return Step{
		Name: name, OK: err == nil, Skipped: errors.Is(err, ErrNotSupported), Mechanism: mechanism, Detail: &seen,
		DurationMS: float64(time.Since(began).Microseconds()) / 1000,
	}
}

// The two ends of the lab, with addresses that are reserved for documentation.
const (
	senderName   = "sender"
	receiverName = "receiver"
	senderCIDR   = "192.0.2.1/30"
	receiverCIDR = "192.0.2.2/30"
)

var receiverAddress = unix.SockaddrInet4{Port: 9, Addr: [4]byte{192, 0, 2, 2}} // the discard port

// The packets of the self test are told from others, such as ARP, by length.
const (
	packets     = 10
	payloadSize = 77
	packetSize  = 20 + 8 + payloadSize // IPv4, UDP
	frameSize   = 14 + packetSize      // Ethernet
)

// lab is a pair of namespaces. The thread that runs the trials is in the
// receiver's; sender is a socket of the other one.
type lab struct {
	index  int // of the receiver's device
	sender netns.NsHandle
}

// withLab builds the lab, runs fn in the receiver's namespace and takes the lab
// down.
func withLab(fn func(*lab) error) error {
	return WithNetNS(func(receiver netns.NsHandle) error {
		sender, err := netns.New() // the thread is in it now
		if err != nil {
			return fmt.Errorf("create network namespace: %w", err)
		}
		defer sender.Close()
		if err := connectLab(receiver); err != nil {
			return err
		}
		if err := configure(senderName, senderCIDR); err != nil {
			return err
		}
		if err := netns.Set(receiver); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		if err := configure(receiverName, receiverCIDR); err != nil {
			return err
		}
		device, err := net.InterfaceByName(receiverName)
		if err != nil {
			return fmt.Errorf("find veth: %w", err)
		}
		return fn(&lab{index: device.Index, sender: sender})
	})
}

// connectLab makes a veth pair between the thread's namespace and receiver.
func connectLab(receiver netns.NsHandle) error {
	attributes := netlink.NewLinkAttrs()
	attributes.Name = senderName
	pair := &netlink.Veth{LinkAttrs: attributes, PeerName: receiverName, PeerNamespace: netlink.NsFd(int(receiver))}
	if err := netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("create veth: %w", err)
	}
	return nil
}

func configure(name, cidr string) error {
	device, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find veth: %w", err)
	}
	address, err := netlink.ParseAddr(cidr)
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(device, address); err != nil {
		return fmt.Errorf("set address: %w", err)
	}
	if err := netlink.LinkSetUp(device); err != nil {
		return fmt.Errorf("set veth up: %w", err)
	}
	return nil
}

// send sends the packets from the sender's namespace.
func (l *lab) send() error {
	return l.inSender(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open socket: %w", err)
		}
		defer unix.Close(fd)
		return sendPackets(fd)
	})
}

func sendPackets(fd int) error {
	for range packets {
		if err := unix.Sendto(fd, make([]byte, payloadSize), 0, &receiverAddress); err != nil {
			return fmt.Errorf("send packet: %w", err)
		}
	}
	return nil
}

// inSender runs fn in the sender's namespace and brings the thread back.
func (l *lab) inSender(fn func() error) (err error) {
	home, err := netns.Get()
	if err != nil {
		return fmt.Errorf("open own network namespace: %w", err)
	}
	defer home.Close()
	if err := netns.Set(l.sender); err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	defer func() { err = fault.Join(err, netns.Set(home)) }()
	return fn()
}
