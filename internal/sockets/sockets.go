// Package sockets says whose the sockets of packets are: which process has sent one,
// or would get it. The kernel finds the socket (sock_diag), and /proc who has it open.
// The answer is exact or there is none: none where several sockets fit, where not
// every process can be looked into, and where it would take too long.
package sockets

import (
	"cmp"
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"bpfnet/internal/endpoint"
	"bpfnet/internal/fault"
)

// API finds the processes of packets.
type API interface {
	// Find says whose the sockets of packets are. It takes no longer than packets
	// may wait for that, and looks for nothing when it is asked too often. What it
	// found is valid also with an error, which says why it couldn't look for some.
	Find(packets []Packet) (Answer, error)
}

// Packet is a packet, and where a program saw it.
type Packet struct {
	Time                time.Time
	Protocol            uint8 // of IP
	Source, Destination netip.AddrPort
	Ingress             bool   // of the interface, or of the cgroup's processes
	IfIndex             uint32 // 0: not known
	NetNS               uint64 // inode of the namespace that the interface is in; 0: the host's
	AtCgroup            bool   // it was seen in CgroupID, not at the interface
	CgroupID            uint64 // of the socket; 0: not known
}

// Process is who has a socket open: of several the one with the lowest pid.
type Process struct {
	endpoint.Process
	Owners int // how many have it open
}

// Answer has the process of each packet, nil where it isn't known.
type Answer struct {
	Processes []*Process
	Missed    int // packets for whose process there was no time to look
}

const (
	// longest is how long a look may take.
	longest = 20 * time.Millisecond
	// share is the part of the time that looks may take in the long run: 1/share.
	share = 10
	// fresh is the age up to which a port alone tells the socket of a packet: later
	// another process may have it.
	fresh = time.Second
	// remembered is how long it is known who has a socket open.
	remembered = time.Second
	// relook is the time between two looks behind interfaces.
	relook = 200 * time.Millisecond
)

// errLate is the error of packets for whose process there was no time to look.
var errLate = endpoint.ErrLate

// Finder implements API on this machine's kernel, for one goroutine.
type Finder struct {
	path     string // of the network namespace that interfaces are in, "" for the caller's
	boot     time.Time
	networks endpoint.Networks
	read     time.Time             // when
	reading  chan networksRead     // gets those that are being read; nil: none are
	entrance map[uint64]int        // a process in a network namespace
	holdings map[identity]*holding // who has sockets open
	credit   time.Duration         // that looks may take now
	credited time.Time
}

// NewFinder returns an API for interfaces in the network namespace at a path, "" for
// the caller's. ErrPermission in a pid namespace, where pids are others.
func NewFinder(path string) (*Finder, error) {
	var stat unix.Stat_t
	if err := unix.Stat("/proc/self/ns/pid", &stat); err != nil || stat.Ino != endpoint.InitPIDNamespace {
		return nil, fault.New(fault.ErrPermission, "find processes: those of other pid namespaces aren't in /proc")
	}
	f := &Finder{
		path: path, entrance: map[uint64]int{}, holdings: map[identity]*holding{}, credit: longest, credited: time.Now(),
	}
	var err error
	if f.boot, err = endpoint.BootTime(); err != nil {
		return nil, err
	}
	f.networks, err = endpoint.ReadNetworks(path)
	f.read = time.Now()
	return f, err
}

type networksRead struct {
	endpoint.Networks
	err error
}

// look is one call of Find.
type look struct {
	*Finder
	packets []Packet
	until   time.Time
	found   [][]socket // of each packet
	failed  []error    // of each packet
}

// Find implements API.
func (f *Finder) Find(packets []Packet) (Answer, error) {
	began := time.Now()
	l := &look{f, packets, began.Add(longest), make([][]socket, len(packets)), make([]error, len(packets))}
	f.credit, f.credited = min(f.credit+began.Sub(f.credited)/share, longest), began
	processes := make([]*Process, len(packets))
	if f.credit > 0 {
		l.ask()
		l.name(processes)
		f.credit -= time.Since(began)
	} else {
		l.fail(errLate)
	}
	a := Answer{Processes: processes}
	var failed error
	for _, err := range l.failed {
		if errors.Is(err, errLate) {
			a.Missed++
		} else {
			failed = cmp.Or(failed, err)
		}
	}
	return a, failed
}

// fail makes an error that of all packets.
func (l *look) fail(err error) {
	for i, p := range l.packets {
		if p.hasSocket() {
			l.failed[i] = err
		}
	}
}

// late says whether the look has taken as long as it may.
func (l *look) late() bool { return time.Now().After(l.until) }

// hasSocket says whether sockets of the packet's protocol can be asked for.
func (p Packet) hasSocket() bool {
	return (p.Protocol == unix.IPPROTO_TCP || p.Protocol == unix.IPPROTO_UDP) && p.Source.Port() != 0 && p.Destination.Port() != 0
}
