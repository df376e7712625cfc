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
	longest = 50 * time.Millisecond
	// share is the part of the time that looks may take in the long run: 1/share.
	share = 10
	// mostCredit is how long they may take when there were none for a while.
	mostCredit = 4 * longest
	// fresh is the age up to which a port alone tells the socket of a packet: later
	// another process may have it.
	fresh = time.Second
	// remembered is how long it is known who has a socket open.
	remembered = time.Second
	// attempts is how often a socket is asked for that no process has: meanwhile a
	// connection may have been accepted, and its listener closed.
	attempts = 2
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
	longest  time.Duration
	credit   time.Duration // that looks may take now
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
		path: path, entrance: map[uint64]int{}, holdings: map[identity]*holding{}, longest: longest, credit: mostCredit, credited: time.Now(),
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
	waited  time.Duration
}

// Find implements API.
func (f *Finder) Find(packets []Packet) (Answer, error) {
	began := time.Now()
	l := &look{Finder: f, packets: packets, until: began.Add(f.longest), found: make([][]socket, len(packets)), failed: make([]error, len(packets))}
	f.credit, f.credited = min(f.credit+began.Sub(f.credited)/share, mostCredit), began
	processes := make([]*Process, len(packets))
	if f.credit > 0 {
		numbers := l.askable()
		for range attempts {
			l.ask(numbers)
			numbers = l.name(numbers, processes)
		}
		f.credit -= time.Since(began) - l.waited
	} else {
		for _, i := range l.askable() {
			l.failed[i] = errLate
		}
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

// askable lists the numbers of the packets whose sockets can be asked for.
func (l *look) askable() (numbers []int) {
	for i, p := range l.packets {
		if (p.Protocol == unix.IPPROTO_TCP || p.Protocol == unix.IPPROTO_UDP) && p.Source.Port() != 0 && p.Destination.Port() != 0 {
			numbers = append(numbers, i)
		}
	}
	return numbers
}

// late says whether the look has taken as long as it may.
func (l *look) late() bool { return time.Now().After(l.until) }
