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
	"bpfnet/internal/probe"
)

// API finds the processes of packets.
type API interface {
	// Find says whose the sockets of packets are. It takes no longer than packets
	// may wait for that, which is over when hurry says so, and looks for nothing when
	// it is asked too often. nil says that nothing waits. What it found is valid also
	// with an error, which says why it couldn't look for some.
	Find(packets []Packet, hurry func() bool) (Answer, error)
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
	Socket              Known  // of its socket
}

// Known is what may be known of a socket.
type Known struct {
	NetNS uint64 // inode of its namespace; 0: it is where the packet was seen
	Inode uint32 // its own; 0: it has to be asked for
}

// Process is who has a socket open: of several the one with the lowest pid.
type Process struct {
	endpoint.Process
	Owners int    // how many have it open
	Port   uint16 // of the socket, and so of its end of the packet
}

// Answer has the process of each packet, nil where it isn't known.
type Answer struct {
	Processes []*Process
	Missed    int // packets for whose process there was no time to look
}

const (
	// longest is how long a look may take.
	longest = 20 * time.Millisecond
	// patience is how long it may take where nothing waits.
	patience = time.Second
	// perSecond is for how many packets it looks in a second, and at once when it had
	// nothing to do for one. When more come at once it looks for none: they can't wait.
	perSecond = 20
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
var errLate = errors.New("it takes too long")

// Finder implements API on this machine's kernel, for one goroutine.
type Finder struct {
	path     string // of the network namespace that interfaces are in, "" for the caller's
	boot     time.Time
	networks endpoint.Networks
	read     time.Time // when
	census   census
	holdings map[identity]*holding // who has sockets open
	longest  time.Duration
	credit   float64 // packets that may be looked for now
	credited time.Time
	looking  chan looked // gets what is being looked for; nil: nothing is
}

// NewFinder returns an API for interfaces in the network namespace at a path, "" for
// the caller's. ErrPermission in a pid namespace, where pids are others, and if this
// user may not look into the processes and network namespaces of others.
func NewFinder(path string) (*Finder, error) {
	if why := probe.Lacking(probe.CapSysPtrace, probe.CapSysAdmin); why != "" {
		return nil, fault.New(fault.ErrPermission, "find processes: %s", why)
	}
	var stat unix.Stat_t
	if err := unix.Stat("/proc/self/ns/pid", &stat); err != nil || stat.Ino != endpoint.InitPIDNamespace {
		return nil, fault.New(fault.ErrPermission, "find processes: those of other pid namespaces aren't in /proc")
	}
	f := &Finder{
		path: path, census: census{}, holdings: map[identity]*holding{}, longest: longest, credit: perSecond, credited: time.Now(),
	}
	var err error
	if f.boot, err = endpoint.BootTime(); err != nil {
		return nil, err
	}
	if f.networks, err = endpoint.ReadNetworks(path); err != nil {
		return nil, err
	}
	f.read = time.Now()
	_, _, err = f.census.in(f.networks.Host, f.read.Add(time.Second))
	if errors.Is(err, errLate) {
		err = nil
	}
	return f, err
}

// looked is what a look has found.
type looked struct {
	Answer
	err error
}

// look is the work of one call of Find.
type look struct {
	*Finder
	packets []Packet
	until   time.Time
	found   [][]Socket // of each packet
	failed  []error    // of each packet
}

// Find implements API. What takes longer than packets may wait is done beside the
// caller, and for nothing.
func (f *Finder) Find(packets []Packet, hurry func() bool) (Answer, error) {
	began := time.Now()
	f.credit, f.credited = min(f.credit+began.Sub(f.credited).Seconds()*perSecond, perSecond), began
	numbers := askable(packets)
	nothing := Answer{Processes: make([]*Process, len(packets)), Missed: len(numbers)}
	if len(numbers) == 0 || float64(len(numbers)) > f.credit || f.isLooking() {
		return nothing, nil
	}
	f.credit -= float64(len(numbers))
	longest := f.longest
	if hurry == nil {
		longest, hurry = patience, func() bool { return false }
	}
	looking := make(chan looked, 1)
	f.looking = looking
	go func() { looking <- f.look(packets, numbers, began.Add(longest)) }()
	wait := time.NewTicker(time.Millisecond)
	defer wait.Stop()
	for !hurry() && time.Since(began) < longest {
		select {
		case r := <-looking:
			f.looking = nil
			return r.Answer, r.err
		case <-wait.C:
		}
	}
	f.credit = 0 // there is much to do
	return nothing, nil
}

// isLooking says whether a look still goes on that took too long.
func (f *Finder) isLooking() bool {
	select {
	case <-f.looking:
		f.looking = nil
	default:
	}
	return f.looking != nil
}

// look finds the processes of some packets, given by their numbers.
func (f *Finder) look(packets []Packet, numbers []int, until time.Time) looked {
	l := &look{f, packets, until, make([][]Socket, len(packets)), make([]error, len(packets))}
	r := looked{Answer: Answer{Processes: make([]*Process, len(packets))}}
	for range attempts {
		l.ask(numbers)
		numbers = l.name(numbers, r.Processes)
	}
	for _, err := range l.failed {
		if errors.Is(err, errLate) {
			r.Missed++
		} else {
			r.err = cmp.Or(r.err, err)
		}
	}
	return r
}

// askable lists the numbers of the packets whose sockets can be asked for.
func askable(packets []Packet) (numbers []int) {
	for i, p := range packets {
		if p.Socket.Inode != 0 || (p.Protocol == unix.IPPROTO_TCP || p.Protocol == unix.IPPROTO_UDP) && p.Source.Port() != 0 && p.Destination.Port() != 0 {
			numbers = append(numbers, i)
		}
	}
	return numbers
}

// late says whether the look has taken as long as it may.
func (l *look) late() bool { return time.Now().After(l.until) }
